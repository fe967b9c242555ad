# make run    prune, measure, version and register the model of params.yaml
# make test   lint, types and every test
# Both build .venv from requirements.lock first, when it is missing or stale.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

# The first Python that is new enough and can make an environment with pip in it.
ifndef PYTHON
PYTHON := $(shell for python in python3.11 python3.12 python3.13 python3 python; do \
	"$$python" -c 'import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && { echo "$$python"; break; }; done)
endif

# DVC starts its stages as `python -P -m flows STAGE`: that python must be the environment's.
export PATH := $(CURDIR)/.venv/bin:$(PATH)
# Nothing reports home.
export PREFECT_SERVER_ANALYTICS_ENABLED := false
export DO_NOT_TRACK := 1
export MLFLOW_DISABLE_TELEMETRY := true
export DVC_NO_ANALYTICS := 1
export HF_HUB_DISABLE_TELEMETRY := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1
unexport PYTHONHOME PYTHONPATH VIRTUAL_ENV

PACKAGES := .venv/.packages
READY := .venv/.ready
DOCS := .venv-docs/.packages
PEER := .dass/benchmarks/peers/llm-compressor

.PHONY: help run test test-slow test-faults check format docs bench bench-peers bench-gpu stack stack-down clean

help:
	@sed -n -e 's/^# make/make/p' -e 's/^#             /            /p' Makefile

run: $(READY)
	@.venv/bin/dass run

test: check
	@.venv/bin/python -m pytest -n 2 --dist loadfile

# make test-slow  the tests that take long, build an environment of their own, or need an MLflow server on Postgres
test-slow: $(READY)
	@.venv/bin/python -m pytest -n 2 --dist loadfile -m '(slow or postgres) and not faults'

# make test-faults  break it while it works: disks, servers, remotes, clocks, kill -9; and count what was lost
test-faults: $(READY)
	@.venv/bin/python -m pytest -n 2 --dist loadfile -m faults

# make check  lint and types only
check: $(READY)
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .
	@.venv/bin/mypy

# make format lint fixes and layout, written to the files
format: $(READY)
	@.venv/bin/ruff check --fix .
	@.venv/bin/ruff format .

# make docs   the pages of docs/ as a site, in site/; a link that leads nowhere fails. In an environment of its own
docs: $(DOCS)
	@NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --strict --quiet --site-dir site
	@echo 'Built site/index.html. To read while writing: .venv-docs/bin/mkdocs serve'

# make bench  measure the engine against the published procedure and write docs/benchmarks.md
#             (hours; goes on if stopped; make bench FRESH=--fresh forgets what benchmarks/results holds)
bench: $(READY)
	@.venv/bin/python -m benchmarks.speed $(FRESH)
	@.venv/bin/python -m benchmarks.growth $(FRESH)
	@.venv/bin/python -m benchmarks.many_masks $(FRESH)
	@.venv/bin/python -m benchmarks.evaluation $(FRESH)
	@.venv/bin/python -m benchmarks.recovery $(FRESH)
	@.venv/bin/python -m benchmarks.shape_7b $(FRESH)
	@.venv/bin/python -m benchmarks.block_memory $(FRESH)
	@.venv/bin/python -m benchmarks.digests $(FRESH)
	@.venv/bin/python -m benchmarks.registry $(FRESH)
	@.venv/bin/python -m benchmarks.render

# make bench-peers  the engine beside llm-compressor, which gets an environment of its own, on the same tokens
#             (over an hour; goes on if stopped; make bench-peers OPTIONS='--models smollm2-135m --dtype float32 --repeats 1')
bench-peers: $(READY) $(PEER)/.packages
	@.venv/bin/python -m benchmarks.peers $(FRESH) $(OPTIONS)
	@.venv/bin/python -m benchmarks.render

# make bench-gpu  the same on a GPU, at the shape of a 7B model (without one: a dry run on the CPU)
bench-gpu: $(READY)
	@.venv/bin/python -m benchmarks.gpu $(FRESH)
	@.venv/bin/python -m benchmarks.render

# make stack  Postgres, MLflow with roles, Prefect and a worker on this machine; make stack OPTIONS='--host ADDRESS'
stack: $(READY)
	@.venv/bin/dass stack up $(OPTIONS)

# make stack-down  stop what make stack started; the data stays, unless OPTIONS=--purge
stack-down: $(READY)
	@.venv/bin/dass stack down $(OPTIONS)

# make clean  remove the environments
clean:
	@rm -rf .venv .venv-docs $(PEER)

# Built anew rather than updated, so that .venv never holds a package that the lock does not.
$(PACKAGES): requirements.lock
	@test -n "$(PYTHON)" || { echo 'No Python >= 3.11 with venv and pip found. Install one, or run: make PYTHON=/path/to/python3' >&2; exit 2; }
	@echo 'Building .venv from requirements.lock (some minutes the first time)'
	@rm -rf .venv
	@$(PYTHON) -m venv .venv
	@.venv/bin/python -m pip install --quiet --requirement requirements.lock
	@touch $@

$(DOCS): requirements-docs.lock
	@test -n "$(PYTHON)" || { echo 'No Python >= 3.11 with venv and pip found. Install one, or run: make PYTHON=/path/to/python3' >&2; exit 2; }
	@echo 'Building .venv-docs from requirements-docs.lock'
	@rm -rf .venv-docs
	@$(PYTHON) -m venv .venv-docs
	@.venv-docs/bin/python -m pip install --quiet --requirement requirements-docs.lock
	@touch $@

$(PEER)/.packages: benchmarks/llm_compressor.lock
	@test -n "$(PYTHON)" || { echo 'No Python >= 3.11 with venv and pip found. Install one, or run: make PYTHON=/path/to/python3' >&2; exit 2; }
	@echo "Building llm-compressor's environment in $(PEER) from benchmarks/llm_compressor.lock"
	@rm -rf $(PEER)
	@$(PYTHON) -m venv $(PEER)
	@$(PEER)/bin/python -m pip install --quiet --requirement benchmarks/llm_compressor.lock
	@$(PEER)/bin/python -m pip check --quiet
	@touch $@

$(READY): $(PACKAGES) pyproject.toml
	@.venv/bin/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@.venv/bin/python -m pip check --quiet
	@touch $@
