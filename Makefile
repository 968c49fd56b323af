# Two commands for a newcomer: `make compare` and `make test`. Both build .venv first, once.
# Installing again happens only after pyproject.toml changed.

PYTHON ?= python3
VENV ?= .venv
VQJAX_SHARED ?= ../shared
ARGS ?=

BIN := $(VENV)/bin
# In the order of tests/conftest.py: the longest first, so that both processes end together.
TWO := -n 2 --dist loadfile --no-loadscope-reorder
# What examples may do and a module may not: functions without annotations, a name for two things,
# and calls of JAX and Flax that have none themselves.
EXAMPLES := --strict --follow-imports=silent --allow-untyped-defs --allow-untyped-calls --allow-redefinition-new --disable-error-code no-redef
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

export VQJAX_SHARED

.PHONY: help compare test test-all test-shipped docs tables lint format clean
.DEFAULT_GOAL := help

help:
	@echo "make compare    none, VQ-EMA, FSQ and RVQ on digits; results in runs/digits (ARGS='...' adds flags)"
	@echo "make test       the tests, in a few minutes on two cores (ARGS='...' adds pytest arguments)"
	@echo "make test-all   these and the slow ones: whole tables, whole runs, benchmarks and notebooks"
	@echo "make test-shipped  all tests, compiled with JAX's own settings; an hour or two"
	@echo "make docs       the documentation, into site/; warnings are errors"
	@echo "make tables     every table of README and docs, and the reports, from committed results"
	@echo "make lint       ruff, mypy and pyright, reading only"
	@echo "make format     ruff, mending what it can"
	@echo "make clean      remove $(VENV) and caches; runs/ stays"

compare: $(VENV)/.installed-train
	@echo "== python train.py $(ARGS)"
	@$(BIN)/python train.py $(ARGS)

test: $(VENV)/.installed-test
	@echo "== pytest, two processes (reference data: $(VQJAX_SHARED))"
	@$(BIN)/python -m pytest $(TWO) -m "not slow" $(ARGS)

test-all: $(VENV)/.installed-test
	@echo "== pytest with the slow tests, two processes (reference data: $(VQJAX_SHARED))"
	@$(BIN)/python -m pytest $(TWO) $(ARGS)

test-shipped: $(VENV)/.installed-test
	@echo "== pytest with the slow tests, compiled as shipped (reference data: $(VQJAX_SHARED))"
	@VQJAX_COMPILE=shipped $(BIN)/python -m pytest $(TWO) $(ARGS)

docs: $(VENV)/.installed-test
	@echo "== mkdocs build --strict"
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet $(ARGS)

tables: $(VENV)/.installed-test
	@$(BIN)/python docs/tables.py
	@$(BIN)/python docs/reports.py $(ARGS)

lint: $(VENV)/.installed-test
	@echo "== ruff check, ruff format --check"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@echo "== mypy, pyright: the code, and the examples of README and documentation"
	@$(BIN)/mypy
	@$(BIN)/pyright --pythonpath $(BIN)/python
	@rm -rf build/examples && $(BIN)/python docs/examples.py build/examples > /dev/null
	@$(BIN)/mypy $(EXAMPLES) build/examples
	@$(BIN)/pyright --pythonpath $(BIN)/python --project docs/pyrightconfig.json

format: $(VENV)/.installed-test
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis dist site

# One stamp an extra; `test` includes `train`.
$(VENV)/.installed-%: pyproject.toml | $(VENV)/bin/python
	@echo "== installing vqjax[$*] into $(VENV) (once; a few minutes the first time)"
	@$(PIP) --editable ".[$*]"
	@touch $@

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "vqjax needs Python 3.11 or newer; name one with: make PYTHON=python3.12"; exit 1; }
	@echo "== creating $(VENV)"
	@$(PYTHON) -m venv $(VENV) \
	  || { rm -rf $(VENV); echo "could not create $(VENV); on Debian: apt-get install python3-venv"; exit 1; }
