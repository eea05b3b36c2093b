# `make quickstart` and `make test` each need only python3 >= 3.11 and make: they set up what they use in $(VENV) first.
# Another interpreter: make PYTHON=python3.12 quickstart. Another place: make VENV=/somewhere/else test.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
RUNTIME := $(VENV)/.runtime-installed
DEV := $(VENV)/.dev-installed

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help quickstart test lint clean

help:
	@echo 'make quickstart   tune a small model on this machine: data, training, merged model, report'
	@echo 'make test         the tests'
	@echo 'make lint         ruff and mypy'
	@echo 'make clean        remove the environment and the caches; runs/ is kept'

# One thread: a model this small gains a quarter from a second one, and is many times slower where something else holds a core.
quickstart: $(RUNTIME)
	OMP_NUM_THREADS=1 $(BIN)/sft train recipes/quickstart.yaml --overwrite

# worksteal: each worker starts with one half of the files, so what a file's tests share is made once, and helps the other at the end.
test: $(DEV)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

lint: $(DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis

$(BIN)/python:
	@command -v $(PYTHON) >/dev/null || { echo 'Vicugna needs Python 3.11 or newer, and $(PYTHON) is not on this machine: install it, or name another with PYTHON=...' >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Vicugna needs Python 3.11 or newer, and $(PYTHON) is $$($(PYTHON) -V 2>&1): name a newer one, such as PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo '$(PYTHON) cannot make virtual environments: install its venv package (python3-venv on Debian and Ubuntu)' >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(RUNTIME): pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt -e .
	@touch $@

$(DEV): pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt -e '.[dev]'
	@touch $(RUNTIME) $@
