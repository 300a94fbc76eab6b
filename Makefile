# Everything runs from the repository's root in .venv. `make help` lists the targets.
PYTHON ?= python3
VENV ?= .venv
PRESET ?= quick
PORT ?= 3000
BIN := $(VENV)/bin
MODELS := mlp cnn
CHECKPOINTS := artifacts/checkpoints
BUNDLES := artifacts/bundles
INSTALL = $(BIN)/python -m pip install --disable-pip-version-check --quiet -c constraints.txt
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install demo serve train bundles gpu loadtest check test test-all mutation test-service \
  monitoring-test compose-test coverage lock audit clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

install: $(VENV)/installed ## make .venv with everything (6.6 GB, some minutes)

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV): PyTorch and the CUDA libraries, several GB, some minutes"
	$(INSTALL) -e '.[train,track,export,serve,loadtest,dev]'
	@touch $@

demo: bundles ## train, export, prove, serve, predict, load-test, report
	@for model in $(MODELS); do \
	  $(BIN)/python -m export check $(BUNDLES)/$$model --quick || exit; done
	$(BIN)/python -m loadtest demo

serve: bundles ## serve the bundles at PORT=3000; trains and exports first if need be
	$(BIN)/bentoml serve service.app:DigitClassifier --host 127.0.0.1 --port $(PORT)

train: $(MODELS:%=$(CHECKPOINTS)/%/checkpoint.json) ## train both models (PRESET=full: better)

bundles: $(MODELS:%=$(BUNDLES)/%/manifest.json) ## export both models and prove the exports

# Order-only (|): a renewed environment does not throw trained weights away.
$(CHECKPOINTS)/%/checkpoint.json: | $(VENV)/installed
	$(BIN)/python -m training train --model $* --preset $(PRESET) --out $(@D) \
	  $(if $(wildcard $(@D)/resume.safetensors),--resume)

$(BUNDLES)/%/manifest.json: $(CHECKPOINTS)/%/checkpoint.json | $(VENV)/installed
	$(BIN)/python -m export build $(<D) --out $(@D) --report artifacts/parity/$*

gpu: bundles ## on a machine with a GPU: every check and timing there, into artifacts/gpu.json
	$(BIN)/python -m export.perf.on_gpu $(MODELS:%=$(BUNDLES)/%)

.PRECIOUS: $(CHECKPOINTS)/%/checkpoint.json $(BUNDLES)/%/manifest.json

loadtest: | $(VENV)/installed ## load the running service (ARGS="--scenario Offline")
	$(BIN)/python -m loadtest run --url http://localhost:$(PORT) $(ARGS)

check: $(VENV)/installed ## lint, types, import boundaries
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: $(VENV)/installed ## the fast tests, in two processes
	$(BIN)/python -m pytest -m "not slow" -n 2 --dist loadfile

test-all: $(VENV)/installed ## all tests, the slow ones too
	$(BIN)/python -m pytest

mutation: $(VENV)/installed ## which changes of the gate's code no test notices (ARGS="--sample 5")
	$(BIN)/python -m tests.mutation $(ARGS)

test-service: ## the service's tests where nothing but the service is installed
	$(PYTHON) -m venv .venv-service
	.venv-service/bin/python -m pip install --disable-pip-version-check --quiet \
	  -c constraints.txt -e '.[serve,tracing,grpc]' pytest 'tritonclient[http]' grpcio-tools schemathesis trustme \
	  playwright axe-playwright-python kubernetes-validate jsonschema jsonpatch
	! .venv-service/bin/python -c "import torch" 2>/dev/null
	.venv-service/bin/python -m pytest -m "not slow" tests/service

monitoring-test: $(VENV)/installed ## rules and dashboard, by promtool and a real Prometheus
	$(BIN)/python -m pytest tests/service/monitoring

compose-test: | $(VENV)/installed ## bring the compose file up, ask, kill, drain, scale (exit 3: no engine)
	$(BIN)/python -m tests.containers $(ARGS)

coverage: $(VENV)/installed ## the fast tests with line and branch coverage
	$(BIN)/python -m pytest -m "not slow" --cov --cov-report=term

lock: | $(VENV)/installed ## renew constraints.txt from pyproject.toml
	$(BIN)/uv pip compile pyproject.toml --all-extras --universal --python-version 3.11 \
	  --no-emit-index-url --no-annotate --no-header --upgrade --quiet -o constraints.txt

audit: ## report what is known of the pinned packages (asks the package index)
	$(PYTHON) -m venv .venv-audit
	.venv-audit/bin/python -m pip install --disable-pip-version-check --quiet pip-audit
	.venv-audit/bin/pip-audit --requirement constraints.txt --no-deps --disable-pip

clean: ## remove what was trained, built and measured (not .venv, not downloads)
	rm -rf $(CHECKPOINTS) $(BUNDLES) artifacts/parity artifacts/report artifacts/loadtest
