# Every target does its own set-up: a machine with Python 3.11+ (with its venv module) and make is enough.
#   make demo YES=1        make test ARGS="tests/unit -x"        make install PYTHON=/usr/bin/python3.12

# The first interpreter that is new enough and can make an environment; the lock holds wheels for these versions.
PYTHON ?= $(shell for python in python3.11 python3.12 python3.13 python3.14 python3; do \
	$$python -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -qq
PACKAGES := benchmarks config graphflow tasks workers
SOURCES := $(PACKAGES) tests
COMPILE = build/lock/bin/uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --no-annotate \
	--custom-compile-command "make lock" $(if $(UPGRADE),--upgrade) pyproject.toml --all-extras --group build --group data --group model
# Most tests wait for processes most of the time: three at once keep two cores busy.
JOBS ?= 3
ROUNDS ?= 30
SEED ?= 1

.DEFAULT_GOAL := help
.PHONY: help install install-dev demo test check lint format types unit prove lock types-path clean

help: ## What can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(VENV)/.run ## Make .venv with the pinned packages; its bin/convergio is the command
install-dev: $(VENV)/.dev ## The same with the packages for tests and linters

demo: install ## A business workflow on real input (YES=1 answers for you; INPUT=file WORKFLOW=name)
	@$(BIN)/convergio demo $(if $(YES),--yes) $(if $(INPUT),--input "$(INPUT)") $(if $(WORKFLOW),--workflow "$(WORKFLOW)")

test: install-dev ## The whole suite; what cannot run here is listed with its reason (ARGS= goes to pytest, JOBS=0: one by one)
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder $(ARGS)

check: install-dev types-path ## The fast loop, under a minute: format, lint, import rules, types, unit tests
	@$(MAKE) --no-print-directory -j2 --output-sync=target lint types unit

lint: install-dev
	$(BIN)/ruff format --check --quiet $(SOURCES)
	$(BIN)/ruff check --quiet $(SOURCES)
	$(BIN)/lint-imports --no-logo

types: install-dev types-path
	$(BIN)/mypy --no-error-summary
	$(BIN)/basedpyright --pythonpath $(BIN)/python

unit: install-dev
	$(BIN)/python -m pytest -q -m "not prove and not slow" tests/unit

format: install-dev ## Format the sources and repair what the linter can
	$(BIN)/ruff check --fix --quiet $(SOURCES) || true
	$(BIN)/ruff format $(SOURCES)

prove: install-dev ## The long suites: slow properties, chaos and benchmarks (SEED= ROUNDS=)
	$(BIN)/python -m pytest -m prove --timeout=0 $(ARGS)
	$(BIN)/convergio chaos --seed $(SEED) --rounds $(ROUNDS) --json
	$(BIN)/convergio bench engine --json

lock: ## Renew requirements/*.lock from pyproject.toml: keeps every pin that still fits (UPGRADE=1: the newest)
	$(PYTHON) -m venv build/lock
	build/lock/bin/python -m pip --disable-pip-version-check -qq install uv
	$(COMPILE) -o requirements/run.lock
	$(COMPILE) --group test --group lint --constraints requirements/run.lock -o requirements/dev.lock

types-path: ## The packages under their real names, for type checkers and editors
	@mkdir -p build/types/convergio
	@for package in $(PACKAGES); do ln -sfn ../../../$$package build/types/convergio/$$package; done

clean: ## Remove .venv, caches and what was built; data in .convergio stays
	rm -rf $(VENV) build dist .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find $(SOURCES) -name __pycache__ -type d -prune -exec rm -rf {} +

# Stamps: an installation is renewed only when its lock or pyproject.toml changed. The lock is closed, so --no-deps is
# right, and it keeps pip from following what [tool.uv] cut off.
$(VENV)/.run: requirements/run.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "No Python 3.11+ with its venv module found (Debian: apt install python3-venv)" >&2; exit 1; }
	@test -x $(BIN)/python || { echo "Making $(VENV) with $(PYTHON)"; $(PYTHON) -m venv $(VENV); }
	@echo "Installing the pinned packages into $(VENV) (a minute or two, once)"
	@$(PIP) install --no-deps --require-hashes -r requirements/run.lock
	@$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/.dev: requirements/dev.lock $(VENV)/.run
	@echo "Installing what tests and linters need into $(VENV)"
	@$(PIP) install --no-deps --require-hashes -r requirements/dev.lock
	@touch $@
