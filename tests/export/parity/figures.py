"""Figures of an honest network, made by hand to test the judge without a run."""

from typing import Any

from export.bundle.manifest import SampleSet, TensorSpec
from export.bundle.metrics import Comparison, LabelFigures
from export.bundle.tolerances import TOLERANCES, tolerance_for
from export.parity.schema import (
    ALONE,
    EDGE_CASES,
    Coverage,
    FileFigures,
    Layer,
    LocalFigures,
    MutantResult,
    ParityFigures,
    Row,
)
from export.provenance.figures import WeightFigures

SAMPLES = 100_000
CPU, CUDA = (
    [row.variant for row in TOLERANCES if row.device == device] for device in ("cpu", "cuda")
)
HONEST_LOCAL = LocalFigures(rms=1.0, largest=1.0, bound=0.1, visible=100.0)


def comparison(**changes: Any) -> Comparison:
    """A comparison of outputs without any error."""
    figures = {
        **dict.fromkeys(("non_finite", "max_abs_error", "scaled_error"), 0),
        "samples": SAMPLES,
        "largest_value": 10.0,
        "rms_ratio": 1.0,
        "sqnr_db": 60.0,
        "worst": (0,),
        "floor_rms": 1.0,
        "floor_largest": 1.0,
        "labels": labels(),
    }
    return Comparison.model_validate(figures | changes)


def labels(**changes: Any) -> LabelFigures:
    """Labels without any difference."""
    counts = ("flips", "decided_flips", "near_ties", "ties", "uncertain")
    figures = {
        **dict.fromkeys(counts, 0),
        "samples": SAMPLES,
        "largest_flip_margin": 0.0,
        "smallest_margin": 1.0,
        "largest_error": 0.1,
        "accuracy": 0.9,
        "eager_accuracy": 0.9,
    }
    return LabelFigures.model_validate(figures | changes)


def row(variant: str = "onnx", **changes: Any) -> Row:
    """A variant at one batch size."""
    figures = {
        "variant": variant,
        "batch_size": 256,
        "samples": SAMPLES,
        "softmax_error": 0.0,
        "outputs": {"logits": comparison()},
        "batch_invariance": None,
    }
    return Row.model_validate(figures | changes)


def edge_row(variant: str = "onnx", **changes: Any) -> Row:
    """A variant's row for the single edge case."""
    output = comparison(labels=None, **changes)
    return row(variant, block=EDGE_CASES, samples=1, outputs={"logits": output})


def layer(**changes: Any) -> Layer:
    """A value inside the graph whose operator is exact."""
    words = dict.fromkeys(("value", "node", "op", "module", "source", "code"), "x")
    figures = {"scaled_error": 0.0, "rms_ratio": 1.0, "max_abs_error": 0.0, "exact": False}
    return Layer.model_validate({**words, **figures, "local": HONEST_LOCAL, **changes})


def fault(**changes: Any) -> MutantResult:
    """A mutant that changes no measured figure."""
    figures = {"weights": 0.0, "exact": 0.0, "softmax_error": 0.0}
    made = {"name": "a mutant", "planted": "somewhere", "figures": figures, "caught_by": ()}
    return MutantResult.model_validate({**made, "outputs": {"logits": comparison()}, **changes})


def weights(**changes: Any) -> WeightFigures:
    """A file whose numbers all equal the checkpoint's."""
    return WeightFigures.model_validate({"error": 0.0, "worst": "", "problems": (), **changes})


def honest(device: str = "cpu", **changes: Any) -> ParityFigures:
    """All figures of a network whose files have no fault, for all variants of a device."""
    variants = CPU if device == "cpu" else CUDA
    figures = {
        "name": "network",
        "device": device,
        "edge_cases": ("full",),
        "proof": SampleSet(name="samples", samples=SAMPLES, sha256="0" * 64),
        "outputs": (TensorSpec(name="logits", datatype="FP32", shape=(-1, 10), kind="logits"),),
        "tolerances": tuple(tolerance_for(variant, device) for variant in variants),
        "rows": tuple(row(variant) for variant in variants),
        "files": {
            variant: FileFigures(path="file", size_bytes=1, problems=(), weights=weights())
            for variant in variants
        },
        "neighbours": {variant: {"beside noise": 0.0, ALONE: 0.0} for variant in variants},
        "coverage": Coverage(samples=9, units=100, active_in_all=100, active=100, by_layer={}),
        "layers": (layer(),),
        "faults": (fault(figures={"weights": 1.0, "exact": 1.0}),),
        "variation": {"logits": 1_000.0},
        "distinct": 100,
        "worst": (),
        "not_checked": {},
        "versions": {},
    }
    return ParityFigures.model_validate(figures | changes)


def with_row(changed: Row, figures: ParityFigures | None = None) -> ParityFigures:
    """Honest figures with one row replaced or, for edge cases, added."""
    figures = figures or honest()
    kept = [r for r in figures.rows if changed.block or r.variant != changed.variant]
    return figures.model_copy(update={"rows": (*kept, changed)})
