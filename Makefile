# murima: everything a developer or operator does from a checkout. `make help` lists it.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

# The interpreter that .venv is made with; empty means the first suitable one found.
export PYTHON ?=

CONFIG ?= config/shipped/sample.yaml
DATA ?= data
# Test processes side by side; the tests with real phones keep to one of them.
JOBS ?= 2
PYTEST_ARGS ?=

.PHONY: help setup setup-test run demo test lint fmt bench prove lock clean

help: ## list the targets
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "make %-11s %s\n", $$1, $$2}' Makefile

setup: ## install what is missing to run (into .venv)
	@tools/setup run

setup-test: ## install what is missing to test: Python packages, phones and switches (Debian, npm)
	@tools/setup test

run: setup ## set up, then run murima with the sample configuration (foreground); CONFIG= and DATA= change it
	@exec .venv/bin/murima serve --config "$(CONFIG)" --data "$(DATA)"

demo: setup ## set up, then show synthetic callers being routed to synthetic agents
	@exec .venv/bin/murima demo

test: setup-test ## set up, then lint and run the whole test suite; a skipped test is a failure
	@$(MAKE) lint-only
	@.venv/bin/pytest -n $(JOBS) --dist loadgroup --whole $(PYTEST_ARGS)

lint: setup-test lint-only ## check style, formatting and types

.PHONY: lint-only
lint-only:
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .
	@.venv/bin/mypy

fmt: setup-test ## format the code and repair what ruff can repair
	@.venv/bin/ruff check --fix .
	@.venv/bin/ruff format .

bench: setup-test ## run every benchmark, one after the other
	@for file in benchmarks/bench_*.py; do \
		printf '\n== %s\n' "$$file"; \
		module="$${file%.py}"; \
		.venv/bin/python -m "$${module//\//.}"; \
	done

prove: setup-test ## run only the calls with real phones and switches, one by one, in their long forms, with figures; then fuzz SIP
	@MURIMA_PROVE=1 .venv/bin/pytest -n 0 --verbose --log-cli-level INFO tests/peers $(PYTEST_ARGS)
	@.venv/bin/python -m tests.fuzz.sip --runs 100000

lock: ## choose new versions of all dependencies and write requirements/*.txt
	@tools/lock

clean: ## remove what make and the tools made (.venv too); data/ stays
	@rm -rf .venv .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist *.egg-info
	@find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
