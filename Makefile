# `make demo` and `make test` do all of their own set-up; see README.md.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
export HF_HUB_DISABLE_TELEMETRY = 1
export TOKENIZERS_PARALLELISM = false
# OpenMP's threads spin by default while they wait for each other. Where another process has one of the cores,
# torch's many small operations then take up to ten times as long. Must be set before Python starts.
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: help install demo test test-gpu lint format bench wheel clean
help:            ## list the targets
	@grep -E '^[a-z-]+: .*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

install: $(STAMP)  ## make the virtual environment and install the project in it
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "nsa-eval needs Python 3.11 or newer: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,gpu]'
	@touch $@

demo: $(STAMP)   ## evaluate the bundled twins and write runs/quickstart/report.html
	$(BIN)/nsa-eval run configs/quickstart.yaml -o runs/quickstart

test: $(STAMP)   ## run the tests (CPU, no network)
	$(BIN)/python -m pytest -n 2 -m "not gpu"

test-gpu: $(STAMP)  ## run the tests that need a CUDA device
	$(BIN)/python -m pytest -m gpu

lint: $(STAMP)   ## ruff, mypy (strict) and the import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP)  ## let ruff format and fix
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(STAMP)  ## the two benchmarks of benchmarks/README.md
	$(BIN)/python benchmarks/engine_vs_hf.py
	$(BIN)/python benchmarks/attention_cpu.py

wheel: $(STAMP)  ## build the wheel into dist/
	$(BIN)/pip wheel --quiet --no-deps -w dist .

clean:           ## remove the environment and build products (runs/ stays)
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache
