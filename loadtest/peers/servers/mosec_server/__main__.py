"""mosec: an HTTP server in Rust and workers in Python, with dynamic batching between them.

An incomplete batch always waits for the full ``max_wait_time``, so a single connection is faster
without batching. Both settings are measured.
"""

# /// script
# requires-python = ">=3.11"
# dependencies = ["mosec==0.9.8", "onnxruntime==1.31.1", "numpy==2.4.6"]
#
# [[tool.peer]]
# name = "mosec"
# settings = "batches of up to 64 within 1 ms, one worker"
# form = "tensors"
# path = "/inference"
# command = ["{file}", "--address", "127.0.0.1", "--port", "{port}", "--log-level", "warning"]
# environment = { BATCH = "64", WORKERS = "1", PYTHONPATH = "." }
# documentation = "https://mosecorg.github.io/mosec/"
#
# [[tool.peer]]
# name = "mosec, 2 workers"
# settings = "no batching, two workers"
# form = "tensors"
# path = "/inference"
# command = ["{file}", "--address", "127.0.0.1", "--port", "{port}", "--log-level", "warning"]
# environment = { BATCH = "1", WORKERS = "2", PYTHONPATH = "." }
# documentation = "https://mosecorg.github.io/mosec/"
# ///

import os
from typing import Any

import mosec

from loadtest.peers.servers.served import Array, Arrays, Served, encode

BATCH, WORKERS = int(os.environ["BATCH"]), int(os.environ["WORKERS"])
WAIT_MS = 1


class Model(mosec.Worker):
    """The bundle's model, with one sample per request."""

    resp_mime_type = "application/octet-stream"

    def __init__(self) -> None:
        super().__init__()
        self.served = Served()

    def deserialize(self, data: bytes) -> Arrays:
        """Parse the tensors of a sample."""
        return self.served.decode(data)

    def forward(self, data: Any) -> Any:
        """Compute the outputs of each sample; ``data`` is a list if batching is enabled."""
        if not isinstance(data, list):
            return [values[0] for values in self.served.run(data)]
        outputs = self.served.run(self.served.batch(data))
        return [[values[i] for values in outputs] for i in range(len(data))]

    def serialize(self, data: list[Array]) -> bytes:
        """Encode the outputs as bytes."""
        return encode(data)


if __name__ == "__main__":
    server = mosec.Server()
    server.append_worker(Model, num=WORKERS, max_batch_size=BATCH, max_wait_time=WAIT_MS)
    server.run()
