# Everything runs from the repository's root in .venv. `make help` lists the targets.
PYTHON ?= python3
BIN := .venv/bin
PRESET ?= quick
PORT ?= 3000
MODELS := mlp cnn
CHECKPOINTS := artifacts/checkpoints
BUNDLES := artifacts/bundles
PIP := $(BIN)/python -m pip install --disable-pip-version-check --quiet -c constraints.txt
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install demo serve bundles train check test test-all coverage loadtest lock clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

install: .venv/installed ## make .venv with everything (several GB, minutes)

# A virtual environment of one's own, so that nothing of this machine's Python is touched.
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	@echo "installing into .venv: PyTorch and CUDA libraries, several GB; this takes minutes"
	$(PIP) -e '.[train,export,serve,loadtest,dev]'
	@touch $@

demo: bundles ## train, export, prove, serve, predict, load-test, report
	@for model in $(MODELS); do \
	  $(BIN)/python -m export check $(BUNDLES)/$$model --quick || exit; done
	$(BIN)/python -m loadtest demo

serve: bundles ## serve the bundles at port 3000 (PORT=...)
	$(BIN)/bentoml serve service.app:DigitClassifier --host 127.0.0.1 --port $(PORT)

train: $(MODELS:%=$(CHECKPOINTS)/%/checkpoint.json) ## train MLP and CNN if not there yet (PRESET=full: longer, better)

bundles: $(MODELS:%=$(BUNDLES)/%/manifest.json) ## export and prove them if not there yet

# Order-only: a new package version does not throw trained weights away.
$(CHECKPOINTS)/%/checkpoint.json: | .venv/installed
	$(BIN)/python -m training train --model $* --preset $(PRESET) --out $(@D)

$(BUNDLES)/%/manifest.json: $(CHECKPOINTS)/%/checkpoint.json | .venv/installed
	$(BIN)/python -m export build $(<D) --out $(@D)

.PRECIOUS: $(CHECKPOINTS)/%/checkpoint.json $(BUNDLES)/%/manifest.json

loadtest: | .venv/installed ## load the running service (ARGS="--scenario Offline --duration 30")
	$(BIN)/python -m loadtest run --url http://localhost:$(PORT) $(ARGS)

check: .venv/installed ## lint, types, import boundaries
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: .venv/installed ## the fast tests
	$(BIN)/python -m pytest -m "not slow"

test-all: .venv/installed ## all tests
	$(BIN)/python -m pytest

coverage: .venv/installed ## the fast tests with line and branch coverage
	$(BIN)/python -m pytest -m "not slow" --cov --cov-report=term

lock: | .venv/installed ## renew constraints.txt from pyproject.toml
	$(BIN)/uv pip compile pyproject.toml --all-extras --universal --python-version 3.11 \
	  --no-emit-index-url --no-annotate --no-header --upgrade --quiet -o constraints.txt

clean: ## remove what was trained, built and measured (not .venv, not downloads)
	rm -rf $(CHECKPOINTS) $(BUNDLES) artifacts/report artifacts/loadtest
