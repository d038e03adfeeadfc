# fedsim's commands. `make help` lists them; every target makes .venv first where it needs one.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALL ?= $(BIN)/pip install --quiet --disable-pip-version-check
WORKERS ?= 2
RECIPE ?= recipes/quickstart.py
NODES ?= 1
DEVICES ?= 1
# Torch's launcher takes a free port: several may run on one machine.
FABRIC = PET_STANDALONE=1 $(BIN)/fabric run
RUN = OMP_NUM_THREADS=1 FEDSIM_FIGURES=0 $(FABRIC)
TWO = --accelerator cpu --devices $(WORKERS)

OLDEST := $(or $(TMPDIR),/tmp)/fedsim-oldest-venv
OLDEST_TESTS = $(addprefix tests/,adapters parts methods engines models data)

.DEFAULT_GOAL := help
.PHONY: help setup demo docs test test-slow test-oldest check run slurm bench gpu-check mutants reproduce clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(BIN)/.installed ## Create .venv and install fedsim with its development tools

$(BIN)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) -e '.[dev]'
	touch $@

$(BIN)/.docs-installed: $(BIN)/.installed
	$(INSTALL) -e '.[dev,docs]'
	touch $@

$(BIN)/.bench-installed: $(BIN)/.installed
	$(INSTALL) -e '.[dev,bench]'
	touch $@

$(BIN)/.mutants-installed: $(BIN)/.installed
	$(INSTALL) -e '.[dev,mutants]'
	touch $@

demo: setup ## Train HiLoRA, FedIT and Local on the embedded digits with two workers and compare them
	$(FABRIC) recipes/quickstart.py --accelerator cpu --devices $(WORKERS) $(ARGS)

docs: $(BIN)/.docs-installed ## Build the documentation into site/, whose links and anchors must be right
	OMP_NUM_THREADS=1 $(BIN)/python docs/generate.py build/docs
	$(BIN)/zensical build --strict

run: setup ## Run a recipe: make run RECIPE=recipes/x.py WORKERS=8 ARGS="--seed 1"
	$(FABRIC) $(RECIPE) --devices $(WORKERS) $(ARGS)

slurm: setup ## Submit a recipe to SLURM: make slurm RECIPE=recipes/x.py NODES=2 DEVICES=8 ARGS="--seed 1" SLURM="--time 8:00:00"
	PATH="$(abspath $(BIN)):$$PATH" sbatch --nodes $(NODES) $(if $(filter-out 0,$(DEVICES)),--gpus-per-node $(DEVICES)) $(SLURM) slurm/fabric.sbatch $(RECIPE) $(ARGS)

test: setup ## Run the default tests (minutes)
	OMP_NUM_THREADS=1 $(BIN)/pytest -m 'not slow' -n auto --dist worksteal $(ARGS)

test-slow: setup ## Run the slow tests: kill-and-resume, learning on real data; then those that start a cluster
	OMP_NUM_THREADS=1 $(BIN)/pytest -m 'slow and not cluster' -n 2 --dist worksteal --timeout 1800 $(ARGS)
	OMP_NUM_THREADS=1 $(BIN)/pytest -m 'slow and cluster' $(ARGS) || test $$? -eq 5

test-oldest: ## Test with the lowest versions that pyproject.toml allows, in an environment of their own that is removed
	@set -e; trap 'rm -rf "$(OLDEST)"' EXIT; trap 'exit 130' HUP INT TERM; rm -rf "$(OLDEST)"; \
	$(PYTHON) -m venv "$(OLDEST)"; \
	"$(OLDEST)/bin/pip" install --quiet --disable-pip-version-check uv; \
	UV_CACHE_DIR="$(OLDEST)/cache" "$(OLDEST)/bin/uv" pip install --quiet --python "$(OLDEST)/bin/python" \
		--resolution lowest-direct -e '.[dev]'; \
	OMP_NUM_THREADS=1 "$(OLDEST)/bin/python" -m pytest -m 'not slow' -n auto --dist worksteal $(OLDEST_TESTS) $(ARGS)

check: setup ## Lint, check formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy fedsim/adapters fedsim/parts fedsim/methods fedsim/round.py fedsim/plan.py

bench: $(BIN)/.bench-installed ## Measure the engines against the limit and against peers; rewrites RESULTS.md
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/engines.py $(ARGS)

gpu-check: setup ## Measure on one GPU whether fedsim is right, how fast and what fits; writes RESULTS.md (7 minutes)
	$(BIN)/python benchmarks/gpu_check.py $(ARGS)

mutants: $(BIN)/.mutants-installed ## Change the code in small ways: the share of changes that the default tests notice
	OMP_NUM_THREADS=1 nice $(BIN)/python benchmarks/mutants.py $(ARGS)

reproduce: setup ## Run what a table of RESULTS.md lacks, and judge it: make reproduce TABLE=d1 ARGS="--seeds 4"
	$(RUN) benchmarks/tables.py $(TWO) --tables $(or $(TABLE),d1 d2 d3 d4 d5 curves) --text-model=$(TEXT_MODEL) $(ARGS)

clean: ## Remove caches and build leftovers (not .venv, not runs)
	rm -rf build site dist *.egg-info .pytest_cache .ruff_cache .mypy_cache
	find . -name __pycache__ -not -path './.venv/*' -exec rm -rf {} +
