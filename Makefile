# One command per task. Each installs what it needs in .venv; only Python and make are required.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
FILES := $(filter-out mpunet/__%,$(wildcard mpunet/*.py mpunet/*/*.py mpunet/*/*/*.py))
MODULES := $(subst /,.,$(patsubst %/__init__,%,$(basename $(FILES))))

.PHONY: demo test lint slow bench gpu docs build clean

# A synthetic chest and a small crop of a real one: simulate thick slices, predict with the packaged
# network, evaluate.
demo: $(READY)          ## demo on a phantom and a real lung, draws build/demo/coronal.png
	$(BIN)/python examples/demo.py --output build/demo

test: $(READY)          ## all tests except the slow ones
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder

slow: $(READY)          ## the slow tests
	$(BIN)/python -m pytest -m slow

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

docs: $(READY)          ## API documentation in build/docs
	$(BIN)/pdoc --docformat google --output-directory build/docs $(MODULES)

build: $(READY)         ## wheel and source distribution in dist/
	$(BIN)/python -m build

$(READY): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build dist
