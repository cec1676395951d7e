# `make demo` and `make test` are all that is needed; both set the environment up first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEVICE ?=
SEED ?=
OUT ?=
ARGS ?=

.PHONY: help setup demo test lint format bench locks clean

help:
	@echo "make setup    create $(VENV) from the lock (DEVICE=gpu for the GPU lock, PYTHON=... for another python3)"
	@echo "make demo     the whole loop on this machine, about ten minutes (SEED=1 OUT=runs/demo)"
	@echo "make test     lint gates and the whole test suite (ARGS='-k name' for a part)"
	@echo "make lint     formatting, lint rules, types"
	@echo "make format   apply formatting and the lint fixes that are safe"
	@echo "make bench    seconds per step by phase"
	@echo "make locks    resolve the GPU lock again (the CPU lock is edited by hand)"

setup:
	@$(PYTHON) cluster/install/setup.py $(if $(DEVICE),--device $(DEVICE))

demo: setup
	$(BIN)/rlsys demo $(if $(SEED),--seed $(SEED)) $(if $(OUT),--out $(OUT)) $(ARGS)

test: setup
	$(BIN)/python -m pytest -q $(ARGS)

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: setup
	$(BIN)/python -m benchmarks.step $(ARGS)

locks: setup
	$(BIN)/uv pip compile pyproject.toml --extra gpu --extra dev --python-version 3.11 \
		--python-platform x86_64-manylinux_2_28 --constraint cluster/install/shared-pins.txt \
		--no-header --no-annotate --upgrade --output-file cluster/install/gpu.lock

clean:
	rm -rf $(VENV) *.egg-info .pytest_cache .ruff_cache .mypy_cache
