"""ONNX Runtime without a server: what a service of the same file can reach at best on one thread.

python -m loadtest.peers.servers.onnxruntime_alone artifacts/bundles/cnn --images 64 --seconds 3
"""

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
import onnxruntime as ort

WARM_UP_RUNS = 20


def main() -> int:
    """Run batches until the time is over; print the figures as JSON. Status 1: wrong digits."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--images", type=int, default=64, help="of a batch")
    parser.add_argument("--seconds", type=float, default=3)
    arguments = parser.parse_args()
    with np.load(arguments.bundle / "golden.npz", allow_pickle=False) as golden:
        best, pixels = golden["truth/logits"].argmax(axis=1), golden["inputs/images"]
    images = np.resize(pixels, (arguments.images, 28, 28))
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    model = arguments.bundle / "model.onnx"
    runtime = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    for _ in range(WARM_UP_RUNS):
        (probabilities,) = runtime.run(["probabilities"], {"images": images})
    if (np.asarray(probabilities).argmax(axis=1) != np.resize(best, arguments.images)).any():
        sys.stderr.write(f"{model} reads its golden samples wrongly\n")
        return 1
    timed_s, end_s = [], time.perf_counter() + arguments.seconds
    while (start_s := time.perf_counter()) < end_s:
        runtime.run(["logits", "probabilities"], {"images": images})
        timed_s.append(time.perf_counter() - start_s)
    p50_s, p99_s = np.percentile(timed_s, (50, 99))
    figures = {"p50_ms": 1000 * p50_s, "p99_ms": 1000 * p99_s}
    sys.stdout.write(json.dumps({"requests_per_s": len(timed_s) / sum(timed_s)} | figures) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
