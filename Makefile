# `make help` lists the targets.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
ENV ?= production
VENV := .venv
BIN := $(CURDIR)/$(VENV)/bin
LAB_SECRETS := inventories/lab/group_vars/all/vault.yml
export PATH := $(BIN):$(PATH)
export ANSIBLE_CONFIG := $(CURDIR)/ansible.cfg
# Machines behind a private CA trust it system-wide; uv uses only its own list by default.
export UV_SYSTEM_CERTS := true
# Ansible refuses a locale that this machine lacks, such as one that SSH has brought from a laptop.
export LC_ALL := C.UTF-8
# Set in the caller's shell, they would override ansible.cfg, and where uv installs.
unexport ANSIBLE_INVENTORY VIRTUAL_ENV

.PHONY: help venv lock lab demo demo-down import-env secrets reference check lint-ansible lint-python test test-unit test-lab test-app test-demo test-preflight \
  image buildah chromium dev dev-servers dev-down soak test-vm bench clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z%-]+:.*## /{printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# The environment is complete if its stamp exists and is newer than its sources.
venv: $(VENV)/.complete ## Install the tools into .venv, from hash-pinned requirements
$(VENV)/.complete: requirements-bootstrap.txt requirements-dev.txt requirements-app.txt galaxy.yml
	@echo "Installing the tools into $(VENV)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends python3-venv >/dev/null; }
	@rm -rf $(VENV) && $(PYTHON) -m venv $(VENV)
	@$(VENV)/bin/pip install --quiet --disable-pip-version-check --require-hashes -r requirements-bootstrap.txt
	@$(VENV)/bin/uv pip install --quiet --require-hashes -r requirements-dev.txt
	@# uv leaves compilation to the first import; processes that may not write there would compile every time.
	@cd $(VENV)/lib/python3*/site-packages && "$(BIN)/python" -m compileall -q -j 0 ansible cryptography jinja2 markupsafe packaging yaml
	@# On Ansible's default search path for collections.
	@cd $(VENV)/lib/python3*/site-packages && mkdir -p ansible_collections/fastmetal && ln -sfn "$(CURDIR)" ansible_collections/fastmetal/metal
	@ln -s ../../bin/fastmetal $(VENV)/bin/fastmetal
	@printf '\n# Ansible finds the configuration from every directory, and accepts the locale.\nexport ANSIBLE_CONFIG="%s" LC_ALL=C.UTF-8\n' "$$ANSIBLE_CONFIG" >> $(VENV)/bin/activate
	@touch $@

# The scanners of the scenario security.
$(VENV)/scan/.complete: requirements-scan.txt $(VENV)/.complete
	@uv venv --quiet --clear $(VENV)/scan
	@uv pip install --quiet --require-hashes --python $(VENV)/scan -r requirements-scan.txt
	@touch $@

lock: ## Refresh the hash-pinned requirements from pyproject.toml
	@uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header pyproject.toml -o requirements-app.txt
	@uv pip compile --quiet --universal --python-version 3.10 --generate-hashes --no-header --no-annotate -c requirements-app.txt roles/app/files/server.in -o roles/app/files/server.txt
	@uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --group dev -c requirements-app.txt pyproject.toml -o requirements-dev.txt
	@uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --group scan -o requirements-scan.txt
	@echo uv | uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header - -o requirements-bootstrap.txt

# --- demo ---------------------------------------------------------------------

# A newer playbook may generate additional secrets.
$(LAB_SECRETS): playbooks/secrets.yml | venv
	@ansible-playbook playbooks/secrets.yml -e env=lab
	@touch $@

# Under sudo, give new files to the checkout's owner, who runs Ansible without sudo; files of lab hosts keep their owners.
HAND_OVER := [ -O . ] || find . -path './.lab/*/hosts' -prune -o -user 0 -exec chown --no-dereference --reference=. {} +

demo: venv $(LAB_SECRETS) ## Build the whole stack on one lab host of this machine
	@trap "$(HAND_OVER)" EXIT; ansible-playbook playbooks/lab.yml; ansible-playbook site.yml; ansible-playbook playbooks/demo.yml
	@cat .lab/demo.txt

demo-down: ## Remove the demo
	@python3 roles/lab/files/labctl.py down demo
	@rm -f .lab/demo.env .lab/demo.txt

# --- environments ---------------------------------------------------------------

import-env: venv ## Sort an .env file into variables and the vault: make import-env SERVICE=shop FILE=.env ENV=production
	@ansible-playbook playbooks/import_env.yml -e env=$(ENV) -e service=$(SERVICE) -e file=$(abspath $(FILE))

secrets: venv ## Generate the missing secrets of an environment: make secrets ENV=production
	@ansible-playbook playbooks/secrets.yml -e env=$(ENV)

# --- development ----------------------------------------------------------------

DEV_PORT ?= 8000
# The tests' inventory has such a host, under the name of another lab.
DEV_SERVERS := ansible-playbook -i tests/inventory -e lab_name=development

dev: venv ## Run the service on this machine, with reload: docs/development.md
	@[ -e .env.development ] || $(MAKE) --no-print-directory dev-servers
	@export ENVIRONMENT=development; python -m app.manage migrate; \
	exec uvicorn --factory app.main:create_app --reload --reload-dir app --port $(DEV_PORT) --no-access-log

dev-servers: venv $(LAB_SECRETS) ## Start Postgres and Redis for `make dev` on a lab host of this machine
	@trap "$(HAND_OVER)" EXIT; $(DEV_SERVERS) playbooks/lab.yml; \
	$(DEV_SERVERS) $(addprefix playbooks/,base.yml postgres.yml redis.yml development.yml)

dev-down: ## Remove the host and the data of `make dev`
	@python3 roles/lab/files/labctl.py down development
	@rm -f .env.development

# --- container image ------------------------------------------------------------

image: venv buildah ## Build a container image of the service: docs/container.md
	@ansible-playbook -i inventories/$(ENV) playbooks/image.yml

buildah:
	@command -v buildah >/dev/null || \
	  { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends buildah >/dev/null; }

# --- tests ----------------------------------------------------------------------

# Their modules are no packages, so each folder is checked on its own.
MYPY_FOLDERS := $(wildcard roles/app/files/release roles/pgbackrest/files/backups roles/grafana/dashboards molecule/*/tests)

check: venv $(LAB_SECRETS) ## Run the linters and every test that needs neither root nor hosts
	@$(MAKE) --no-print-directory --jobs=2 --output-sync=target lint-ansible lint-python test-unit

lint-ansible: venv $(LAB_SECRETS)
	ansible-lint --strict
	yamllint --strict .

lint-python: venv
	ruff check .
	ruff format --check .
	mypy --explicit-package-bases plugins
	mypy --explicit-package-bases app tests roles/lab/files roles/acme/files roles/exporter/files roles/logs/files inventories docs
	mypy bin/fastmetal
	@for folder in $(MYPY_FOLDERS); do mypy $$folder; done
	shellcheck .ci/run
	python docs/reference.py --check
	python docs/settings.py --check
	python docs/ports.py --check
	python roles/grafana/dashboards --check

test-unit: venv $(LAB_SECRETS)
	pytest tests/unit tests/golden tests/repo

# Parts that are joined by "+" run side by side: what follows the first one is niced, so that it takes the processor
# time that the first one leaves idle and no deadline fails. CONTRIBUTING.md has a table of their durations.
PARTS := check test-lab scenario-security+test-app scenario-default+test-preflight scenario-split+test-demo+scenario-apps+scenario-backup scenario-release
test: venv lab $(LAB_SECRETS) $(VENV)/.compiled ## Run every test, as CI does, and print how long each part took
	@trap 'printf "\nmin:sec  part\n"; cat .lab/times' EXIT; mkdir -p .lab; : > .lab/times; \
	for part in $(PARTS); do \
	  start=$$SECONDS; status=0; \
	  case $$part in *+*) options="--jobs=2 --output-sync=target";; *) options=;; esac; \
	  $(MAKE) --no-print-directory $$options $${part//+/ niced-} || status=$$?; \
	  printf '%4d:%02d  %s\n' $$(((SECONDS - start) / 60)) $$(((SECONDS - start) % 60)) $$part >> .lab/times; \
	  [ $$status = 0 ] || exit $$status; \
	done

# Without the prerequisite, make would begin the first part after those that do not wait for the lab.
niced-%: lab
	@nice $(MAKE) --no-print-directory $*

# Packages that only tests import; see $(VENV)/.complete for the reason.
$(VENV)/.compiled: $(VENV)/.complete
	@cd $(VENV)/lib/python3*/site-packages && "$(BIN)/python" -m compileall -q -j 0 -x '/(ansible_collections|ansible_test|grafana_foundation_sdk)/' .
	@touch $@

reference: venv ## Write docs/roles.md, docs/settings.md and the dashboards from the code
	python docs/reference.py
	python docs/settings.py
	python docs/ports.py
	python roles/grafana/dashboards

lab: venv ## Install the packages for lab hosts on this machine
	@ansible-playbook playbooks/lab.yml -e lab_state=prepared

test-lab: venv lab ## Test the lab and the load driver
	pytest tests/hosts/test_lab.py tests/load

test-app: venv lab buildah $(LAB_SECRETS) ## Test the service and its container image against Postgres and Redis on a lab host
	coverage erase
	coverage run -m pytest tests/app tests/image
	coverage combine --quiet
	coverage report --fail-under=95

test-demo: venv lab $(VENV)/.compiled ## Test the demo in a clone: from nothing, again, interrupted, and removed
	pytest tests/demo

test-preflight: venv lab $(LAB_SECRETS) ## Test preflight on lab hosts, and the dashboards against Grafana's types
	@command -v npm >/dev/null || DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends npm >/dev/null
	pytest tests/hosts --ignore tests/hosts/test_lab.py

# It loads pages in a browser; machines of GitHub have Chrome.
scenario-apps: chromium

scenario-security: $(VENV)/scan/.complete

chromium:
	@command -v chromium-headless-shell chromium google-chrome >/dev/null || \
	  { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium-headless-shell >/dev/null; }

scenario-%: venv lab $(LAB_SECRETS) ## Run one Molecule scenario: make scenario-split
	molecule test --scenario-name $*

soak: venv lab $(LAB_SECRETS) $(VENV)/.compiled ## Measure many releases, other release methods and the time of each step: before a release, or nightly
	SOAK=1 molecule test --scenario-name release
	@command -v npm >/dev/null || DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends npm >/dev/null
	SOAK=1 molecule test --scenario-name security

# Not part of `make test`: software emulation takes an hour or more.
test-vm: venv lab $(LAB_SECRETS) ## Test limits, address filters, clock, durability and reboot on a real kernel under qemu
	@command -v qemu-system-x86_64 >/dev/null || \
	  { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends qemu-system-x86 >/dev/null; }
	nice pytest tests/vm

# Not part of `make test`: it needs an idle machine for twenty minutes.
bench: venv $(LAB_SECRETS) ## Benchmark the service against a tutorial's on one lab host
	@python -m tests.bench

clean: demo-down dev-down ## Remove all build results
	rm -rf $(VENV) .lab .artifacts
