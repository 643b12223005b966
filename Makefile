# One command per task. Each installs what it needs in .venv; only Python and make are required.
PYTHON ?= python3
VENV := .venv
PLACE := $(if $(filter Windows_NT,$(OS)),Scripts,bin)
BIN := $(VENV)/$(PLACE)
OLDEST := build/oldest
READY := $(VENV)/.ready

.PHONY: demo test lint slow oldest bench gpu docs build clean

# A synthetic chest and a small crop of a real one: simulate thick slices, predict with the packaged
# network, evaluate.
demo: $(READY)          ## demo on a phantom and a real lung, draws build/demo/coronal.png
	$(BIN)/python examples/demo.py --output build/demo

test: $(READY)          ## all tests except the slow ones
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder

slow: $(READY)          ## the slow tests
	$(BIN)/python -m pytest -m slow

# In an environment of its own. The tests of the rooms that use the dependencies most; with Python
# 3.10, as no wheels of some old releases exist for later ones. Old releases may warn of newer ones.
oldest:                 ## tests with the oldest release of every dependency that pyproject.toml allows
	$(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/$(PLACE)/python -m pip install --quiet --constraint tests/release/oldest.txt --editable '.[test]'
	$(OLDEST)/$(PLACE)/python -m pytest -W default --numprocesses auto --dist loadfile tests/cli tests/data tests/inference tests/io tests/losses tests/metrics tests/models tests/slices tests/training
	$(OLDEST)/$(PLACE)/python -m pip wheel --quiet --no-deps --wheel-dir $(OLDEST)/dist .
	$(OLDEST)/$(PLACE)/python tests/release/check_wheel.py $(OLDEST)/dist --constraint tests/release/oldest.txt

# Time and memory of reconstruction and evaluation, compared with MONAI.
bench: $(READY)         ## benchmarks: half an hour on two CPU cores
	$(BIN)/python tests/benchmarks/speed.py
	$(BIN)/python tests/benchmarks/memory.py --stride 1
	$(BIN)/python tests/benchmarks/against_monai.py
	$(BIN)/python tests/benchmarks/quality.py
	$(BIN)/python tests/benchmarks/crops.py

# On a machine without the packages of .venv but with its own: make gpu READY= BIN=/usr/bin
gpu: $(READY)           ## all that a GPU is needed for, in at most eight minutes: build/gpu/gpu.md
	$(BIN)/python tests/benchmarks/gpu.py

lint: $(READY)          ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Strict: a broken link or anchor is an error. The variable silences a notice of the theme.
docs: $(READY)          ## this documentation as a site, in build/docs/index.html
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

# GitHub names the tag of a release: v1.2.3 must be the version.
build: $(READY)         ## wheel and source distribution in dist/, checked and tried out
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/python -m twine check --strict dist/*
	$(BIN)/python tests/release/check_wheel.py dist $(if $(filter tag,$(GITHUB_REF_TYPE)),--version $(GITHUB_REF_NAME:v%=%))

$(READY): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build dist
