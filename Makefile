# SPDX-License-Identifier: BSD-3-Clause
# Every target makes .venv and installs what it needs when that is missing or out of date.
PYTHON ?= python3
# AUTO, ON or OFF: compile the CUDA kernels
KOOPFAST_CUDA ?= AUTO
# ON: warnings in our own C++ and CUDA code are errors
KOOPFAST_WERROR ?= OFF
DEMO_ARGS ?=
REPRODUCE_ARGS ?= --quick
PYTEST_ARGS ?=
BENCH_ARGS ?=
ACCELERATION_ARGS ?=
# how long `make soak` trains under random faults
SOAK_MINUTES ?= 30
BIG_ARGS ?=

BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
# Tests and demo run what is installed, so it must never be stale: the stamp depends on every file that is
# compiled or copied, and its name on the options and on which files there are (one removed, one added).
SOURCES := $(shell find cpp cuda python -type f -not -path '*/__pycache__/*' 2>/dev/null | sort)
FILE_LIST := $(firstword $(shell echo $(SOURCES) | cksum))
TOOLS := .venv/.tools
INSTALLED := .venv/.installed-cuda-$(KOOPFAST_CUDA)-werror-$(KOOPFAST_WERROR)-$(FILE_LIST)
CXX_FILES = $(shell find cpp cuda tests/cpp -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh' 2>/dev/null)
# The source tree must never stand in for the installed package.
unexport PYTHONPATH

.PHONY: help install demo reproduce test soak docs bench big acceleration sanitize sanitize-gpu gpu-report cuda-resources eigen lint lint-python lint-types lint-stubs lint-cpp format clean distclean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

install: $(INSTALLED) ## .venv with koopfast and all it can use; the others do this first

demo: $(INSTALLED) ## two trainings, with and without Koopman jumps, and a report (DEMO_ARGS)
	$(BIN)/python -m koopfast demo $(DEMO_ARGS)

reproduce: $(INSTALLED) ## the paper's experiments and docs/reproduction.md (REPRODUCE_ARGS=--full)
	$(BIN)/python -m koopfast reproduce de-solver --doc docs/reproduction.md $(REPRODUCE_ARGS)
	$(BIN)/python -m koopfast reproduce mnist --doc docs/reproduction.md $(REPRODUCE_ARGS)

test: $(INSTALLED) ## tests and docstring examples, on the installed package (PYTEST_ARGS)
	$(BIN)/pytest $(PYTEST_ARGS)
	$(BIN)/pytest --doctest-modules --pyargs koopfast

soak: $(INSTALLED) ## training under random faults for 30 minutes (SOAK_MINUTES): nothing lost, memory flat
	$(BIN)/python tests/soak.py --minutes $(SOAK_MINUTES)

docs: $(INSTALLED) ## the documentation as out/docs/index.html
	$(PIP) install -c constraints.txt mkdocs-material 'mkdocstrings[python]'
	$(BIN)/mkdocs build --strict

bench: $(INSTALLED) ## benchmarks, scaling studies, peers, and out/bench/report.html (BENCH_ARGS)
	mkdir -p build/bench && rm -f build/bench/raw.json
	$(BIN)/pytest bench --benchmark-json=build/bench/raw.json $(BENCH_ARGS); failed=$$?; \
	  $(BIN)/python bench/page.py build/bench/raw.json out/bench && exit $$failed

acceleration: $(INSTALLED) ## does training reach the loss sooner? docs/acceleration.md, hours (ACCELERATION_ARGS)
	$(BIN)/python bench/acceleration/study.py --document docs/acceleration.md $(ACCELERATION_ARGS)

big: $(INSTALLED) ## fit and predict 10^8 weights x 32 snapshots: needs 15 GB of memory (BIG_ARGS: n m)
	$(BIN)/python bench/big.py $(BIG_ARGS)

sanitize: $(INSTALLED) ## native tests under the address, undefined-behaviour and thread sanitizers
	BIN=$(BIN) tests/sanitize.sh address
	BIN=$(BIN) tests/sanitize.sh thread

sanitize-gpu: $(INSTALLED) ## device tests under compute-sanitizer: memcheck, racecheck, initcheck, synccheck
	PYTHON=$(BIN)/python bash tests/sanitize_gpu.sh

gpu-report: eigen ## build, check and time everything on this machine's GPU: out/gpu/gpu_report.json
	bash bench/gpu_report.sh

cuda-resources: ## registers and spills of every CUDA kernel, for all architectures
	$(PYTHON) bench/cuda_resources.py

eigen: $(TOOLS) ## Eigen's headers to build/eigen, for builds without network
	mkdir -p build/eigen
	cp -r "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/cmeel.prefix/include/eigen3/Eigen" build/eigen/

lint: lint-python lint-types lint-stubs lint-cpp ## every static check
	$(BIN)/pre-commit validate-config

lint-python: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

lint-types: $(INSTALLED)
	$(BIN)/mypy

lint-stubs: $(INSTALLED)
	$(BIN)/python -m mypy.stubtest koopfast._native --mypy-config-file pyproject.toml

lint-cpp: $(INSTALLED)
	$(BIN)/clang-format --dry-run -Werror $(CXX_FILES)

format: $(INSTALLED) ## put all code into the house format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_FILES)

clean: ## remove what builds and tools leave behind
	rm -rf build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis .benchmarks
	find cpp cuda python tests bench -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true

distclean: clean ## the same, and .venv and the demo's output
	rm -rf .venv out

# cmake comes from the package index only where the machine has none.
$(TOOLS): constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 10) or sys.exit("koopfast needs Python 3.10 or newer; pass PYTHON=...")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) install -c constraints.txt scikit-build-core pybind11 cmeel-eigen ninja $$(command -v cmake >/dev/null || echo cmake)
	@touch $@

# Without isolation and with a kept build folder, so that a changed file costs one compile, not all.
$(INSTALLED): $(TOOLS) pyproject.toml CMakeLists.txt LICENSE NOTICE README.md $(SOURCES)
	@rm -f .venv/.installed-*
	$(PIP) install --no-build-isolation -c constraints.txt -C build-dir=build/make \
	  -C cmake.define.KOOPFAST_CUDA=$(KOOPFAST_CUDA) -C cmake.define.KOOPFAST_WERROR=$(KOOPFAST_WERROR) \
	  '.[demo,plots,bench,dev,lightning,transformers,accelerate,ignite,skorch]'
	@touch $@
