"""Builds networks of the catalogue with default settings and prints each result.

    python -m tests.export.catalogue_builds --networks resnet18,decoder --work artifacts/catalogue

Each is built by the command line from ``--samples`` samples and ``--calibration`` calibration
samples. The bundle and the build's output stay below ``--work``. Times are CPU seconds of all
processes of the build, which depend less on other load than wall time does.
"""

import argparse
import contextlib
import os
import sys
import textwrap
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors import safe_open

from export.__main__ import main as export
from export.bundle.manifest import Manifest
from export.bundle.store import Bundle
from export.formats import VARIANTS
from tests.export.catalogue import NETWORKS, write_network, write_samples

SAMPLES, CALIBRATION = 64, 32
SHOWN = 100  # characters of a reason; the manifest has its full text
COLUMNS = (
    *("network", "numbers in its weights", "in the bundle", "layers kept in float32", "left out"),
    *("processor seconds", "seconds that passed"),
)


@dataclass(frozen=True)
class CatalogueBuild:
    """The result of a build.

    Attributes:
        status: Exit status of the command.
        printed: Output of the command.
        seconds: Wall time.
        cpu_seconds: CPU time of all its processes.
        sources: The folder of its inputs.
        bundle: The folder of its output.
    """

    status: int
    printed: str
    seconds: float
    cpu_seconds: float
    sources: Path
    bundle: Path


def build_network(
    name: str,
    sources: Path,
    bundle: Path,
    *,
    samples: int = SAMPLES,
    calibration: int = CALIBRATION,
    seed: int = 0,
) -> CatalogueBuild:
    """Build a network in all variants by the command line.

    Args:
        name: One of ``catalogue.NETWORKS``.
        sources: A folder for weights and samples.
        bundle: The folder for the bundle.
        samples: Number of samples for the proof.
        calibration: Number of other samples, for the calibration of int8.
        seed: Seed of weights and samples.
    """
    command = ["build", *write_network(name, sources, samples=samples, seed=seed)]
    write_samples(name, sources / "calibration.npz", calibration, seed=1_000 + seed)
    command += ["--calibration", str(sources / "calibration.npz")]
    command += ["--out", str(bundle), "--name", name]
    log = sources / "log.txt"
    before, started = os.times(), time.perf_counter()
    with (
        log.open("w") as printed,
        contextlib.redirect_stdout(printed),
        contextlib.redirect_stderr(printed),
    ):
        status = export(command)
    seconds, after = time.perf_counter() - started, os.times()
    return CatalogueBuild(
        status=status,
        printed=log.read_text(),
        seconds=seconds,
        cpu_seconds=sum(after[:4]) - sum(before[:4]),
        sources=sources,
        bundle=bundle,
    )


def _cells(name: str, built: CatalogueBuild) -> list[str]:
    with safe_open(built.sources / f"{name}.safetensors", "np") as weights:
        numbers = sum(weights.get_tensor(key).size for key in weights.keys())  # noqa: SIM118
    cells = [name, f"{numbers:,}"]
    if built.status:
        cells += ["nothing", "", built.printed.strip().splitlines()[-1]]
    else:
        manifest = Bundle.open(built.bundle).manifest
        proven = [v for v in VARIANTS if v not in manifest.not_built]
        kept = [f"{v}: {len(r.kept)} of {r.layers}" for v, r in manifest.repaired.items()]
        cells += ["all" if len(proven) == len(VARIANTS) else ", ".join(proven), "; ".join(kept)]
        cells += ["; ".join(_reasons(manifest))]
    return [*cells, f"{built.cpu_seconds:.0f}", f"{built.seconds:.0f}"]


def _reasons(manifest: Manifest) -> list[str]:
    """The beginnings of the reasons why variants are missing."""
    missing = {v: manifest.not_built[v] for v in VARIANTS if v in manifest.not_built}
    return [
        f"{variant}: {textwrap.shorten(reason, SHOWN, placeholder=' ...')}"
        for variant, reason in missing.items()
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Print a row for each network; the status is 1 if any build failed."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.export.catalogue_builds",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--networks", default=",".join(NETWORKS), help="default: all")
    parser.add_argument("--samples", type=int, default=SAMPLES, help="default: %(default)s")
    parser.add_argument("--calibration", type=int, default=CALIBRATION, help="default: %(default)s")
    parser.add_argument("--work", type=Path, default=Path("artifacts/catalogue"))
    arguments = parser.parse_args(argv)
    print(f"| {' | '.join(COLUMNS)} |\n|{' --- |' * len(COLUMNS)}", flush=True)  # noqa: T201
    failed = 0
    for name in arguments.networks.split(","):
        sources = arguments.work / "sources" / name
        sources.mkdir(parents=True, exist_ok=True)
        built = build_network(
            name,
            sources,
            arguments.work / "bundles" / name,
            samples=arguments.samples,
            calibration=arguments.calibration,
        )
        failed += built.status != 0
        print(f"| {' | '.join(_cells(name, built))} |", flush=True)  # noqa: T201
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
