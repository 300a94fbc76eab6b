"""ONNX Runtime without a server: the upper bound for a service of the same model on one thread.

BUNDLE=artifacts/bundles/cnn python -m loadtest.peers.servers.onnxruntime_alone --samples 64
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path

import numpy as np

from loadtest.peers.servers.served import Served

WARM_UP_RUNS = 20
FAR_OFF = 1e-3  # of an output's largest value; only coarse, as the export verifies the model


def main() -> int:
    """Run batches for ``--seconds``; print the figures as JSON. Return 1 if outputs are wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=64, help="samples in a batch")
    parser.add_argument("--seconds", type=float, default=3)
    arguments = parser.parse_args()
    served = Served()
    with np.load(Path(os.environ["BUNDLE"]) / "golden.npz", allow_pickle=False) as golden:
        arrays = dict(golden)
    chosen = np.arange(arguments.samples) % len(next(iter(arrays.values())))
    inputs = {tensor.name: arrays[f"inputs/{tensor.name}"][chosen] for tensor in served.inputs}
    for _ in range(WARM_UP_RUNS):
        outputs = served.run(inputs)
    for tensor, values in zip(served.outputs, outputs, strict=True):
        eager = arrays[f"eager/{tensor.name}"][chosen]
        if not np.allclose(values, eager, rtol=0, atol=FAR_OFF * np.abs(eager).max()):
            sys.stderr.write(f"the model's output for its golden samples is wrong: {tensor.name}\n")
            return 1
    timed_s, end_s = [], time.perf_counter() + arguments.seconds
    while (start_s := time.perf_counter()) < end_s:
        served.run(inputs)
        timed_s.append(time.perf_counter() - start_s)
    p50_s, p99_s = np.percentile(timed_s, (50, 99))
    figures = {"p50_ms": 1000 * p50_s, "p99_ms": 1000 * p99_s}
    sys.stdout.write(json.dumps({"requests_per_s": len(timed_s) / sum(timed_s)} | figures) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
