# make demo   Figure 3 of the paper in full, from a bare checkout: table, PNG, store
# make test   the test suite, from a bare checkout
# Both create .venv and install what they need; a GPU is not needed. See CONTRIBUTING.md for the rest.

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
PNS_CUDA ?= AUTO
PNS_WERROR ?= $(if $(CI),ON,OFF)
DEMO ?= demo
TEST_ARGS ?=
TOOLS := scikit-build-core pybind11 cmake ninja
PACKAGES := torch numpy scipy matplotlib rich safetensors pytest hypothesis ruff

SOURCES := $(shell find csrc cmake -type f) CMakeLists.txt pyproject.toml
PYTHON_FILES := pns_fast python_tests bench

.PHONY: all install demo test lint format bench packages gpu-check clean
all: test

$(VENV)/.requirements: constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "pns_fast needs Python 3.10 or newer, this is " + sys.version)'
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt $(TOOLS) $(PACKAGES)
	@touch $@

# Editable: Python edits count at once; a change below csrc/ or cmake/ builds again on the next `make`.
$(VENV)/.installed: $(VENV)/.requirements $(SOURCES)
	PATH="$(CURDIR)/$(VENV)/bin:$$PATH" $(PY) -m pip install --quiet --disable-pip-version-check \
	  --no-build-isolation --no-deps -e . \
	  -Ccmake.define.PNS_CUDA=$(PNS_CUDA) -Ccmake.define.PNS_WERROR=$(PNS_WERROR)
	@touch $@

install: $(VENV)/.installed

demo: install
	@mkdir -p $(DEMO)
	$(VENV)/bin/pns-fast sweep singleshot --task circle,relu,helix --pruner all --density ticket,0.01,0.1,0.5,1 \
	  --seeds 25 --depth 5 --width 100 --store $(DEMO)/fig3.db --figure $(DEMO)/fig3.png --csv $(DEMO)/fig3.csv

test: install
	$(PY) -m pytest $(TEST_ARGS)

lint: $(VENV)/.requirements
	$(VENV)/bin/ruff check $(PYTHON_FILES)
	$(VENV)/bin/ruff format --check $(PYTHON_FILES)

format: $(VENV)/.requirements
	$(VENV)/bin/ruff check --fix $(PYTHON_FILES)
	$(VENV)/bin/ruff format $(PYTHON_FILES)

bench: install
	$(PY) bench/run.py

# What a user's `pip install` does: an sdist, a wheel from it under build isolation, both into a fresh environment.
packages: $(VENV)/.requirements
	rm -rf build/packages && mkdir -p build/packages
	$(PY) -m pip wheel --quiet --disable-pip-version-check --no-deps -w build/packages .
	$(PY) -c 'import os; from scikit_build_core.build import build_sdist; print(build_sdist("build/packages"))'
	$(PYTHON) -m venv build/packages/venv
	build/packages/venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
	  build/packages/pns_fast-*.tar.gz
	cd build/packages && venv/bin/python -c 'import pns_fast; print("from the sdist:", pns_fast.backends())'
	build/packages/venv/bin/python -m pip install --quiet --disable-pip-version-check --force-reinstall --no-deps \
	  build/packages/pns_fast-*.whl
	cd build/packages && venv/bin/python -c 'import pns_fast; print("from the wheel:", pns_fast.backends())' \
	  && venv/bin/pns-fast info

# On a machine with a GPU: build against the torch that is there, run the GPU tests and the GPU benchmark.
GPU_ARCHITECTURES ?= native
gpu-check:
	$(PYTHON) -m pip install --disable-pip-version-check --no-build-isolation --no-deps -e . \
	  -Ccmake.define.PNS_CUDA=ON -Ccmake.define.CMAKE_CUDA_ARCHITECTURES=$(GPU_ARCHITECTURES)
	PNS_REQUIRE_GPU=1 $(PYTHON) -m pytest -m "gpu and not slow"
	name=$$($(PYTHON) -c 'import torch; print(torch.cuda.get_device_name().lower().replace(" ", "-"))') && \
	  $(PYTHON) bench/run.py --device cuda --json bench/results/$$name.json --figure bench/results/$$name.png

clean:
	rm -rf $(VENV) build dist demo
