# Every target sets up what it needs. `make help` lists them.

PYTHON ?= python3
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-laws test-tamper test-fuzz lint run proto format bench bench-growth bench-audit lock audit sbom licences clean

help:  ## List the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | awk -F'\t' '{printf "  make %-12s %s\n", $$1, $$2}'

setup: .venv/.dev  ## Create .venv with everything that running, testing and building need

demo: .venv/.runtime  ## Show the main job: a server, accounts, payments, and the numbers from two sides
	@$(BIN)/ledger demo

test: .venv/.dev  ## Run every test, in two processes
	$(BIN)/pytest -q -n 2 --dist worksteal

test-laws: .venv/.dev  ## Drive a server through 2,000 random lives beside a model of what it must answer (an hour)
	LAW_RUNS=2000 $(BIN)/pytest -q -s tests/laws

test-tamper: .venv/.dev  ## Tamper with a ledger in 1,000 random ways, each of which verify has to find and name
	LEDGER_TEST_TAMPERINGS=1000 $(BIN)/pytest -q tests/integration/test_verify.py

test-fuzz: .venv/.dev  ## Send a running server 200,000 malformed requests and as many frames that are no HTTP/2
	FUZZ_RUNS=200000 $(BIN)/pytest -q -s --timeout 7200 tests/fuzz

lint: .venv/.dev  ## Check style, types, imports between packages, and that ledger/v1 is what proto/ says
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python scripts/proto.py --check

run: .venv/.runtime  ## Serve on 127.0.0.1:50051 with data kept in .data, until Ctrl-C
	@$(BIN)/ledger serve --listen 127.0.0.1:50051 --data-dir .data

proto: .venv/.dev  ## Generate ledger/v1 from proto/
	$(BIN)/python scripts/proto.py

format: .venv/.dev  ## Format the code
	$(BIN)/ruff check --fix-only -q .
	$(BIN)/ruff format .

bench: .venv/.dev  ## Measure, each figure beside its floor (ten minutes); SCENARIO="unary lone" for some of it
	$(BIN)/python -m bench $(SCENARIO)

bench-growth: .venv/.dev  ## Measure how it grows: log, accounts, memory, offered load (an hour)
	$(BIN)/python -m bench --growth $(SCENARIO)

bench-audit: .venv/.dev  ## Measure what the audit costs: tree, proofs, verify, beside a bare read
	$(BIN)/python bench/audit.py
	$(BIN)/python bench/verify.py

lock: .venv/.dev  ## Pin the newest versions that requirements/*.in allow, with hashes
	$(BIN)/python scripts/lock.py

audit: .venv/.dev  ## Look up every pinned package in OSV; fails if anything is known, or the service can't be asked
	$(BIN)/python scripts/audit.py

sbom: .venv/.dev  ## Write build/sbom.json: what runs, with versions and hashes (CycloneDX)
	@mkdir -p build
	$(BIN)/python -W ignore -m cyclonedx_py requirements --pyproject pyproject.toml --output-reproducible -o build/sbom.json requirements/runtime.txt

licences: .venv/.dev  ## Write docs/licences.md: the licence of every package that runs
	$(BIN)/python scripts/licences.py

clean:  ## Remove .venv and caches (not .data)
	rm -rf .venv build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache

.venv/bin/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "ledger needs Python 3.11 or newer; try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@echo "Setting up .venv ..."
	@$(PYTHON) -m venv .venv

.venv/.runtime: requirements/runtime.txt pyproject.toml | .venv/bin/pip
	@$(BIN)/pip install -q --disable-pip-version-check --require-hashes -r requirements/runtime.txt
	@$(BIN)/pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

.venv/.dev: requirements/dev.txt .venv/.runtime
	@$(BIN)/pip install -q --disable-pip-version-check --require-hashes -r requirements/dev.txt
	@touch $@
