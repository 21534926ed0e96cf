# Each target makes the environment it needs in .venv, from a lock with hashes; the first time takes a few minutes.
.DEFAULT_GOAL := help
.PHONY: help run test test-long chaos check bench eval lock run-environment dev-environment

export PYTHONPATH := $(CURDIR)/cmd:$(CURDIR)
PYTHON_RUN := .venv/bin/python -P
PYTEST := .venv/bin/python -m pytest
ARGS ?=
COMPILE := .venv/bin/python -m uv pip compile pyproject.toml --python-version 3.11 --generate-hashes

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile

run: run-environment ## Start everything; flags by ARGS="--port 0 --home DIR"
	@exec $(PYTHON_RUN) -m dreamhub up $(ARGS)

test: dev-environment ## The whole suite: unit tests first, then real servers, then end to end
	$(PYTEST) tests/unit -q -n 2 -m "not long"
	$(PYTEST) tests/integration -q -n 2 -m "not long"
	$(PYTEST) tests/e2e -q -m "not long"

test-long: dev-environment ## Tests that take minutes each
	$(PYTEST) tests -q -m long

chaos: dev-environment ## Break everything on purpose and prove that nothing is lost; SEED=N replays, MINUTES=N
	.venv/bin/python -m tests.chaos $(if $(SEED),--seed $(SEED)) $(if $(MINUTES),--minutes $(MINUTES)) $(ARGS)

check: dev-environment ## Lint, format, types, import contracts, deployment chart
	.venv/bin/python -m ruff check .
	.venv/bin/python -m ruff format --check .
	.venv/bin/python -m basedpyright
	.venv/bin/lint-imports
	$(if $(wildcard tests/unit/test_chart.py),$(PYTEST) tests/unit/test_chart.py -q)

bench: dev-environment ## Speed, as ratios to limits measured in the same run
	.venv/bin/python -m tests.bench $(ARGS)

eval: dev-environment ## Quality, through the API: DATA=folder SETS="a b" LIMIT=N HOME_DIR=folder
	.venv/bin/python -m tests.eval --data "$(DATA)" $(if $(SETS),--sets $(SETS)) $(if $(LIMIT),--limit $(LIMIT)) \
		$(if $(HOME_DIR),--home "$(HOME_DIR)") $(ARGS)

lock: dev-environment ## Renew both locks from pyproject.toml; UPGRADE=1 takes newer versions
	$(COMPILE) $(if $(UPGRADE),--upgrade) -o requirements/run.txt
	$(COMPILE) $(if $(UPGRADE),--upgrade) --extra dev -c requirements/run.txt -o requirements/dev.txt

run-environment:
	@deploy/environment.sh run

dev-environment:
	@deploy/environment.sh dev
