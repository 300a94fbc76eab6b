"""mosec: a server in Rust, workers in Python, dynamic batching between them.

A batch that is not full waits its whole time, so that a lone connection is served faster without
batching: both are shown.
"""

# /// script
# requires-python = ">=3.11"
# dependencies = ["mosec==0.9.8", "onnxruntime==1.31.1", "numpy==2.4.6"]
#
# [[tool.peer]]
# name = "mosec"
# settings = "batches of up to 64 within 1 ms, one worker"
# form = "pixels"
# path = "/inference"
# command = ["{file}", "--address", "127.0.0.1", "--port", "{port}", "--log-level", "warning"]
# environment = { BATCH = "64", WORKERS = "1" }
# documentation = "https://mosecorg.github.io/mosec/"
#
# [[tool.peer]]
# name = "mosec, 2 workers"
# settings = "no batching, two workers"
# form = "pixels"
# path = "/inference"
# command = ["{file}", "--address", "127.0.0.1", "--port", "{port}", "--log-level", "warning"]
# environment = { BATCH = "1", WORKERS = "2" }
# documentation = "https://mosecorg.github.io/mosec/"
# ///

import os
from pathlib import Path
from typing import Any

import mosec
import numpy as np
import numpy.typing as npt
import onnxruntime as ort

BATCH, WORKERS = int(os.environ["BATCH"]), int(os.environ["WORKERS"])
WAIT_MS = 1
Array = npt.NDArray[np.generic]


class Digits(mosec.Worker):
    """One image a request."""

    resp_mime_type = "application/octet-stream"

    def __init__(self) -> None:
        super().__init__()
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        model = Path(os.environ["BUNDLE"]) / "model.onnx"
        self.runtime = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    def deserialize(self, data: bytes) -> Array:
        """An image, uint8 [28, 28]."""
        return np.frombuffer(data, np.uint8).reshape(28, 28)

    def forward(self, data: Any) -> Any:
        """Probabilities, float32 [10], of each image; mosec gives a list where batches are on."""
        images = np.stack(data) if isinstance(data, list) else data[None]
        (probabilities,) = self.runtime.run(["probabilities"], {"images": images})
        return list(probabilities) if isinstance(data, list) else probabilities[0]

    def serialize(self, data: Array) -> bytes:
        """Raw probabilities."""
        return data.tobytes()


if __name__ == "__main__":
    server = mosec.Server()
    server.append_worker(Digits, num=WORKERS, max_batch_size=BATCH, max_wait_time=WAIT_MS)
    server.run()
