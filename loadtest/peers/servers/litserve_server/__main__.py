"""LitServe with dynamic batching, its queue for high request rates, and binary bodies.

Its processes poll: they use part of a core (a twelfth was measured) even without requests, which
slightly slows the other servers during their turns.
"""

# /// script
# requires-python = ">=3.11"
# dependencies = ["litserve==0.2.19", "onnxruntime==1.31.1", "numpy==2.4.6"]
#
# [[tool.peer]]
# name = "LitServe"
# settings = "batches of up to 64 within 1 ms, fast_queue, one worker, one HTTP process"
# form = "tensors"
# path = "/predict"
# command = ["{file}", "{port}"]
# environment = { PYTHONPATH = "." }
# documentation = "https://lightning.ai/docs/litserve/features/batching"
# ///

import sys
from typing import Annotated

import litserve
from fastapi import Body, Response

from loadtest.peers.servers.served import Array, Arrays, Served, encode

BATCH, WAIT_S = 64, 0.001


class Model(litserve.LitAPI):
    """The bundle's model, with one sample per request."""

    def setup(self, device: str) -> None:
        """Load the model in the worker process."""
        self.served = Served()

    # FastAPI's annotation requests the raw body; without it LitServe expects JSON.
    def decode_request(self, request: Annotated[bytes, Body()]) -> Arrays:
        """Parse the tensors of a sample."""
        return self.served.decode(request)

    def batch(self, inputs: list[Arrays]) -> Arrays:
        """Join the tensors of several samples into a batch."""
        return self.served.batch(inputs)

    def predict(self, x: Arrays) -> list[Array]:
        """Compute the outputs of a batch."""
        return self.served.run(x)

    def unbatch(self, output: list[Array]) -> list[list[Array]]:
        """Split the outputs of a batch by request."""
        return [[values[i] for values in output] for i in range(len(output[0]))]

    def encode_response(self, output: list[Array]) -> Response:
        """Encode the outputs as bytes."""
        return Response(encode(output), media_type="application/octet-stream")


if __name__ == "__main__":
    api = Model(max_batch_size=BATCH, batch_timeout=WAIT_S)
    server = litserve.LitServer(api, accelerator="cpu", fast_queue=True)
    server.run(
        host="127.0.0.1",
        port=int(sys.argv[1]),
        generate_client_file=False,
        log_level="warning",
        access_log=False,
    )
