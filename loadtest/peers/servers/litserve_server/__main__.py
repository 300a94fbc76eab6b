"""LitServe with dynamic batching, its queue for many requests a second, and binary bodies.

Its processes poll: they take some of a core (a twelfth was seen) while nobody asks them, which
slows what is measured beside them a little.
"""

# /// script
# requires-python = ">=3.11"
# dependencies = ["litserve==0.2.19", "onnxruntime==1.31.1", "numpy==2.4.6"]
#
# [[tool.peer]]
# name = "LitServe"
# settings = "batches of up to 64 within 1 ms, fast_queue, one worker, one HTTP process"
# form = "pixels"
# path = "/predict"
# command = ["{file}", "{port}"]
# documentation = "https://lightning.ai/docs/litserve/features/batching"
# ///

import os
import sys
from pathlib import Path
from typing import Annotated

import litserve
import numpy as np
import numpy.typing as npt
import onnxruntime as ort
from fastapi import Body, Response

BATCH, WAIT_S = 64, 0.001
Array = npt.NDArray[np.generic]


class Digits(litserve.LitAPI):
    """One image a request."""

    def setup(self, device: str) -> None:
        """Load the model, in the worker's process."""
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        model = Path(os.environ["BUNDLE"]) / "model.onnx"
        self.runtime = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    # The annotation is FastAPI's: without one LitServe takes JSON.
    def decode_request(self, request: Annotated[bytes, Body()]) -> Array:
        """An image, uint8 [28, 28]."""
        return np.frombuffer(request, np.uint8).reshape(28, 28)

    def batch(self, inputs: list[Array]) -> Array:
        """A batch, uint8 [N, 28, 28]."""
        return np.stack(inputs)

    def predict(self, x: Array) -> Array:
        """Probabilities, float32 [N, 10]."""
        (probabilities,) = self.runtime.run(["probabilities"], {"images": x})
        return np.asarray(probabilities)

    def unbatch(self, output: Array) -> list[Array]:
        """Each request's part."""
        return list(output)

    def encode_response(self, output: Array) -> Response:
        """Raw probabilities."""
        return Response(output.tobytes(), media_type="application/octet-stream")


if __name__ == "__main__":
    api = Digits(max_batch_size=BATCH, batch_timeout=WAIT_S)
    server = litserve.LitServer(api, accelerator="cpu", fast_queue=True)
    server.run(
        host="127.0.0.1",
        port=int(sys.argv[1]),
        generate_client_file=False,
        log_level="warning",
        access_log=False,
    )
