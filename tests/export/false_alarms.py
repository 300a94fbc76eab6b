"""Measures false alarms of the gate: honest trainings from many seeds, each fully verified.

    python -m tests.export.false_alarms --seeds 20 --epochs 1
    python -m tests.export.false_alarms --seeds 20 --models "" --networks decoder,segmenter

These models are correct, so a FAILED is a false alarm, unless it reveals a real fault. The last
table shows how close to its tolerance each figure came. A run that was stopped can be resumed:
matching trainings and bundles under --work are reused.

``--networks`` adds networks of the catalogue, their weights and samples drawn anew with each seed.
Their float32 formats must pass. Float16 is only shown, because whether it is exact enough for such
weights depends on the network, not on the gate. There is no int8.
"""

import argparse
import contextlib
import json
import logging
import sys
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from export.build import ParityError, build
from export.bundle.manifest import BundleError
from export.bundle.store import Bundle
from export.bundle.tolerances import TOLERANCES, Tolerance, tolerance_for
from export.mnist.checkpoint import from_checkpoint
from export.parity.judge import judge
from export.parity.measure import FLOAT32
from export.parity.schema import ALONE, SCHEMA_VERSION, ParityFigures
from tests.export.catalogue import NETWORKS, SMALL, network_under_test
from training.__main__ import main as training
from training.checkpoint import CheckpointError, read_checkpoint
from training.config import PRESETS, TrainConfig
from training.data import Dataset, load_dataset

PRESET = "quick"
LOG = "log.txt"
# The other tolerances are derived from each network.
SAME_FOR_ALL = ("rms_multiple", "largest_multiple", "weights", "neighbours")
COLUMNS = (
    "seed", "model", "verdict", "onnx scaled", "onnx RMS ratio", "fp16 scaled", "int8 SQNR",
    "int8 flips", "mutants killed",
)  # fmt: skip


@dataclass(frozen=True)
class Run:
    """Result of the gate for one training; ``failures`` is empty if it passed."""

    model: str
    seed: int
    figures: ParityFigures
    failures: list[str]


def prove(config: TrainConfig, dataset: Dataset, data_dir: Path | None, work: Path) -> Run:
    """Train, export and prove one model, reusing an earlier run's results.

    Args:
        config: The training configuration, as the command line derives it from the preset.
        dataset: The images of ``data_dir``.
        data_dir: The folder of images for training's command line.
        work: A folder for this model and seed.
    """
    figures = _left_figures(config, dataset, work / "bundle")
    if figures is None:
        work.mkdir(parents=True, exist_ok=True)
        with (
            (work / LOG).open("a") as log,
            contextlib.redirect_stdout(log),
            contextlib.redirect_stderr(log),
        ):
            if not _is_left(config, work / "checkpoint"):
                _train(config, data_dir, work / "checkpoint")
            try:
                subject = from_checkpoint(work / "checkpoint", dataset)
                figures = build(subject, work / "bundle")[1]
            except ParityError as error:
                figures = error.figures
    # By the current table, which may differ from the one that the bundle was built with.
    return Run(config.model, config.seed, figures, judge(figures, TOLERANCES).failures)


def prove_network(name: str, seed: int, work: Path) -> Run:
    """Export and prove a network of the catalogue; only float32 and gate failures count.

    Args:
        name: One of ``catalogue.NETWORKS``.
        seed: Seed of its weights and samples.
        work: A folder for this network and seed.
    """
    work.mkdir(parents=True, exist_ok=True)
    with (
        (work / LOG).open("a") as log,
        contextlib.redirect_stdout(log),
        contextlib.redirect_stderr(log),
    ):
        try:
            subject = network_under_test(name, work, seed=seed)
            figures = build(subject, work / "bundle")[1]
        except ParityError as error:
            figures = error.figures
    judgement = judge(figures, figures.tolerances)
    failures = [
        failure
        for variant, found in judgement.by_variant.items()
        if variant in FLOAT32
        for failure in found
    ]
    return Run(name, seed, figures, [*failures, *judgement.general])


def _left_figures(config: TrainConfig, dataset: Dataset, folder: Path) -> ParityFigures | None:
    try:
        bundle = Bundle.open(folder)
        content = bundle.path("parity").read_text()
        if json.loads(content)["schema_version"] != SCHEMA_VERSION:
            return None
        figures = ParityFigures.model_validate_json(content)
    except (BundleError, ValidationError, KeyError):
        return None
    trained = bundle.manifest.training
    if trained is None or trained.data_sha256 != dataset.sha256:
        return None
    return figures if _same(config, TrainConfig.model_validate(trained.config)) else None


def _is_left(config: TrainConfig, folder: Path) -> bool:
    try:
        return _same(config, read_checkpoint(folder)[0].config)
    except CheckpointError:
        return False


def _same(asked: TrainConfig, found: TrainConfig) -> bool:
    # Training holds out fewer images from small data sets.
    return asked.with_changes(validation_images=found.validation_images) == found


def _train(config: TrainConfig, data_dir: Path | None, out: Path) -> None:
    command = ["train", "--model", config.model, "--preset", PRESET, "--device", "cpu"]
    command += ["--epochs", str(config.epochs), "--seed", str(config.seed), "--out", str(out)]
    if training([*command, *(["--data-dir", str(data_dir)] if data_dir else [])]) != 0:
        raise RuntimeError(f"training did not end well: see {out.parent / LOG}")


def measured(figures: ParityFigures, variant: str) -> dict[str, float]:
    """A variant's worst figures by the names of their tolerances, as ``judge`` compares them."""
    rows = [row for row in figures.rows if row.variant == variant]
    outputs = [output for row in rows for output in row.outputs.values()]
    labelled = [(output, output.labels) for output in outputs if output.labels]
    near = figures.neighbours.get(variant, {})
    invariance = [row.batch_invariance for row in rows if row.batch_invariance is not None]
    weights = figures.files[variant].weights
    found = {
        "scaled_error": [output.scaled_error for output in outputs],
        "rms_ratio": [output.rms_ratio for output in outputs],
        "batch_invariance": invariance + [d for name, d in near.items() if name == ALONE],
        "neighbours": [d for name, d in near.items() if name != ALONE],
        "rms_multiple": [output.floor_rms for output in outputs if output.floor_rms is not None],
        "largest_multiple": [
            output.floor_largest for output in outputs if output.floor_largest is not None
        ],
        "sample_spread": [
            o.sample_spread for o in outputs if variant in ("onnx-fp16", "onnx-int8")
        ],
        "softmax_error": [row.softmax_error for row in rows],
        "weights": [weights.error] if weights else [],
        "sqnr_db": [-output.sqnr_db for output in outputs],
        "flip_share": [labels.decided_flips / labels.samples for _, labels in labelled],
        "tie_share": [labels.ties / labels.samples for _, labels in labelled],
        "accuracy_drop": [
            (labels.eager_accuracy or 0) - labels.accuracy
            for _, labels in labelled
            if labels.accuracy is not None
        ],
    }
    worst = {name: max(values) for name, values in found.items() if values}
    return worst | ({"sqnr_db": -worst["sqnr_db"]} if "sqnr_db" in worst else {})


def _cells(run: Run) -> list[str]:
    fp32 = measured(run.figures, "onnx")
    caught, planted = judge(run.figures, run.figures.tolerances).killed
    return [
        str(run.seed),
        run.model,
        "FAILED" if run.failures else "passed",
        f"{fp32['scaled_error']:.1e}",
        f"{fp32['rms_ratio']:.2f}",
        *_reduced_cells(run.figures),
        f"{caught}/{planted}",
    ]


def _reduced_cells(figures: ParityFigures) -> list[str]:
    cells = ["not built"] * 3
    if "onnx-fp16" in figures.variants:
        cells[0] = f"{measured(figures, 'onnx-fp16')['scaled_error']:.1e}"
    if "onnx-int8" in figures.variants:
        quantized = figures.largest("onnx-int8")
        flips = max(c.labels.flips for c in quantized.outputs.values() if c.labels)
        cells[1] = f"{measured(figures, 'onnx-int8')['sqnr_db']:.1f} dB"
        cells[2] = f"{flips} of {quantized.samples}"
    return cells


def headroom(
    runs: Sequence[Run], names: Collection[str] = tuple(Tolerance.model_fields)
) -> Iterator[list[str]]:
    """Rows for each variant and tolerance, with the worst figure of all runs and the bound.

    Args:
        runs: The measured runs.
        names: The tolerances to show.
    """
    variants = dict.fromkeys(v for run in runs for v in run.figures.variants)
    for variant in variants:
        allowed = tolerance_for(variant, "cpu")
        asked = [(run, measured(run.figures, variant)) for run in runs]
        for name in names:
            bound = getattr(allowed, name)
            found = [(run, figures[name]) for run, figures in asked if name in figures]
            if bound is None or not found:
                continue
            lower = name == "sqnr_db"
            run, worst = (min if lower else max)(found, key=lambda pair: pair[1])
            yield [
                variant,
                name,
                f"{worst:.3g}",
                f"{'>=' if lower else '<='} {bound:.3g}",
                _room(worst, bound, lower=lower),
                f"{run.model}, seed {run.seed}",
            ]


def _room(worst: float, bound: float, *, lower: bool) -> str:
    if lower:
        return f"{worst - bound:+.1f} dB"
    if bound == 0:
        return "exact" if worst == 0 else "none"
    return "all" if worst <= 0 else f"{bound / worst:.1f} x"


def main(argv: Sequence[str] | None = None) -> int:
    """Print a row for each run and the headroom; the status is 1 if the gate failed any."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.export.false_alarms",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seeds", type=int, default=20, help="default: %(default)s")
    parser.add_argument("--models", default="mlp,cnn", help="default: %(default)s")
    parser.add_argument("--networks", default="", help="of the catalogue, or small; default: none")
    parser.add_argument("--epochs", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--data-dir", type=Path, help="the four IDX files; default: as training's")
    parser.add_argument("--work", type=Path, default=Path("artifacts/false_alarms"))
    parser.add_argument("--json", type=Path, help="write the worst figures of each run there too")
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.WARNING)  # first: training's would log each epoch
    models = [model for model in arguments.models.split(",") if model]
    networks = [name for name in arguments.networks.split(",") if name]
    networks = list(SMALL) if networks == ["small"] else networks
    dataset = load_dataset(arguments.data_dir) if models else None
    runs: list[Run] = []
    _print_row(COLUMNS)
    _print_row(["---"] * len(COLUMNS))
    for seed in range(arguments.seeds):
        for name in networks:
            runs.append(prove_network(name, seed, arguments.work / f"{name}-{seed}"))
            _print_row(_cells(runs[-1]))
        for model in models:
            assert dataset is not None
            config = PRESETS[model, PRESET].with_changes(epochs=arguments.epochs, seed=seed)
            work = arguments.work / f"{model}-{seed}"
            runs.append(prove(config, dataset, arguments.data_dir, work))
            _print_row(_cells(runs[-1]))
    print(_summary(runs))  # noqa: T201
    if arguments.json:
        arguments.json.write_text(json.dumps([_as_json(run) for run in runs], indent=1) + "\n")
    return int(any(run.failures for run in runs))


def _summary(runs: Sequence[Run]) -> str:
    failed = [run for run in runs if run.failures]
    lines = ["", f"{len(failed)} of {len(runs)} honest models failed the gate"]
    lines += [f"- {r.model}, seed {r.seed}: {failure}" for r in failed for failure in r.failures]
    rows = [["variant", "figure", "worst", "allowed", "headroom", "worst run"], ["---"] * 6]
    trained = [run for run in runs if run.model not in NETWORKS]
    drawn = [run for run in runs if run.model in NETWORKS]
    rows += [*headroom(trained), *headroom(drawn, SAME_FOR_ALL)]
    lines += ["", *(f"| {' | '.join(row)} |" for row in rows)]
    return "\n".join(lines)


def _as_json(run: Run) -> dict[str, Any]:
    kept = {"model": run.model, "seed": run.seed, "failures": run.failures}
    worst = {variant: measured(run.figures, variant) for variant in run.figures.variants}
    return kept | {"worst": worst, "versions": run.figures.versions}


def _print_row(cells: Sequence[str]) -> None:
    print(f"| {' | '.join(cells)} |", flush=True)  # noqa: T201


if __name__ == "__main__":
    sys.exit(main())
