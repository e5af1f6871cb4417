# The verbs of the repository; `make help` lists them.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
ENV ?= production
VENV := .venv
BIN := $(CURDIR)/$(VENV)/bin
export PATH := $(BIN):$(PATH)
export ANSIBLE_CONFIG := $(CURDIR)/ansible.cfg
# What the caller's shell sets must not leak into a run: these would override ansible.cfg.
unexport ANSIBLE_INVENTORY

.PHONY: help venv lock demo demo-down secrets lint test test-repo test-app test-roles bench clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# The environment is complete when its stamp is there and newer than what it was built from.
venv: $(VENV)/.complete ## Install the tools into .venv, from hash-pinned requirements
$(VENV)/.complete: requirements-bootstrap.txt requirements-dev.txt requirements-app.txt
	@echo "Installing the tools into $(VENV)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || apt-get install -y -qq --no-install-recommends python3-venv
	@rm -rf $(VENV) && $(PYTHON) -m venv $(VENV)
	@$(VENV)/bin/pip install --quiet --disable-pip-version-check --require-hashes -r requirements-bootstrap.txt
	@$(VENV)/bin/uv pip install --quiet --require-hashes -r requirements-dev.txt
	@touch $@
