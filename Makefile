# The project's commands. `make` alone lists them. Needs Python 3.11 or newer with venv; the rest is installed
# into .venv, never outside of the tree.

PYTHON ?= python3
VENV ?= .venv
# Passed on to `broker serve`, to pytest, and to the benchmark.
ARGS ?=
PYTEST_ARGS ?=
# Test processes side by side; a file is one process's work.
JOBS ?= 2

BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
GENERATED := consumer/kyogo/v1/__init__.py
PROTOS := $(shell find protos -name '*.proto')
# The wire contract as it was released last.
RELEASED := protos/released.binpb

# The last line of `make check` is pytest's, for people and for CI.
MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help
.PHONY: help setup run test check demo bench protos released clean

help: ## list the commands
	@echo 'usage: make COMMAND [PYTHON=python3] [ARGS=...]'
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(INSTALLED) $(GENERATED) ## make .venv with everything in it; quick the second time

run: setup ## start a broker with default ports and data (ARGS= for `broker serve`)
	$(BIN)/broker serve $(ARGS)

test: setup ## run the tests (PYTEST_ARGS='-k fence -x' for some)
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile $(PYTEST_ARGS)

check: setup ## everything CI holds: style, types, layers, wire contract, tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/buf lint
	$(BIN)/buf breaking --against $(RELEASED)
	$(BIN)/python protos/generate.py --verify
	@$(MAKE) test

demo: setup ## see it work: workers come, go and are killed, nothing is lost
	$(BIN)/python -m examples.demo $(ARGS)

bench: setup ## measure; results are ratios against a reference in the same run
	$(BIN)/python -m bench $(ARGS)

protos: $(INSTALLED) ## generate the Python of the wire contract anew
	$(BIN)/python protos/generate.py
	@touch $(GENERATED)

released: $(INSTALLED) ## at a release: what it promises on the wire, no later one may break
	$(BIN)/buf breaking --against $(RELEASED)
	$(BIN)/buf build --exclude-source-info -o $(RELEASED)

clean: ## remove what was built; data and node_modules stay
	rm -rf $(VENV) build dist consumer/kyogo/v1 consumer/kyogo/internal
	rm -rf .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -not -path '*/node_modules/*' -prune -exec rm -rf {} +

# An install generates too, so that GENERATED follows from it; pip leaves alone what fits.
$(INSTALLED): pyproject.toml hatch_build.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo 'Kyogo needs Python 3.11 or newer, but $(PYTHON) is' "$$($(PYTHON) --version 2>&1)."; \
		echo 'Name a newer one: make setup PYTHON=python3.12'; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo '$(PYTHON) cannot make a virtual environment; on Debian: apt install python3-venv'; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[broker,dev]'
	@touch $(INSTALLED)

$(GENERATED): $(PROTOS) protos/generate.py | $(INSTALLED)
	$(BIN)/python protos/generate.py
	@touch $(GENERATED)
