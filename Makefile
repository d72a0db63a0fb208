# Two commands for a fresh machine; each does all of its own set-up. Needs Python 3.11 or newer, nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := PIP_CONSTRAINT=constraints.txt $(BIN)/python -m pip --disable-pip-version-check install --quiet

.PHONY: demo test lint types unit bench clean

demo: $(VENV)/.installed
	$(BIN)/noisyteacher demo

test: lint types unit

lint: $(VENV)/.installed-dev
	$(BIN)/ruff format --check src tests scripts benchmarks
	$(BIN)/ruff check src tests scripts benchmarks

types: $(VENV)/.installed-dev
	$(BIN)/mypy

unit: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses 2

# One thread: ratios stay steady beside other work. `make bench THREADS=2` for the times of a machine of one's own.
bench: THREADS ?= 1
bench: $(VENV)/.installed-dev
	mkdir -p benchmarks/results
	OMP_NUM_THREADS=$(THREADS) $(BIN)/pytest benchmarks --benchmark-only --benchmark-columns=median,iqr,rounds --timeout 0 \
		--benchmark-json benchmarks/results/latest.json

clean:
	rm -rf $(VENV) build *.egg-info src/*.egg-info

# The packages first, from the pinned list; then this project, which brings nothing of its own.
$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "noisyteacher needs Python 3.11 or newer: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(VENV)/bin/python pyproject.toml constraints.txt
	$(PIP) --editable .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) --editable '.[dev,track,cluster,export]'
	touch $@
