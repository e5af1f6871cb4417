#!/usr/bin/env bash
set -e
set -x

alembic upgrade head
python -m app.initial_data
