SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
VENV ?= .venv
# Processes of `make test`; a file's tests run in one of them, e2e tests one after another (tests/conftest.py).
WORKERS ?= 2
# Marks of tests that take long or start processes (tests/cost.py).
DEAR = process or browser or slow or e2e
BIN = $(VENV)/bin
# What starts further processes finds this environment as if it were activated.
RUN = PATH="$(abspath $(BIN)):$$PATH" VIRTUAL_ENV="$(abspath $(VENV))" $(BIN)/python
export VENV LINE

.PHONY: help env env-transformers-5 lint pytest quick test test-oldest demo clean distclean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-19s %s\n", $$1, $$2}' Makefile

env:  ## make .venv (TORCH=2.6.0 chooses a torch, PYTHON=python3.12 a Python)
	@bash tools/setup_env.sh

lint: env  ## ruff and mypy
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

pytest: env
	@$(RUN) -m pytest -n $(WORKERS) --dist loadfile $(ARGS)

quick: env  ## the everyday loop: tests of every room, none that starts processes, trains or opens a browser
	@$(RUN) -m pytest -n $(WORKERS) --dist loadfile -m "not ($(DEAR))" $(ARGS)

test: lint  ## everything: ruff, mypy, all tests (ARGS=tests/config chooses some)
	-@$(MAKE) --no-print-directory env-transformers-5  # without it one test skips, and says so
	@$(RUN) -m pytest -n $(WORKERS) --dist loadfile $(ARGS)

env-transformers-5: env  ## .venv-transformers-5, which has transformers 5: exported folders are tested there
	@bash tools/setup_transformers.sh $(VENV) .venv-transformers-5 "transformers>=5"

test-oldest:  ## the tests with the oldest torch that is allowed, in .venv-oldest
	@$(MAKE) --no-print-directory pytest VENV=.venv-oldest TORCH=2.6.0

test-newest:  ## the tests with the newest version of everything, in .venv-newest
	@$(MAKE) --no-print-directory pytest VENV=.venv-newest LINE=newest

demo: env  ## synthetic angiograms, the whole path on the CPU: about five minutes
	@$(RUN) -m vesselseg demo

clean:  ## remove caches and the demo's output
	@rm -rf work_dirs/demo .pytest_cache .mypy_cache .ruff_cache
	@find vesselseg tools configs tests -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean  ## remove the environments as well
	@rm -rf .venv .venv-oldest .venv-newest .venv-transformers-5 .venv-tools uv.lock *.egg-info
