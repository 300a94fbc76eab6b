"""Makes the documentation's pictures from real runs, each for light and dark pages.

    python -m tests.pictures                  # all of them, some minutes; after `make bundles`
    python -m tests.pictures gate layers      # some

page    the service's page with a drawn digit, in Chromium
gate    the pipeline, and what each stage refuses
faults  the MLP's faults by checks, from tests.export.other_gates with ten draws
layers  the error of each value inside the CNN's ONNX file, from its bundle's parity.json
sweep   latency over users of the CNN, from `python -m loadtest sweep --scenario Concurrency`
capacity  simulated replicas: the tail over the load, a step of the load, the loss of a zone
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from tests.docs.pages import ROOT
from tests.pictures.palette import save_both

NAMES = {
    "numpy.allclose": "numpy\nallclose",
    "torch.onnx.testing.assert_onnx_program": "assert_onnx\n_program",
    "torch.onnx.export(verify=True)": "verify\n=True",
    "Polygraphy SimpleCompareFunc()": "Poly-\ngraphy",
}
DRAWS = 10


def make_page(bundles: Path, out: Path) -> list[Path]:
    """Photographs of the page."""
    from tests.pictures.page import photograph_page  # noqa: PLC0415 - needs Playwright

    return photograph_page(bundles, out)


def make_gate(bundles: Path, out: Path) -> list[Path]:
    """The pipeline; needs no bundle."""
    from tests.pictures.gate import draw_gate  # noqa: PLC0415 - as the others

    return save_both(draw_gate, out, "gate")


def make_faults(bundles: Path, out: Path) -> list[Path]:
    """The heat map of the MLP's faults."""
    from export.bundle.store import Bundle  # noqa: PLC0415 - the other pictures need no torch
    from export.check import Origin, rebuild  # noqa: PLC0415
    from tests.export.other_gates import HONEST, compare_gates  # noqa: PLC0415
    from tests.pictures.charts import FaultRow, draw_faults  # noqa: PLC0415

    bundle = Bundle.open(bundles / "mlp")
    rows = [
        FaultRow(
            outcome.fault,
            {name: caught / DRAWS for name, caught in outcome.caught.items()},
            outcome.caught_by,
        )
        for outcome in compare_gates(bundle, rebuild(bundle, Origin()), range(DRAWS))
        if outcome.fault != HONEST and outcome.not_applicable is None
    ]
    return save_both(partial(draw_faults, rows, NAMES), out, "faults")


def make_layers(bundles: Path, out: Path) -> list[Path]:
    """The errors inside the CNN's ONNX file."""
    from export.bundle.store import Bundle  # noqa: PLC0415 - not for the page
    from export.parity.schema import ParityFigures  # noqa: PLC0415
    from tests.pictures.charts import draw_layers  # noqa: PLC0415

    bundle = Bundle.open(bundles / "cnn")
    content = json.loads((bundle.folder / "parity.json").read_bytes())
    figures = ParityFigures.model_validate(content, strict=False)
    limit = bundle.manifest.tolerance("cpu", "onnx")
    draw = partial(draw_layers, figures.layers, limit, "cnn")
    return save_both(draw, out, "layers")


def make_sweep(bundles: Path, out: Path) -> list[Path]:
    """The curve of a sweep of the CNN; the load test runs in a process of its own, as always."""
    from loadtest.measure.stats import Runs  # noqa: PLC0415 - not for the other pictures
    from loadtest.server import running_service  # noqa: PLC0415
    from tests.pictures.charts import draw_sweep  # noqa: PLC0415

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        settings = {"INFERENCE_BUNDLES": str(bundles.resolve()), "INFERENCE_DEVICE": "cpu"}
        with running_service(folder / "service.log", settings=settings) as url:
            command = [sys.executable, "-m", "loadtest", "sweep", "--url", url]
            command += ["--bundle", str((bundles / "cnn").resolve()), "--out", str(folder)]
            command += ["--scenario", "Concurrency", "--endpoint", "infer/raw"]
            subprocess.run([*command, "--accept-invalid"], cwd=ROOT, check=True)
        found = Runs.model_validate_json((folder / "sweep-cnn-Concurrency.json").read_bytes())
    return save_both(partial(draw_sweep, found.runs, "cnn"), out, "sweep")


def make_capacity(bundles: Path, out: Path) -> list[Path]:
    """The figures of simulated replicas."""
    from tests.pictures.capacity import make_capacity as make  # noqa: PLC0415 - as the others

    return make(bundles, out)


PICTURES: dict[str, Callable[[Path, Path], list[Path]]] = {
    "page": make_page,
    "gate": make_gate,
    "faults": make_faults,
    "layers": make_layers,
    "sweep": make_sweep,
    "capacity": make_capacity,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Make the pictures that are named, or all; status 0."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.pictures",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("pictures", nargs="*", metavar="PICTURE", help=", ".join(PICTURES))
    parser.add_argument("--bundles", type=Path, default=ROOT / "artifacts" / "bundles")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images")
    arguments = parser.parse_args(argv)
    if unknown := set(arguments.pictures) - set(PICTURES):
        parser.error(f"unknown pictures {sorted(unknown)}; expected some of {', '.join(PICTURES)}")
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name in arguments.pictures or PICTURES:
        for path in PICTURES[name](arguments.bundles, arguments.out):
            print(f"{path} ({path.stat().st_size / 1000:.0f} KB)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
