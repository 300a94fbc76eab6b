"""Check and time bundles on a GPU, and write one JSON file: ``python -m export.perf.on_gpu``.

It runs four checks on CUDA: the gate with TF32 off, with TF32 off and CUDA graphs, and with TF32
on, and the golden samples in float16. Then it runs the benchmark. Each runs in a separate process,
because TF32 can be switched only once in a process. Without a CUDA device the status is 3.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from export.bundle.session import DeviceUnavailableError, choose_device

RUNS: dict[str, list[str]] = {
    "TF32 off": ["check"],
    "TF32 off, CUDA graphs": ["check", "--cuda-graphs"],
    "TF32 on": ["check", "--tf32"],
    "golden samples, fp16": ["check", "--quick", "--variant", "onnx-fp16"],
    "benchmark": ["benchmark", "--batch-sizes", "1", "8", "64", "256"],
}
NO_DEVICE = 3


def main(argv: Sequence[str] | None = None) -> int:
    """Run everything; the status is 0 if all passed, 1 if something failed, 3 without a device."""
    parser = argparse.ArgumentParser(prog="python -m export.perf.on_gpu", description=__doc__)
    parser.add_argument("bundles", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, default=Path("artifacts/gpu.json"))
    parser.add_argument(
        "--data-dir", type=Path, help="a folder with MNIST's IDX files; default: $MNIST_DIR"
    )
    arguments = parser.parse_args(argv)
    try:
        choose_device("cuda")
    except DeviceUnavailableError as error:
        print(f"error: {error}", file=sys.stderr)
        return NO_DEVICE
    outcome = {
        str(bundle): {
            name: _run(command, bundle, arguments.data_dir) for name, command in RUNS.items()
        }
        for bundle in arguments.bundles
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(outcome, indent=1) + "\n")
    statuses = {
        f"{bundle}, {name}": run["status"]
        for bundle, runs in outcome.items()
        for name, run in runs.items()
    }
    for name, status in statuses.items():
        print(f"{'passed' if status == 0 else f'FAILED ({status})':12} {name}")
    print(f"figures: {arguments.out}")
    return int(any(statuses.values()))


def _run(command: list[str], bundle: Path, data_dir: Path | None) -> dict[str, Any]:
    """Run a command of the export stage in a separate process; return status, output, figures."""
    with tempfile.TemporaryDirectory() as folder:
        figures = Path(folder) / "figures.json"
        name, *options = command
        line = [sys.executable, "-m", "export", name, str(bundle), "--device", "cuda", *options]
        if data_dir is not None and name == "check":
            line += ["--data-dir", str(data_dir)]
        ran = subprocess.run([*line, "--json", str(figures)], capture_output=True, text=True)
        return {
            "command": " ".join(line[1:]),
            "status": ran.returncode,
            "output": ran.stdout.splitlines(),
            "errors": ran.stderr.splitlines()[-50:],
            "figures": json.loads(figures.read_text()) if figures.is_file() else None,
        }


if __name__ == "__main__":
    sys.exit(main())
