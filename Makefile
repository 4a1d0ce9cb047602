# Everything a fresh machine needs is Python 3.11+, make and a network to the package index.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Clients of the conformance tests whose pins exclude ours.
CLIENTS := .venv-conformance
CLIENTS_STAMP := $(CLIENTS)/.installed

.DEFAULT_GOAL := help
# TensorRT-RTX builds plans on a CPU too; a quarter of a gigabyte, so only where it is wanted.
RTX_STAMP := $(VENV)/.installed-rtx

.PHONY: help setup setup-rtx demo test check bench lock clean

help: ## Show this help
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Galen needs Python 3.11 or newer; this is " + sys.version.split()[0] + ". Set PYTHON=/path/to/python3.11")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m uv --version >/dev/null 2>&1 || $(BIN)/python -m pip install --quiet --disable-pip-version-check 'uv>=0.9'
	$(BIN)/python -m uv pip install --quiet --python $(BIN)/python -r requirements.lock
	$(BIN)/python -m uv pip install --quiet --python $(BIN)/python --no-deps -e .
	@touch $@

$(CLIENTS_STAMP): requirements-conformance.lock $(STAMP)
	@test -x $(CLIENTS)/bin/python || $(BIN)/python -m venv --without-pip $(CLIENTS)
	$(BIN)/python -m uv pip install --quiet --python $(CLIENTS)/bin/python -r requirements-conformance.lock
	@touch $@

setup: $(STAMP) ## Make the virtual environment with the locked dependencies

$(RTX_STAMP): requirements-rtx.lock $(STAMP)
	$(BIN)/python -m uv pip install --quiet --python $(BIN)/python -r requirements-rtx.lock
	@touch $@

setup-rtx: $(RTX_STAMP) ## Add TensorRT-RTX, with which the tests build a real plan

demo: $(STAMP) ## Run the whole loop on this machine: service, traffic, faults, healing, dashboard
	$(BIN)/galen up --demo

test: $(STAMP) $(CLIENTS_STAMP) ## Run every test
	$(BIN)/python -m pytest -q

check: $(STAMP) ## Lint, types, import layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(STAMP) ## Run the benchmarks
	$(BIN)/python -m benchmarks

lock: $(STAMP) ## Pin the dependencies again
	$(BIN)/python -m uv pip compile pyproject.toml --group dev --universal --python-version 3.11 \
	  --generate-hashes --no-emit-index-url --no-annotate --no-header --quiet --upgrade -o requirements.lock
	$(BIN)/python -m uv pip compile --group conformance --universal --python-version 3.11 \
	  --generate-hashes --no-emit-index-url --no-annotate --no-header --quiet --upgrade \
	  -o requirements-conformance.lock
	$(BIN)/python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['optional-dependencies']['rtx'], sep='\n')" \
	  | $(BIN)/python -m uv pip compile - -c requirements.lock --universal --python-version 3.11 \
	  --generate-hashes --no-emit-index-url --no-annotate --no-header --quiet --upgrade \
	  -o requirements-rtx.lock

clean: ## Remove the environment and all state
	rm -rf $(VENV) $(CLIENTS) var dist build
