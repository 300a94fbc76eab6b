# Everything runs from the repository's root in .venv. `make help` lists the targets.
PYTHON ?= python3
VENV ?= .venv
PRESET ?= quick
PORT ?= 3000
BIN := $(VENV)/bin
MODELS := mlp cnn
CHECKPOINTS := artifacts/checkpoints
BUNDLES := artifacts/bundles
PIP := $(BIN)/python -m pip --disable-pip-version-check
INSTALL = $(PIP) install --quiet -c constraints.txt

# Which builds of PyTorch and ONNX Runtime `make install` takes. docs/install.md gives the sizes.
#   auto  what .venv holds already; otherwise cuda if nvidia-smi lists a GPU, and cpu if not
#   cuda  the default builds, with NVIDIA's libraries
#   cpu   PyTorch's CPU wheels, from the index below or a find-links folder of pip; where neither
#         has them, the default builds without the packages that a CPU never loads
DEVICE ?= auto
TORCH_CPU_INDEX ?= https://download.pytorch.org/whl/cpu
# An empty file is from before it recorded the builds: these were the default ones.
HELD = $(shell test -e $(VENV)/installed && { grep . $(VENV)/installed || echo cuda; })
FOUND = $(if $(shell nvidia-smi --list-gpus 2>/dev/null),cuda,cpu)
BUILDS = $(if $(filter auto,$(DEVICE)),$(or $(HELD),$(FOUND)),$(DEVICE))
COMPILE = $(BIN)/uv pip compile pyproject.toml --all-extras --universal --python-version 3.11 \
  --no-emit-index-url --no-annotate --no-header --quiet
EXTRAS := train,track,serve-core,score,sign,loadtest,dev
pinned = $(shell sed -n 's/^$(1)==\([^ ;]*\).*/\1/p' constraints.txt)
CPU_TORCH = torch==$(call pinned,torch)+cpu torchvision==$(call pinned,torchvision)+cpu
CPU_RUNTIME = onnxruntime==$(call pinned,onnxruntime-gpu)
# Fails within seconds where the index cannot be reached.
OFFERS = $(PIP) index versions --timeout 3 --retries 0 --index-url $(TORCH_CPU_INDEX)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install install-cuda install-cpu demo serve train bundles gpu loadtest check test test-all \
  mutation test-service monitoring-test compose-test coverage lock audit sbom clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

install: $(VENV)/installed ## make .venv with everything (DEVICE=cpu or cuda; some minutes)

$(VENV)/installed: pyproject.toml constraints.txt requirements.txt
	@case '$(BUILDS)' in cpu|cuda) ;; \
	  *) echo "DEVICE is '$(DEVICE)'; expected auto, cpu or cuda" >&2; exit 2 ;; esac
	$(PYTHON) -m venv $(VENV)
	@$(MAKE) --no-print-directory install-$(BUILDS)
	@echo $(BUILDS) > $@
	@echo "==> installed in $(VENV). Other builds: rm -r $(VENV) && make install DEVICE=cpu (or cuda)"

# Called by the rule above.
install-cuda:
	@echo "==> DEVICE=cuda: installing the default builds with NVIDIA's libraries (7.3 GB)"
	$(PIP) install --quiet --require-hashes --no-deps -r requirements.txt
	$(PIP) install --quiet --no-deps --no-build-isolation -e .
	$(PIP) check

install-cpu:
	@if $(OFFERS) torch 2>/dev/null | grep -qF '$(call pinned,torch)+cpu' \
	  && $(OFFERS) torchvision 2>/dev/null | grep -qF '$(call pinned,torchvision)+cpu'; then \
	  echo "==> DEVICE=cpu: installing PyTorch's CPU wheels (about 2.4 GB in all)"; \
	  set -x; \
	  $(INSTALL) --extra-index-url $(TORCH_CPU_INDEX) \
	    -e '.[$(EXTRAS),export-core]' $(CPU_TORCH) $(CPU_RUNTIME); \
	else \
	  echo "==> DEVICE=cpu: found no $(CPU_TORCH) at $(TORCH_CPU_INDEX) or in pip's find-links."; \
	  echo "==> Installing the default builds without triton and ONNX Runtime's GPU build (5.9 GB)."; \
	  echo "==> Name another index by TORCH_CPU_INDEX=URL, or a folder of wheels by PIP_FIND_LINKS."; \
	  set -x; \
	  $(INSTALL) -e '.[$(EXTRAS),export-core]' $(CPU_RUNTIME) \
	    && $(PIP) uninstall --quiet --yes triton; \
	fi

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
	  -c constraints.txt -e '.[serve,tracing,grpc,sign]' pytest 'tritonclient[http]' grpcio-tools schemathesis trustme \
	  playwright axe-playwright-python kubernetes-validate jsonschema jsonpatch
	! .venv-service/bin/python -c "import torch" 2>/dev/null
	.venv-service/bin/python -m pytest -m "not slow" tests/service --ignore tests/service/score

monitoring-test: $(VENV)/installed ## rules and dashboard, by promtool and a real Prometheus
	$(BIN)/python -m pytest tests/service/monitoring

compose-test: | $(VENV)/installed ## bring the compose file up, ask, kill, drain, scale (exit 3: no engine)
	$(BIN)/python -m tests.containers $(ARGS)

coverage: $(VENV)/installed ## the fast tests with line and branch coverage
	$(BIN)/python -m pytest -m "not slow" --cov --cov-report=term

lock: | $(VENV)/installed ## renew the pinned packages and their hashes from pyproject.toml
	$(COMPILE) --upgrade -o constraints.txt
	$(COMPILE) --constraints constraints.txt --generate-hashes -o requirements.txt

.venv-audit:
	$(PYTHON) -m venv $@

audit: .venv-audit ## report what is known of the pinned packages (asks the package index)
	.venv-audit/bin/python -m pip install --disable-pip-version-check --quiet pip-audit
	.venv-audit/bin/pip-audit --requirement constraints.txt --no-deps --disable-pip

sbom: .venv-audit ## list the pinned packages in artifacts/sbom.json (CycloneDX)
	.venv-audit/bin/python -m pip install --disable-pip-version-check --quiet cyclonedx-bom
	mkdir -p artifacts
	.venv-audit/bin/cyclonedx-py requirements constraints.txt --output-file artifacts/sbom.json

clean: ## remove what was trained, built and measured (not .venv, not downloads)
	rm -rf $(CHECKPOINTS) $(BUNDLES) artifacts/parity artifacts/report artifacts/loadtest
