"""FastAPI and ONNX Runtime: raw pixels in, raw probabilities out, nothing between.

FastAPI has no batching. A run of one image is shorter than a thread's turn, so it stays in the
event loop.
"""

# /// script
# requires-python = ">=3.11"
# dependencies = [
#     "fastapi==0.165.0",
#     "uvicorn[standard]==0.54.0",
#     "onnxruntime==1.31.1",
#     "numpy==2.4.6",
# ]
#
# [[tool.peer]]
# name = "FastAPI"
# settings = "uvicorn[standard], one process, no batching"
# form = "pixels"
# path = "/predict"
# command = ["-m", "uvicorn", "loadtest.peers.servers.fastapi_onnxruntime.__main__:app",
#     "--port", "{port}", "--no-access-log"]
# documentation = "https://fastapi.tiangolo.com/advanced/using-request-directly/"
#
# [[tool.peer]]
# name = "FastAPI, 2 processes"
# settings = "uvicorn[standard], two processes, no batching"
# form = "pixels"
# path = "/predict"
# command = ["-m", "uvicorn", "loadtest.peers.servers.fastapi_onnxruntime.__main__:app",
#     "--port", "{port}", "--no-access-log", "--workers", "2"]
# documentation = "https://fastapi.tiangolo.com/deployment/server-workers/"
# ///

import os
from pathlib import Path

import numpy as np
import onnxruntime as ort
from fastapi import FastAPI, Request, Response

options = ort.SessionOptions()
options.intra_op_num_threads = options.inter_op_num_threads = 1
model = Path(os.environ["BUNDLE"]) / "model.onnx"
runtime = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
app = FastAPI()


@app.post("/predict")
async def predict(request: Request) -> Response:
    """Pixels, uint8 [N, 28, 28], to probabilities, float32 [N, 10]."""
    images = np.frombuffer(await request.body(), np.uint8).reshape(-1, 28, 28)
    (probabilities,) = runtime.run(["probabilities"], {"images": images})
    return Response(probabilities.tobytes(), media_type="application/octet-stream")
