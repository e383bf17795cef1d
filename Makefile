.DEFAULT_GOAL := help
# The targets of a check share one environment and two processors: each uses both by itself.
.NOTPARALLEL:
SHELL := bash

PYTHON_BIN := .venv/bin/python

.PHONY: help
help: ## List the targets.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: setup
setup: ## Make .venv from the lock file; installs uv into .tools where it is absent.
	scripts/bootstrap

.PHONY: postgresql
postgresql: setup ## Find a PostgreSQL server for the tests, or install one where it may.
	scripts/setup-postgresql

.PHONY: check
check: lint types imports generated packages-alone wheels examples guard test ## Check everything; what continuous integration runs.

.PHONY: lint
lint: setup ## Style, formatting, and texts that must not be committed.
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	scripts/check-text

.PHONY: types
types: setup ## Type check packages, tests, examples and scripts.
	scripts/check-types

.PHONY: imports
imports: setup ## Check which package imports which.
	.venv/bin/lint-imports --no-logo
	$(PYTHON_BIN) -m pytest -q tests/test_import_rules.py

.PHONY: generated
generated: setup ## Prove that the generated protobuf code is current.
	scripts/generate-protos --check

.PHONY: test
test: postgresql ## Unit, contract and integration tests.
	$(PYTHON_BIN) -m pytest -n 2 --dist worksteal

.PHONY: packages-alone
packages-alone: postgresql ## Run each package's tests without the other packages.
	scripts/check-packages-alone

.PHONY: wheels
wheels: setup ## Build the wheels, install them into clean environments, and use them.
	scripts/check-wheels

.PHONY: examples
examples: setup ## Test the examples; installs Node.js, Chromium and npm packages where it may.
	scripts/setup-node
	$(PYTHON_BIN) -m pytest -n 2 --dist worksteal examples

.PHONY: guard
guard: setup ## Count the instructions of fixed transfers, and compare with the record.
	scripts/setup-valgrind
	$(PYTHON_BIN) benchmarks/guard.py

.PHONY: demo
demo: setup ## Upload a live stream over gRPC, follow it over WebSocket, and compare.
	.venv/bin/tailrace demo

.PHONY: bookshop
bookshop: setup ## Run the example of record streams, until Ctrl-C: recommendations, contacts, letters.
	$(PYTHON_BIN) examples/bookshop/shop.py

.PHONY: mutants
mutants: setup ## Break the code on purpose, once per saboteur, and see that the tests notice.
	$(PYTHON_BIN) integration-tests/mutants.py

.PHONY: soak
soak: setup ## Faults, hostile clients, mutated frames and models at full size, for SOAK_MINUTES (60).
	scripts/soak

.PHONY: bench
bench: setup postgresql ## Measure everything beside a raw loopback socket and beside other products; takes a while.
	-scripts/setup-peers
	$(MAKE) --no-print-directory bench-run BENCH_ARGUMENTS=--peers

.PHONY: bench-three
bench-three: setup postgresql ## The same three times, one after the other, and what was reached in each of them; half an hour to an hour and a quarter.
	-scripts/setup-peers
	$(MAKE) --no-print-directory bench-run BENCH_PROGRAM="runs.py 3" BENCH_ARGUMENTS=--peers

.PHONY: bench-quick
bench-quick: setup postgresql ## The same in under three minutes, smaller and without the others.
	$(MAKE) --no-print-directory bench-run BENCH_ARGUMENTS=--quick

.PHONY: bench-record
bench-record: bench-three ## The same; then keep report, plots and the README's table in the repository.
	cp benchmarks/results/latest.md benchmarks/RESULTS.md
	cp benchmarks/results/latest.json benchmarks/RESULTS.json
	$(PYTHON_BIN) benchmarks/readme_table.py
	rm -rf benchmarks/plots && cp -r benchmarks/results/plots benchmarks/plots

# Drawn in the environment of the load test, which has what draws; also where a row failed, which is told at the end.
.PHONY: bench-run
bench-run: BENCH_PROGRAM ?= run.py
bench-run:
	UV_PROJECT_ENVIRONMENT=.tools/load .tools/bin/uv sync --quiet --all-packages --all-extras --all-groups --locked
	$(PYTHON_BIN) benchmarks/$(BENCH_PROGRAM) $(BENCH_ARGUMENTS); failed=$$?; \
		.tools/load/bin/python benchmarks/plots.py && exit $$failed

.PHONY: load
load: setup ## Let users of Locust at streamed and plain services side by side; writes benchmarks/LOAD.md.
	UV_PROJECT_ENVIRONMENT=.tools/load .tools/bin/uv sync --quiet --all-packages --all-extras --all-groups --locked
	.tools/load/bin/python benchmarks/load.py

.PHONY: clean
clean: ## Remove everything that make and the tools made.
	rm -rf .venv .tools build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache tailrace-data
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
	find examples -name node_modules -type d -prune -exec rm -rf {} + 2>/dev/null || true
