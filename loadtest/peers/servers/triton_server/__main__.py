"""NVIDIA's Triton from the package nvidia-pytriton, with its dynamic batcher and HTTP server.

This Triton has no ONNX backend, so ONNX Runtime is called from Python, through pytriton's binding.
Triton's own container has one, but it is a different server and would give other figures.
"""

# /// script
# requires-python = ">=3.11"
# dependencies = ["nvidia-pytriton==0.7.0", "onnxruntime==1.31.1", "numpy==1.26.4"]
#
# [[tool.peer]]
# name = "Triton (pytriton)"
# settings = "dynamic batcher, batches of up to 64, no delay; ONNX Runtime through Python"
# form = "infer/binary"
# path = "/v2/models/model/infer"
# command = ["{file}", "{port}", "{scratch}/workspace"]
# environment = { PYTHONPATH = "." }
# documentation = "https://triton-inference-server.github.io/pytriton/latest/binding_models/"
# ///

import os
import sys
import sysconfig

from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

from loadtest.peers.servers.served import Array, Served

BATCH = 64
served = Served()


@batch
def predict(**inputs: Array) -> list[Array]:
    """Compute the outputs of a batch."""
    return served.run(inputs)


if __name__ == "__main__":
    # Triton's Python stub must find this interpreter's libpython, not the system's: see pytriton's
    # installation page on LD_LIBRARY_PATH.
    libraries = [str(sysconfig.get_config_var("LIBDIR")), os.environ.get("LD_LIBRARY_PATH", "")]
    os.environ["LD_LIBRARY_PATH"] = ":".join(filter(None, libraries))
    config = TritonConfig(
        http_address="127.0.0.1",
        http_port=int(sys.argv[1]),
        allow_grpc="GRPC_PORT" in os.environ,
        grpc_address="127.0.0.1",
        grpc_port=int(os.environ.get("GRPC_PORT", "0")) or None,
        allow_metrics=False,
        log_verbose=0,
    )
    with Triton(config=config, workspace=sys.argv[2]) as triton:
        triton.bind(
            model_name="model",
            infer_func=predict,
            inputs=[Tensor(name=t.name, dtype=t.dtype.type, shape=t.shape) for t in served.inputs],
            outputs=[
                Tensor(name=t.name, dtype=t.dtype.type, shape=t.shape) for t in served.outputs
            ],
            config=ModelConfig(max_batch_size=BATCH, batcher=DynamicBatcher()),
        )
        triton.serve()
