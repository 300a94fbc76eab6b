"""BentoML as in its tutorial: a declared endpoint with ``batchable=True``, and arrays as JSON.

BUNDLE=artifacts/bundles/cnn bentoml serve loadtest.peers.servers.bentoml_tutorial:Tutorial

BentoML's worker uses uvloop and httptools if they are installed; ``pip install bentoml`` does not
install them. PLAIN=1 prevents their import, so that BentoML runs as pip installs it.
"""

# /// script
# requires-python = ">=3.11"
# dependencies = ["bentoml==1.4.39", "uvloop==0.23.0", "httptools==0.9.0", "onnxruntime==1.31.1",
#     "numpy==2.4.6"]
#
# [[tool.peer]]
# name = "BentoML's tutorial"
# settings = "batchable=True, batches of up to 64, one worker, as pip install bentoml leaves it"
# form = "json"
# path = "/predict"
# command = ["-m", "bentoml", "serve", "loadtest.peers.servers.bentoml_tutorial:Tutorial",
#     "--host", "127.0.0.1", "--port", "{port}"]
# environment = { BENTOML_DO_NOT_TRACK = "True", BENTOML_HOME = "{scratch}/bentoml", PLAIN = "1" }
# documentation = "https://docs.bentoml.com/en/latest/get-started/adaptive-batching.html"
#
# [[tool.peer]]
# name = "BentoML's tutorial, uvloop and httptools"
# settings = "the same, with uvloop and httptools installed"
# form = "json"
# path = "/predict"
# command = ["-m", "bentoml", "serve", "loadtest.peers.servers.bentoml_tutorial:Tutorial",
#     "--host", "127.0.0.1", "--port", "{port}"]
# environment = { BENTOML_DO_NOT_TRACK = "True", BENTOML_HOME = "{scratch}/bentoml", PLAIN = "0" }
# documentation = "https://docs.bentoml.com/en/latest/get-started/adaptive-batching.html"
#
# [[tool.peer]]
# name = "BentoML's tutorial, 64 samples"
# settings = "as the first"
# form = "json"
# samples = 64
# path = "/predict"
# command = ["-m", "bentoml", "serve", "loadtest.peers.servers.bentoml_tutorial:Tutorial",
#     "--host", "127.0.0.1", "--port", "{port}"]
# environment = { BENTOML_DO_NOT_TRACK = "True", BENTOML_HOME = "{scratch}/bentoml", PLAIN = "1" }
# documentation = "https://docs.bentoml.com/en/latest/get-started/adaptive-batching.html"
# ///

import os
import sys

import bentoml
import numpy as np

from loadtest.peers.servers.served import Served

PLAIN = os.environ.get("PLAIN") == "1"
if PLAIN:  # before uvicorn tries to import them, which it does when the worker starts
    if {"uvloop", "httptools"} & sys.modules.keys():
        raise SystemExit("error: uvloop or httptools was imported before PLAIN=1 could prevent it")
    sys.modules["uvloop"] = sys.modules["httptools"] = None  # type: ignore[assignment]


@bentoml.service(name="tutorial", workers=1)
class Tutorial:
    """A service with one model and one endpoint."""

    def __init__(self) -> None:
        self.served = Served()
        (self.input,) = self.served.inputs

    @bentoml.api(batchable=True, max_batch_size=64)
    def predict(self, samples: np.ndarray) -> np.ndarray:
        """Compute the first output [N, ...] of samples [N, ...]."""
        return self.served.run({self.input.name: samples.astype(self.input.dtype)})[0]
