# `make demo` and `make test` are all that is needed; both set the environment up first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEVICE ?=
SEED ?=
OUT ?=
TASKS ?=
ARGS ?=
WORKERS ?= 2

.PHONY: help setup demo test test-all test-fast lint format wheel bench bench-rewards bench-learner bench-pipeline bench-chaos docs locks clean

help:
	@echo "make setup    create $(VENV) from the lock (DEVICE=gpu for the GPU lock, PYTHON=... for another python3)"
	@echo "make demo     the whole loop on this machine: one task, then five (SEED=1 OUT=runs/demo TASKS=grounding|all)"
	@echo "make test     lint gates and the test suite (ARGS='-k name' for a part; WORKERS=0 in one process)"
	@echo "make test-all   also the tests that kill whole runs, for minutes each"
	@echo "make test-fast   the tests that start no real processes: two to three minutes on two cores"
	@echo "make lint     formatting, lint rules, import contracts, types"
	@echo "make wheel    the installable package, in dist/"
	@echo "make format   apply formatting and the lint fixes that are safe"
	@echo "make bench    seconds per step by phase"
	@echo "make bench-rewards   the reward servers: rates, scaling, latencies, cache, hidden judging"
	@echo "make bench-learner   a learner step: packed against padded and its floor, time and memory (ARGS=--quick)"
	@echo "make bench-pipeline  steps of the real stack at several lags and latencies of the judge (ARGS=--quick)"
	@echo "make bench-chaos   real runs whose processes are killed and stopped (ARGS='--kills 30 --seed 0')"
	@echo "make docs     the documentation site, in site/"
	@echo "make locks    resolve the GPU lock again (the CPU lock is edited by hand)"

setup:
	@$(PYTHON) cluster/install/setup.py $(if $(DEVICE),--device $(DEVICE))

demo: setup
	$(if $(filter all,$(TASKS)),,$(BIN)/rlsys demo $(if $(SEED),--seed $(SEED)) $(if $(OUT),--out $(OUT)) $(ARGS))
	$(if $(filter grounding,$(TASKS)),,$(BIN)/rlsys demo --tasks all \
		$(if $(SEED),--seed $(SEED)) $(if $(OUT),--out $(OUT)_all_tasks) $(ARGS))

PYTEST = $(BIN)/python -m pytest -q $(if $(filter 0,$(WORKERS)),,-n $(WORKERS) --dist loadfile --no-loadscope-reorder)

test: setup
	$(PYTEST) -m "not long and not gpu" $(ARGS)

test-all: setup
	$(PYTEST) -m "not gpu" $(ARGS)

test-fast: setup
	$(PYTEST) -m "not stack and not slow and not gpu" $(ARGS)

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/mypy

# setuptools would pack what an earlier build left in build/
wheel: setup
	@rm -rf build dist
	$(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .
	@ls -l dist/*.whl

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: setup
	$(BIN)/python -m benchmarks.step $(ARGS)

bench-rewards: setup
	$(BIN)/python -m benchmarks.rewards $(ARGS)

bench-learner: setup
	$(BIN)/python -m benchmarks.learner --plot docs/learner.png $(ARGS)

bench-pipeline: setup
	$(BIN)/python -m benchmarks.pipeline --plot-dir docs $(ARGS)

bench-chaos: setup
	$(BIN)/python -m benchmarks.chaos $(ARGS)

docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --clean --site-dir site
	@echo "open site/index.html"

locks: setup
	$(BIN)/uv pip compile pyproject.toml --extra gpu --extra dev --extra embedding --python-version 3.11 \
		--python-platform x86_64-manylinux_2_28 --constraint cluster/install/shared-pins.txt \
		--no-emit-package sentence-transformers --no-header --no-annotate --upgrade --output-file cluster/install/gpu.lock

clean:
	rm -rf $(VENV) build dist site *.egg-info .pytest_cache .ruff_cache .mypy_cache
