# Everything a new machine needs: `make plan` and `make test` set up and run; nothing comes before them.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
SWM := .venv-stable-worldmodel
# Idle OpenMP threads sleep: on a busy machine spinning ones ruin two-thread timings.
export OMP_WAIT_POLICY ?= PASSIVE

.DEFAULT_GOAL := help
.PHONY: help setup plan test test-slow test-stable-worldmodel lint format train train-surrogates state-gradients keep-out early-stop sharding pendulums bench bench-report performance bench-step bench-plan table tune aot docs dist check-dist clean

help: ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

setup: $(READY) ## a virtual environment with everything, and the native kernels built

$(READY): requirements.lock pyproject.toml setup.py $(wildcard csrc/*.cpp csrc/cpu/*.cpp csrc/*.h csrc/include/grasp/*.h)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "make: requirements.lock needs \
	Python 3.11 or newer, $(PYTHON) is %d.%d; name another: make PYTHON=..." % sys.version_info[:2])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps -e .
	touch $@

plan: setup ## plan PointMaze-UMaze, execute in MuJoCo, draw: out/plan
	$(BIN)/grasp plan pointmaze-umaze --horizon 50 --problems 30 --seed 0 --out out/plan

test: setup ## style, types and tests
	$(MAKE) lint
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -p no:benchmark

test-slow: setup ## what takes minutes: every kernel for every GPU, plans through the wall, installs
	$(BIN)/python -m pytest -m slow

test-stable-worldmodel: $(SWM)/.ready ## the adapter in stable-worldmodel 0.1.1, in an environment of its own (2 GB)
	$(SWM)/bin/python -m pytest --import-mode=importlib -k stable_worldmodel \
	tests/adapters/test_stable_worldmodel_package.py tests/test_examples.py

# Only what it needs, each as `make setup` has it, and no triton (which the folder tests/triton is not taken for).
# Native kernels are those that are there, or made at first use.
$(SWM)/.ready: requirements.lock requirements-stable-worldmodel.lock pyproject.toml
	$(PYTHON) -m venv $(SWM)
	$(SWM)/bin/python -m pip install --quiet --disable-pip-version-check \
	-c requirements.lock -r requirements-stable-worldmodel.lock
	GRASP_KERNELS_NATIVE=0 $(SWM)/bin/python -m pip install --quiet --disable-pip-version-check \
	--no-build-isolation --no-deps -e .
	touch $@

lint: setup ## ruff, mypy, clang-format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(wildcard csrc/*.cpp csrc/cpu/*.cpp csrc/*.h csrc/include/grasp/*.h)

format: setup ## let the formatters write
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(wildcard csrc/*.cpp csrc/cpu/*.cpp csrc/*.h csrc/include/grasp/*.h)

train: setup ## retrain the world models: out/train-TASK (an hour)
	for task in wall-single pointmaze-umaze pointmaze-medium push-t arm-6 arm-20 wall-pixels; do \
	$(BIN)/grasp train $$task || exit; done

train-surrogates: setup ## fit the shipped surrogates of state gradients: out/train-surrogate-TASK (minutes)
	for task in wall-single wall-pixels pointmaze-umaze; do \
	$(BIN)/grasp train-surrogate $$task || exit; done

state-gradients: setup ## stop, scale, pass or replace the state gradient, and write docs/state-gradients.md
	$(BIN)/python bench/state_gradients.py $(STATE_GRADIENTS)

keep-out: setup ## penalty against augmented Lagrangian: tables and figure of docs/planning.md (minutes)
	$(BIN)/python bench/keep_out.py --page docs/planning.md --figure docs/keep-out.png

pendulums: setup ## adapters beside pytorch_mppi and TorchRL: the costs in docs/adapters.md (a minute)
	$(BIN)/python bench/pendulums.py

sharding: setup ## one process against all cores' on the same plans, and write docs/distributed.md (minutes)
	GLOO_SOCKET_IFNAME=lo $(BIN)/torchrun --standalone --nproc-per-node 2 bench/sharding.py --page docs/distributed.md

early-stop: setup ## every planner with and without an early stop, and write docs/early-stop.md (minutes)
	$(BIN)/python bench/early_stop.py $(EARLY_STOP)

bench: setup ## CPU microbenchmarks by pytest-benchmark; saved for its compare and histogram: out/benchmarks
	$(BIN)/python -m pytest bench/test_microbenchmarks.py --benchmark-storage=file://out/benchmarks \
	--benchmark-autosave -W default::pytest_benchmark.logger.PytestBenchmarkWarning $(BENCH)

bench-report: setup ## every op against baselines and this machine's ceilings: out/bench (QUICK=1: a minute)
	$(BIN)/grasp bench --out out/bench $(if $(QUICK),--quick)

performance: setup ## measure every op and its growth, and write docs/performance.md (minutes)
	$(BIN)/grasp bench --out out/bench
	$(BIN)/python -m grasp_bench.performance out/bench/bench.json docs/performance.md

bench-step: setup ## time the fused step against eager, compiled and a copy; fails if too slow
	$(BIN)/python bench/step.py

bench-plan: setup ## time whole-plan kernels for MLPs against the general path and the arithmetic (minutes)
	$(BIN)/python bench/plan.py

table: setup ## every planner on every task, and write docs/results.md; goes on where it stopped: out/table
	$(BIN)/grasp eval --horizons 50,80 --problems 24 --seed 0 --out out/table
	$(BIN)/python -m grasp_planner.evaluation.results out/table docs/results.md
	$(BIN)/python -m grasp_bench.choosing_table docs/results.md docs/choosing.md

PLANNER ?= lifted-newton
tune: setup ## search a planner's settings: make tune PLANNER=cem TUNE='--tasks wall,umaze --trials 20'
	$(BIN)/python bench/tune.py --planner $(PLANNER) $(TUNE)

aot: setup ## compile every Triton kernel for named GPUs, count registers and instructions
	$(BIN)/python -m grasp_kernels.aot

docs: setup ## the documentation as a site, warnings are errors: out/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

DIST ?= out/dist
# The wheel is built from the sdist, so nothing outside it can slip in. auditwheel gives it the oldest
# manylinux tag that its symbols allow; torch brings its own libraries.
dist: setup ## an sdist and an abi3 wheel with a manylinux tag: out/dist
	rm -rf $(DIST)
	GRASP_KERNELS_NATIVE=1 $(BIN)/python -m build --no-isolation --outdir $(DIST)/linux
	mv $(DIST)/linux/*.tar.gz $(DIST)
	PATH="$(abspath $(BIN)):$$PATH" auditwheel repair --exclude 'libtorch*.so' --exclude libc10.so \
	--wheel-dir $(DIST) $(DIST)/linux/*.whl
	rm -r $(DIST)/linux

check-dist: setup ## install wheel and sdist, with a compiler and without, each in a new environment, and plan (minutes)
	$(BIN)/python -m pytest -m slow tests/packaging

clean: ## remove what was built and written here
	rm -rf $(VENV) $(SWM) out build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
	rm -f grasp_kernels/*.so
