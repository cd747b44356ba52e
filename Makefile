# Needs Python 3.11 or later, make and, for the first installation, a network.
# Every target works in a fresh clone, and can be repeated.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
# Where bytecode is not kept, each of the many Pythons of the tests compiles all anew.
unexport PYTHONDONTWRITEBYTECODE

# The first Python on the path that is new enough; `make PYTHON=... test` picks another.
PYTHON ?= $(shell for name in python3 python3.14 python3.13 python3.12 python3.11 python; do \
	if $$name -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; \
	then command -v $$name; break; fi; done)

BIN := .venv/bin
WITH_DEMO := .venv/.installed-demo
WITH_TEST := .venv/.installed-test
CODE := conftest.py src tests examples benchmarks docs
# Processes of the tests. Each takes about 2 GB.
WORKERS ?= 2
# Tests that need what this machine may not have run only where they are named. Each
# process begins with half of the tests in the order of the files, so most of what a
# file prepares is prepared once, and takes tests from the other when it has none left.
TESTS := -n $(WORKERS) --dist worksteal -m "not (gpu or network or real or faults)"
# The first of RUNS is a resnet18: some benchmarks measure only that one.
BENCH := $(if $(DATA),--data $(DATA)) $(if $(RUNS),--runs $(RUNS)) $(if $(WEIGHTS),--weights $(WEIGHTS))

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-17s %s\n", $$1, $$2}' Makefile

.PHONY: demo
demo: $(WITH_DEMO) ## The main job on built-in images: audit, train, evaluate, report (5 minutes)
	@rm -rf demo
	@$(BIN)/python examples/demo.py
	@echo "==> what came of it"
	@$(BIN)/python examples/demo_summary.py demo

.PHONY: test
test: $(WITH_TEST) ## The tests
	@echo "==> tests, in $(WORKERS) processes"
	$(BIN)/python -m pytest -q $(TESTS)

.PHONY: lint
lint: $(WITH_TEST) ## Format check, lint, types, imports
	@echo "==> format"
	$(BIN)/ruff format --check $(wildcard $(CODE))
	@echo "==> lint"
	$(BIN)/ruff check $(wildcard $(CODE))
	@echo "==> types"
	$(BIN)/mypy
	@echo "==> imports"
	$(BIN)/lint-imports --no-logo

.PHONY: check
check: lint test ## Format check, lint, types, imports, tests

.PHONY: format
format: $(WITH_TEST) ## Put the code in its format
	$(BIN)/ruff format $(wildcard $(CODE))
	$(BIN)/ruff check --fix $(wildcard $(CODE))

.PHONY: test-coverage
test-coverage: $(WITH_TEST) ## The tests, with the branches that they miss: what CI runs
	@echo "==> tests"
	$(BIN)/python -m pytest -q $(TESTS) --cov --cov-report=term-missing:skip-covered

.PHONY: coverage
coverage: $(WITH_TEST) ## How often the intervals hold the truth, into docs/statistics.md (20 minutes)
	$(BIN)/python benchmarks/interval_coverage.py --csv docs/coverage.csv --into docs/statistics.md

.PHONY: real
real: $(WITH_TEST) ## Slow checks on the real images in ../shared (skipped without them)
	$(BIN)/python -m pytest -q -m real

.PHONY: fuzz
fuzz: $(WITH_TEST) ## 10,000 damaged files of every kind: writes docs/fuzz.md (8 minutes of a free core)
	PYTHONPATH=tests $(BIN)/python -m support.fuzzing --cases 10000 --out docs/fuzz.md

.PHONY: faults
faults: $(WITH_TEST) ## Kills, full disks and commands at once: docs/reliability.md (10 minutes)
	$(BIN)/python -m pytest -q -n $(WORKERS) -m faults

.PHONY: bench-train
bench-train: $(WITH_TEST) ## Training speed against the plain loop (DATA=folder for other images)
	$(BIN)/python benchmarks/train_speed.py $(if $(DATA),--data $(DATA))

.PHONY: bench-copies
bench-copies: $(WITH_TEST) ## The search for copies on 10k, 100k and 1M hashes
	$(BIN)/python benchmarks/copies.py

.PHONY: duplicates-evidence
duplicates-evidence: $(WITH_TEST) ## The figure and tables of docs/near-duplicates.md (minutes)
	$(BIN)/python benchmarks/near_duplicates.py

.PHONY: bench
bench: bench-speed bench-end-to-end bench-start bench-memory ## All figures of docs/performance.md except training (long)
	@cat bench/*.md

.PHONY: bench-speed
bench-speed: $(WITH_TEST) ## Artefacts against TorchScript (DATA=folder RUNS="runs/a runs/b" WEIGHTS=model=file)
	$(BIN)/python benchmarks/speed.py $(BENCH)

.PHONY: bench-end-to-end
bench-end-to-end: $(WITH_TEST) ## From files to labels, against the path of the baseline study
	$(BIN)/python benchmarks/end_to_end.py $(BENCH)

.PHONY: bench-start
bench-start: $(WITH_TEST) ## Seconds to the first answer, and to the help
	$(BIN)/python benchmarks/start.py $(BENCH)

.PHONY: bench-memory
bench-memory: $(WITH_TEST) ## Memory over 100,000 images
	$(BIN)/python benchmarks/flat_memory.py $(BENCH)

.PHONY: gpu-data
gpu-data: $(WITH_TEST) ## The images of DATA=folder at 256 px, less than 60 MiB, for a machine with a GPU
	$(BIN)/python benchmarks/gpu_check.py --data $(DATA) --prepare bench/gpu-data

.PHONY: gpu-check
gpu-check: $(WITH_TEST) ## All that a GPU is needed for, unattended, in 9 minutes (DATA=folder; without a GPU, tiny)
	$(BIN)/python benchmarks/gpu_check.py $(if $(DATA),--data $(DATA))

.PHONY: docs
docs: $(WITH_TEST) ## Write docs/settings.md, docs/schemas and the names for completion
	$(BIN)/python docs/make_settings.py > docs/settings.md
	$(BIN)/python docs/make_schemas.py docs/schemas
	$(BIN)/python docs/make_completion.py > completion.json
	mv completion.json src/tumorlens/cli/completion.json

.PHONY: clean
clean: ## Remove .venv, the demo, the benchmarks' runs and every cache
	rm -rf .venv demo bench .pytest_cache .mypy_cache .ruff_cache .coverage htmlcov dist build
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/bin/python:
	@if [ -z "$(PYTHON)" ]; then \
		echo "error: tumorlens needs Python 3.11 or later, found $$(python3 --version 2>&1)" >&2; \
		echo "hint: install it, or name it: make PYTHON=/path/to/python3.12 $(MAKECMDGOALS)" >&2; \
		exit 2; fi
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "error: tumorlens needs Python 3.11 or later, $(PYTHON) is $$($(PYTHON) --version 2>&1)" >&2; \
		echo "hint: make PYTHON=/path/to/python3.12 $(MAKECMDGOALS)" >&2; exit 2; }
	@echo "==> making .venv with $(PYTHON)"
	@$(PYTHON) -m venv .venv || { rm -rf .venv; exit 2; }

# What is installed follows pyproject.toml: a change there installs again. pip compiles
# every module, one after the other: the demo leaves that to the first import of the few
# that it needs, the tests use all cores for it.
$(WITH_DEMO): .venv/bin/python pyproject.toml
	@echo "==> installing tumorlens with what the demo needs (the first time: some GB, a minute or more)"
	@$(BIN)/python -m pip install --quiet --no-compile --editable ".[demo]"
	@touch $@

$(WITH_TEST): .venv/bin/python pyproject.toml
	@echo "==> installing tumorlens with what the tests need (the first time: some GB, a minute or more)"
	@$(BIN)/python -m pip install --quiet --no-compile --editable ".[test]"
	@# A few modules of other projects are for another Python, so its status is no matter.
	@$(BIN)/python -m compileall -qq -j 0 .venv/lib || true
	@touch $@
