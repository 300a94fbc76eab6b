"""FastAPI and ONNX Runtime, with raw tensors as request and answer bodies.

FastAPI has no batching. The model runs in the event loop, because a run of one image is shorter
than a thread's time slice.
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
# form = "tensors"
# path = "/predict"
# command = ["-m", "uvicorn", "loadtest.peers.servers.fastapi_onnxruntime.__main__:app",
#     "--port", "{port}", "--no-access-log"]
# documentation = "https://fastapi.tiangolo.com/advanced/using-request-directly/"
#
# [[tool.peer]]
# name = "FastAPI, 2 processes"
# settings = "uvicorn[standard], two processes, no batching"
# form = "tensors"
# path = "/predict"
# command = ["-m", "uvicorn", "loadtest.peers.servers.fastapi_onnxruntime.__main__:app",
#     "--port", "{port}", "--no-access-log", "--workers", "2"]
# documentation = "https://fastapi.tiangolo.com/deployment/server-workers/"
# ///

from fastapi import FastAPI, Request, Response

from loadtest.peers.servers.served import Served, encode

served = Served()
app = FastAPI()


@app.post("/predict")
async def predict(request: Request) -> Response:
    """Run the model on the inputs in the body and return the outputs, both as raw bytes."""
    outputs = served.run(served.decode(await request.body()))
    return Response(encode(outputs), media_type="application/octet-stream")
