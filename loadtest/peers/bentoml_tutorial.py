"""BentoML as its tutorial shows it: a declared endpoint with ``batchable=True``, arrays as JSON.

BUNDLE=artifacts/bundles/cnn bentoml serve loadtest.peers.bentoml_tutorial:Tutorial
"""

import os
from pathlib import Path

import bentoml
import numpy as np
import onnxruntime as ort


@bentoml.service(name="tutorial", workers=1)
class Tutorial:
    """One model, one endpoint."""

    def __init__(self) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        path = Path(os.environ["BUNDLE"]) / "model.onnx"
        self.session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    @bentoml.api(batchable=True, max_batch_size=64)
    def predict(self, images: np.ndarray) -> np.ndarray:
        """Pixels [N, 28, 28] to probabilities [N, 10]."""
        (probabilities,) = self.session.run(["probabilities"], {"images": images.astype(np.uint8)})
        return np.asarray(probabilities)
