PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# One thread per process: with a busy core, libgomp's spinning makes training tens of times slower.
export OMP_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM ?= false
export HF_HUB_OFFLINE ?= 1

.PHONY: help venv compiled quickstart test test-full lint gpu-check clean

help:
	@echo "make quickstart  install, serve, record, train, evaluate, deploy; writes runs/quickstart/report.html"
	@echo "make test        the test suite (at most 10 minutes); make test-full adds the exhaustive matrices"
	@echo "make lint        ruff, mypy (strict on runtime and environment), import-linter"
	@echo "make venv        the environment in .venv and nothing else"
	@echo "make gpu-check   everything that needs a GPU"

$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $(STAMP)

venv: $(STAMP)

quickstart: venv
	$(BIN)/pikv quickstart --out runs/quickstart

# The ledger takes minutes to compile on a cold machine: once, before two test workers both need it.
compiled: venv
	$(BIN)/python -m pikv_env.precompile

# The Triton interpreter must be switched on before triton is first imported, so its tests are a run of their own.
test: venv lint compiled
	TRITON_INTERPRET=1 $(BIN)/pytest tests/kernels -m "not slow and not gpu"
	$(BIN)/pytest tests --ignore=tests/kernels -m "not slow and not gpu" -n 2 --dist loadfile

test-full: venv lint compiled
	TRITON_INTERPRET=1 $(BIN)/pytest tests/kernels -m "not gpu"
	$(BIN)/pytest tests --ignore=tests/kernels -m "not gpu" -n 2 --dist loadfile

lint: venv
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

gpu-check:
	$(PYTHON) benchmarks/gpu_check.py

clean:
	rm -rf $(VENV) runs .pytest_cache .mypy_cache .ruff_cache
