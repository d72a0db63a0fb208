# Two commands for a fresh machine; each does all of its own set-up. Needs Python 3.11 or newer, nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet
# Python 3.11 on Linux x86-64 installs what requirements.lock lists, by its hashes; others the same versions, as they
# find them.
LOCKED := $(shell $(PYTHON) -c 'import platform, sys; \
	print(*["yes"] * (sys.version_info[:2] == (3, 11) and platform.system() == "Linux" and platform.machine() == "x86_64"))')
EXTRAS := dev,track,cluster,zoo,prune,hf,export,docs
# Where the index at hand has no torch for CPUs, PyTorch's own has it.
locked = $(PIP) --require-hashes --no-deps --no-build-isolation --requirement $(1) $(2)
either = $(call locked,$(1),) || $(call locked,$(1),--extra-index-url https://download.pytorch.org/whl/cpu)
SOURCES := src tests scripts benchmarks examples docs

.PHONY: demo test check lint types unit test-lowest test-newest test-faults test-gpu bench bench-short bench-peers \
	bench-accuracy docs clean

demo: $(VENV)/.installed
	$(BIN)/noisyteacher demo

test: lint types unit bench-short

lint: $(VENV)/.installed-dev
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/ruff check $(SOURCES)

# For every change: formats, mends what lint can, checks types, runs the tests that changed or name a changed module.
check: $(VENV)/.installed-dev
	$(BIN)/ruff format $(SOURCES)
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses 2 $$($(BIN)/python scripts/changed_tests.py)

types: $(VENV)/.installed-dev
	$(BIN)/mypy

unit: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses 2

# With the lowest versions that pyproject.toml allows, and with the newest that the index has, each in build/:
# `make test-newest PYTHON=python3.13 TESTS=tests/test_train.py` for another Python and fewer tests.
TESTS ?= tests
test-lowest test-newest: test-%: build/%/.installed
	OMP_NUM_THREADS=1 build/$*/bin/pytest --numprocesses 2 --ignore tests/test_supply_chain.py $(TESTS)

build/lowest/.installed build/newest/.installed: build/%/.installed: pyproject.toml
	$(PYTHON) -m venv build/$*
	$(if $(filter lowest,$*),$(PYTHON) scripts/lowest.py > build/lowest/constraints.txt)
	$(if $(filter lowest,$*),PIP_CONSTRAINT=build/lowest/constraints.txt) build/$*/bin/python -m pip install --quiet \
		--editable '.[$(EXTRAS)]'
	touch $@

# Every fault at every place, instead of the few that `make test` tries: under half an hour.
test-faults: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 NOISYTEACHER_FAULTS=all NOISYTEACHER_TEST_KILLS=50 $(BIN)/pytest --numprocesses 2 tests/faults \
		tests/test_sweep.py::test_killed_at_random_and_restarted_the_results_are_the_same --timeout 1500

# On a machine with a GPU, what only shows there.
test-gpu: $(VENV)/.installed-dev
	NOISYTEACHER_TEST_GPU=1 $(BIN)/pytest -m gpu

# One thread: ratios stay steady beside other work. `make bench THREADS=2` for the times of a machine of one's own.
bench: THREADS ?= 1
bench: $(VENV)/.installed-dev
	mkdir -p benchmarks/results
	OMP_NUM_THREADS=$(THREADS) $(BIN)/pytest benchmarks --benchmark-only --benchmark-columns=median,iqr,rounds --timeout 0 \
		--benchmark-json benchmarks/results/latest.json

# A few of them in less than a minute: do their ratios make sense?
bench-short: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/pytest benchmarks --benchmark-only --benchmark-columns=median,rounds --quiet --short

# Beside KD_Lib, torchdistill and PyTorch's tutorial, in turns, about five minutes.
bench-peers: THREADS ?= 2
bench-peers: build/peers/.installed
	PYTHONPATH=build/peers OMP_NUM_THREADS=$(THREADS) $(BIN)/python benchmarks/peers --threads $(THREADS)

# Test error after MINUTES beside torchdistill, timm and labels alone: hours, in as many sittings as you like.
# make bench-accuracy DATA=cifar10.npz; DATA=photos TEACHER=runs/mine STUDENT=compact-m
bench-accuracy: THREADS ?= 2
bench-accuracy: MINUTES ?= 2,5,15
bench-accuracy: SEEDS ?= 3
bench-accuracy: DATA ?= cifar10
bench-accuracy: TEACHER ?= pretrained:nin-cifar10
bench-accuracy: STUDENT ?= compact-s
bench-accuracy: OUT ?= benchmarks/results/accuracy-$(notdir $(basename $(DATA))).json
bench-accuracy: build/peers/.installed
	PYTHONPATH=build/peers $(BIN)/python benchmarks/accuracy --threads $(THREADS) --minutes $(MINUTES) --seeds $(SEEDS) \
		--data '$(DATA)' --teacher '$(TEACHER)' --student '$(STUDENT)' --out '$(OUT)'

# Without their own requirements, in a folder of their own.
build/peers/.installed: benchmarks/peers/requirements.txt $(VENV)/.installed-dev
	$(PIP) --no-deps --require-hashes --upgrade --target build/peers --requirement $<
	touch $@

# The site, every warning an error: open build/docs/index.html.
docs: $(VENV)/.installed-dev
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet --builder html docs build/docs

clean:
	rm -rf $(VENV) build *.egg-info src/*.egg-info

# The packages first, from the locked list; then this project, which brings nothing of its own.
$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "noisyteacher needs Python 3.11 or newer: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(VENV)/bin/python pyproject.toml requirements.lock
ifeq ($(LOCKED),yes)
	sed '/^# make test/,$$d' requirements.lock > $(VENV)/base.txt
	$(call either,$(VENV)/base.txt)
	$(PIP) --no-deps --no-build-isolation --editable .
else
	sed -n 's/^\([a-z0-9-]*==[^ +]*\).*/\1/p' requirements.lock > $(VENV)/constraints.txt
	PIP_CONSTRAINT=$(VENV)/constraints.txt $(PIP) --editable .
endif
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
ifeq ($(LOCKED),yes)
	sed '/^# other extras/,$$d' requirements.lock > $(VENV)/dev.txt
	$(call either,$(VENV)/dev.txt)
else
	PIP_CONSTRAINT=$(VENV)/constraints.txt $(PIP) --editable '.[$(EXTRAS)]'
endif
	touch $@
