# make demo    train on real digits and show that it learned (two to four minutes on two CPU cores)
# make demo-video    the same on videos of moving digits (five to six minutes)
# make test    the quick tests (three to four minutes)     make test-slow   the rest
# make kernels compile every GPU kernel, without a GPU, and look at registers, shared memory and spills
# make gpu     on a GPU, in ten minutes: build for it, all its tests, parity, benchmarks; two pages in runs/gpu
# make lint    ruff, clang-format, large files, mypy     make format      ruff and clang-format, in place
# make venv    only the set-up
PYTHON ?= python3
BIN := .venv/bin
EXTRAS := cuda130,train,video,parquet,evaluate,export,pictures,tensorboard,dev
# for the build, which runs without isolation to take the pinned versions, and for tests that compile
BUILD_TOOLS := pip setuptools pybind11 ninja

.PHONY: demo demo-video test test-slow kernels gpu lint format venv clean

demo: venv
	$(BIN)/sce-fast demo

demo-video: venv
	$(BIN)/sce-fast demo-video

# Two tests at a time, but slow ones that start processes of their own, to be timed or killed, one after another.
# Threads that wait sleep instead of spinning: the processes share the cores. oneDNN's threads spin all the same, and
# two of them in each of two tests take several times the time of one.
test test-slow: export OMP_WAIT_POLICY = passive
PARALLEL := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist worksteal
test: venv
	$(PARALLEL) -m "not slow"

test-slow: venv
	$(PARALLEL) -m "slow and not processes"
	$(BIN)/python -m pytest -q -m "slow and processes"

kernels: venv
	$(BIN)/python -m benchmarks.compile_gate

# the run's first part builds the CUDA kernels, for the GPU at hand alone
gpu: export SCE_FAST_BUILD = cpu
gpu: venv
	$(BIN)/python -m benchmarks.acceptance --out runs/gpu

lint: venv
	$(BIN)/pre-commit run --all-files
	@rm -rf build/types && mkdir -p build/types/sce_fast
	@ln -s $(CURDIR)/sce_fast/* $(CURDIR)/kernels $(CURDIR)/benchmarks build/types/sce_fast
	$(BIN)/mypy

format: venv
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	git ls-files csrc tests/cuda_emulator | grep -E '\.(h|cpp|cu|cuh)$$' | xargs $(BIN)/clang-format -i

venv: .venv/installed

# made anew when a pin, the package's metadata or a native source changes
.venv/installed: constraints.txt pyproject.toml setup.py $(shell find csrc -type f)
	@echo "Setting up .venv: a minute or a few; downloads half a gigabyte, or several where torch comes with CUDA"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "sce_fast needs Python 3.11 or later, %s is %s; use make PYTHON=..." % (sys.executable, sys.version.split()[0]))'
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --constraint constraints.txt $(BUILD_TOOLS)
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pip install -qq --disable-pip-version-check --constraint constraints.txt --no-build-isolation --editable ".[$(EXTRAS)]"
	@touch $@

clean:
	rm -rf .venv build *.egg-info sce_fast/_cpu*.so sce_fast/_cuda*.so
