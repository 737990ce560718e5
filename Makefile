# `make demo` and `make test` need nothing but python3 and make: each builds .venv when it is missing or the pins changed.
PYTHON ?= python3
BIN := .venv/bin
export OMP_NUM_THREADS ?= 2
# Two processes with a thread each; tests/sharing.py says what stays together.
SPREAD := OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadscope

.PHONY: demo up test test-all chaos chaos-cluster fuzz check lint types contracts format clean

demo: .venv/ready
	$(BIN)/farm demo

up: .venv/ready
	$(BIN)/farm up

test: .venv/ready
	$(SPREAD) -m "not slow" --durations=20

test-all: .venv/ready
	$(SPREAD)

chaos: .venv/ready
	$(BIN)/python -m tests.chaos --kills 100

chaos-cluster: .venv/ready
	$(BIN)/python -m tests.chaos --cluster --jobs 200 --kills 20

fuzz: .venv/ready
	$(BIN)/python -m tests.provenance.fuzz --count 100000

check: lint types contracts test

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/ready
	$(BIN)/mypy

contracts: .venv/ready
	$(BIN)/lint-imports

format: .venv/ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.venv/ready: pyproject.toml constraints.txt
	@echo "Building .venv (a few minutes the first time: PyTorch is large)"
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Farm needs Python 3.11 or later: make PYTHON=python3.11 ...")'
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

clean:
	rm -rf .venv demo-out
