# make demo   Figure 3 of the paper in full, from a bare checkout: table, PNG, store
# make paper  all its figures on the planted tasks, with its claims beside what was measured
# make test   the test suite, from a bare checkout
# All create .venv and install what they need; a GPU is not needed. See CONTRIBUTING.md for the rest.

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
PNS_CUDA ?= AUTO
PNS_WERROR ?= $(if $(CI),ON,OFF)
DEMO ?= demo
PAPER ?= paper
TEST_ARGS ?=
# For which GPUs CUDA code is compiled: 90, "80;90", native ... If not given, packages are for all that cmake/cuda.cmake
# lists, and what is installed here for the GPU that is here, or for one.
GPU_ARCHITECTURES ?=
GPU_HERE = $(shell nvidia-smi -L > /dev/null 2>&1 && echo native || echo 90)
ifneq ($(GPU_ARCHITECTURES),)
export CMAKE_ARGS := $(CMAKE_ARGS) -DCMAKE_CUDA_ARCHITECTURES=$(GPU_ARCHITECTURES)
endif
TOOLS := scikit-build-core pybind11 cmake ninja
PACKAGES := torch numpy scipy matplotlib rich safetensors scikit-learn mlxtend pytest hypothesis ruff dask distributed

SOURCES := $(shell find csrc cmake -type f) CMakeLists.txt pyproject.toml
PYTHON_FILES := pns_fast python_tests bench docs/copy_results.py

.PHONY: all install demo paper paper-docs test lint format bench packages gpu-install gpu-check gpu-sanitize clean
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
	  -Ccmake.define.PNS_CUDA=$(PNS_CUDA) -Ccmake.define.PNS_WERROR=$(PNS_WERROR) \
	  "-Ccmake.define.CMAKE_CUDA_ARCHITECTURES=$(or $(GPU_ARCHITECTURES),$(GPU_HERE))"
	@touch $@

install: $(VENV)/.installed

demo: install
	@mkdir -p $(DEMO)
	$(VENV)/bin/pns-fast sweep singleshot --task circle,relu,helix --pruner all --density ticket,0.01,0.1,0.5,1 \
	  --seeds 25 --depth 5 --width 100 --store $(DEMO)/fig3.db --figure $(DEMO)/fig3.png --csv $(DEMO)/fig3.csv

# Every figure of the paper on the planted tasks, with what it says beside what was measured: paper/results.md.
paper: install
	$(VENV)/bin/pns-fast reproduce all --out $(PAPER)

# What `make paper` found as docs/results.md.
paper-docs:
	$(PY) docs/copy_results.py $(PAPER)

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

# What a user's `pip install` does: a wheel of the sdist under build isolation, into a fresh environment.
packages: $(VENV)/.requirements
	rm -rf build/packages && mkdir -p build/packages
	$(PY) -c 'from scikit_build_core.build import build_sdist; print(build_sdist("build/packages"))'
	$(PY) -m pip wheel --quiet --disable-pip-version-check --no-deps -w build/packages build/packages/pns_fast-*.tar.gz
	$(PYTHON) -m venv build/packages/venv
	build/packages/venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
	  build/packages/pns_fast-*.whl
	cd build/packages && venv/bin/python -c 'import pns_fast; print("from the wheel:", pns_fast.backends())' \
	  && venv/bin/pns-fast info

# On a machine with a GPU, with the Python and the torch that are there: nothing else is installed or changed. Python
# may be one that a distribution manages, so pip is told that this one package may go in.
GPU_NEEDS := scikit_build_core pybind11 torch numpy scipy matplotlib rich safetensors pytest hypothesis
gpu-install:
	@$(PYTHON) -c 'import sys, importlib.util as u; m = [n for n in sys.argv[1:] if u.find_spec(n) is None]; \
	  sys.exit(f"{sys.executable} lacks {m}: install them with its pip, or set PYTHON" if m else 0)' $(GPU_NEEDS)
	PIP_BREAK_SYSTEM_PACKAGES=1 $(PYTHON) -m pip install --disable-pip-version-check --no-build-isolation --no-deps -e . \
	  -Ccmake.define.PNS_CUDA=ON $(if $(GPU_ARCHITECTURES),,-Ccmake.define.CMAKE_CUDA_ARCHITECTURES=native)
	$(PYTHON) -m pns_fast info

# The GPU tests, on four processes where pytest-xdist is there; then the benchmark, its numbers and a picture.
gpu-check: gpu-install
	PNS_REQUIRE_GPU=1 $(PYTHON) -m pytest -q -m "gpu and not slow" \
	  $$($(PYTHON) -c 'import importlib.util as u; print("-n 4" if u.find_spec("xdist") else "")') $(TEST_ARGS)
	name=$$($(PYTHON) -c 'import datetime, re, torch; gpu = torch.cuda.get_device_name().lower(); \
	  print(datetime.date.today(), re.sub("[^a-z0-9]+", "-", gpu), sep="-")') && \
	  $(PYTHON) bench/run.py --device cuda --json bench/results/$$name.json --figure bench/results/$$name.png

# Tests marked `sanitize` under each tool of compute-sanitizer, the files of a tool at once. Only our kernels are looked at;
# initcheck has to see torch's as well, since they write what ours read. What a tool printed: build/sanitize.
SANITIZER ?= compute-sanitizer
SANITIZERS ?= memcheck racecheck synccheck initcheck
SANITIZE_SECONDS ?= 300
SANITIZED := $(shell grep -rl pytest.mark.sanitize python_tests --include='test_*.py')
gpu-sanitize: gpu-install
	@command -v $(SANITIZER) > /dev/null || { echo "no $(SANITIZER): it is part of the CUDA toolkit" >&2; exit 1; }
	@mkdir -p build/sanitize; failed=0; for tool in $(SANITIZERS); do \
	  case $$tool in \
	    memcheck) only="--kernel-name kns=N3pns --report-api-errors no";; \
	    initcheck) only=;; \
	    *) only="--kernel-name kns=N3pns";; \
	  esac; \
	  started=; for file in $(SANITIZED); do \
	    log=build/sanitize/$$tool-$$(basename $$file .py).txt; \
	    PYTORCH_NO_CUDA_MEMORY_CACHING=1 PNS_REQUIRE_GPU=1 timeout $(SANITIZE_SECONDS) $(SANITIZER) --tool $$tool $$only \
	      --target-processes all --error-exitcode 1 $(PYTHON) -m pytest -q -m sanitize -p no:cacheprovider $$file \
	      $(TEST_ARGS) > $$log 2>&1 & started="$$started $$!:$$log"; \
	  done; \
	  for one in $$started; do \
	    wait $${one%%:*} && state=ok || { state="failed, or over $(SANITIZE_SECONDS) s"; failed=1; }; \
	    echo "$$tool, $${one#*:}: $$state; $$(grep SUMMARY $${one#*:} | tail -1)"; \
	  done; \
	done; exit $$failed

clean:
	rm -rf $(VENV) build dist demo paper
