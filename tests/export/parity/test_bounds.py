"""Each bound of the table is exact: a figure passes at the bound and fails above it."""

import math
from typing import Any

import pytest

from export.bundle.tolerances import (
    BOUNDS,
    TOLERANCES,
    ToleranceError,
    can_be_derived,
    changed,
    tolerance_for,
    with_rows,
)
from export.parity.judge import judge
from export.parity.schema import ALONE, FileFigures, ParityFigures
from tests.export.parity import figures as made

# Flips and accuracy of 100,000 samples: 0.1% are 100, plus 3 * sqrt(100) by chance.
FLIPS, CHANCE = 130, 30 / 100_000
ONNX = tolerance_for("onnx", "cpu")
FLOAT32 = {"rms_multiple": 3, "largest_multiple": 4, "softmax_error": 1e-6, "evidence": 1}
REDUCED = {"rms_multiple": 3, "largest_multiple": 4, "sample_spread": 40, "evidence": 1}
HALF = {"scaled_error": 2e-3, "batch_invariance": 2e-3, "weights": 1.01 / 2048}
HALF |= {"softmax_error": 2 / 2048, "flip_share": FLIPS, "tie_share": 300}
HALF |= {"accuracy_drop": 0.0005 + CHANCE}
TF32 = {"scaled_error": 5e-3, "batch_invariance": 5e-3, "neighbours": 5e-3, "weights": 5e-7}
TF32 |= {"flip_share": FLIPS, "accuracy_drop": 0.0005 + CHANCE, "softmax_error": 1e-6}
INT8 = {"weights": 0.51, "sqnr_db": 35, "flip_share": FLIPS, "tie_share": 0, "neighbours": 0}
INT8 |= {"accuracy_drop": 0.002 + CHANCE, "softmax_error": 1e-6}
ONNX_CUDA = {"scaled_error": 5e-6, "rms_ratio": 20, "batch_invariance": 5e-6, "neighbours": 5e-6}
EXPECTED: dict[tuple[str, str], dict[str, float]] = {
    ("torchscript", "cpu"): {
        **FLOAT32,
        "scaled_error": 0,
        "rms_ratio": 1,
        "neighbours": 0,
        "weights": 0,
    },
    ("torchscript-frozen", "cpu"): {
        **FLOAT32,
        "scaled_error": 2e-6,
        "rms_ratio": 8,
        "neighbours": 0,
    },
    ("pt2", "cpu"): {
        **FLOAT32,
        "scaled_error": 2e-6,
        "rms_ratio": 8,
        "neighbours": 0,
        "weights": 0,
    },
    ("onnx", "cpu"): {
        **FLOAT32,
        "scaled_error": 2e-6,
        "rms_ratio": 8,
        "neighbours": 0,
        "weights": 5e-7,
        "batch_invariance": 2e-6,
    },
    ("onnx-fp16", "cpu"): REDUCED | HALF | {"neighbours": 0},
    ("onnx-int8", "cpu"): REDUCED | INT8,
    ("onnx", "cuda"): FLOAT32 | ONNX_CUDA | {"weights": 5e-7},
    ("onnx-tf32", "cuda"): REDUCED | TF32,
    ("onnx-fp16", "cuda"): REDUCED | HALF | {"neighbours": 2e-3},
    ("torchscript", "cuda"): FLOAT32 | ONNX_CUDA | {"weights": 0},
}
CASES = [
    (*key, field, bound)
    for key, bounds in EXPECTED.items()
    for field, bound in bounds.items()
    if field != "evidence"
]


def _figures(variant: str, device: str, field: str, value: float) -> ParityFigures:
    """Honest figures with another value for the one that a field of the tolerance bounds."""
    honest = made.honest(device)
    if field == "weights":
        weights = made.weights(error=value, worst="w[0]")
        file = FileFigures(path="file", size_bytes=1, problems=(), weights=weights)
        return honest.model_copy(update={"files": honest.files | {variant: file}})
    if field == "neighbours":
        neighbours = honest.neighbours | {variant: {"beside noise": value, ALONE: 0.0}}
        return honest.model_copy(update={"neighbours": neighbours})
    if field in ("batch_invariance", "softmax_error"):
        changed_row = made.row(variant, **{field: value})
    else:
        changed_row = made.row(variant, outputs={"logits": _output(field, value)})
    return made.with_row(changed_row, honest)


def _output(field: str, value: float) -> Any:
    labels = {
        "flip_share": {"decided_flips": value},
        "tie_share": {"ties": value},
        "accuracy_drop": {"accuracy": 0.9 - value},
    }
    names = {"rms_multiple": "floor_rms", "largest_multiple": "floor_largest"}
    if field in labels:
        return made.comparison(labels=made.labels(**labels[field]))
    return made.comparison(**{names.get(field, field): value})


def _failures(variant: str, device: str, field: str, value: float) -> list[str]:
    figures = _figures(variant, device, field, value)
    return judge(figures, figures.tolerances).failures


def test_honest_figures_pass() -> None:
    """The figures that the other tests modify pass unmodified."""
    for device in ("cpu", "cuda"):
        figures = made.honest(device)
        assert judge(figures, figures.tolerances).failures == []


@pytest.mark.parametrize(("variant", "device", "field", "bound"), CASES)
def test_a_figure_may_reach_its_bound_and_no_more(
    variant: str, device: str, field: str, bound: float
) -> None:
    """A figure passes at its bound, and fails a millionth above it or if it is NaN."""
    step = {"flip_share": 1, "tie_share": 1, "sqnr_db": -1e-6}.get(field, bound * 1e-6 or 1e-12)
    reached = bound - 1e-9 if field == "accuracy_drop" else bound
    assert _failures(variant, device, field, reached) == []
    (failure,) = _failures(variant, device, field, bound + step)
    assert failure.startswith(variant)
    if field not in ("flip_share", "tie_share"):
        assert len(_failures(variant, device, field, math.nan)) == 1


def test_each_row_judges_these_figures_and_no_others() -> None:
    """A figure that a row does not bound may have any value."""
    assert {(row.variant, row.device) for row in TOLERANCES} == EXPECTED.keys()
    for row in TOLERANCES:
        judged = {field for field in BOUNDS if getattr(row, field) is not None}
        assert judged | {"softmax_error"} == (
            EXPECTED[row.variant, row.device].keys() | {"softmax_error", "sample_spread"}
        )


def test_a_fall_of_accuracy_may_reach_its_bound() -> None:
    """A fall by a quarter passes if it is allowed, without any allowance for chance."""
    row = tolerance_for("onnx-int8", "cpu")
    row = row.model_copy(update={"accuracy_drop": 0.25, "flip_share": 0})
    for accuracy, passes in ((0.5, True), (0.4999, False)):
        labels = made.labels(accuracy=accuracy, eager_accuracy=0.75)
        output = made.comparison(labels=labels)
        figures = made.with_row(made.row("onnx-int8", outputs={"logits": output}))
        failures = judge(figures, with_rows(TOLERANCES, [row])).failures
        assert (failures == []) == passes


def test_a_label_may_flip_within_twice_the_allowed_error_of_the_two_best() -> None:
    """Two logits may each be off by the allowed error, 2^-19 of a largest value of 8."""
    row = tolerance_for("onnx", "cpu").model_copy(update={"scaled_error": 2**-19})
    for margin, passes in ((2**-15, True), (1.001 * 2**-15, False)):
        labels = made.labels(flips=1, largest_flip_margin=margin)
        output = made.comparison(labels=labels, largest_value=8.0)
        figures = made.with_row(made.row(outputs={"logits": output}))
        failures = judge(figures, with_rows(TOLERANCES, [row])).failures
        assert (failures == []) == passes


def test_a_chance_of_accuracy_grows_with_near_ties_and_allowed_flips() -> None:
    """For 300 near ties and 100 allowed flips it is 3 * sqrt(400), 60 of 100,000 samples."""
    for drop, passes in ((0.002 + 0.00059, True), (0.002 + 0.00061, False)):
        labels = made.labels(near_ties=300, accuracy=0.9 - drop)
        output = made.comparison(labels=labels)
        figures = made.with_row(made.row("onnx-int8", outputs={"logits": output}))
        assert (judge(figures, figures.tolerances).failures == []) == passes


@pytest.mark.parametrize(
    ("change", "is_looser"),
    [
        ("onnx.cpu.scaled_error=2e-6", False),
        ("onnx.cpu.scaled_error=2.1e-6", True),
        ("onnx.cpu.scaled_error=none", True),
        ("onnx-fp16.cpu.rms_ratio=8", False),
        ("onnx-int8.cpu.sqnr_db=35", False),
        ("onnx-int8.cpu.sqnr_db=36", False),
        ("onnx-int8.cpu.sqnr_db=34", True),
        ("onnx-int8.cpu.flip_share=0.001", False),
        ("onnx-int8.cpu.flip_share=0.002", True),
        ("onnx-int8.cpu.flip_share=none", False),
        ("onnx.cpu.flip_share=0.001", True),
    ],
)
def test_what_allows_more_is_said_to_be_looser(change: str, is_looser: bool) -> None:
    """An equal number is not looser and None is, except for flips, where None is strictest."""
    variant, device, _ = change.split(".", 2)
    row = tolerance_for(variant, device, changed([change], "it is a test"))
    assert (row.loosened is not None) == is_looser


def test_a_floor_is_known_of_float32_on_the_cpu_alone() -> None:
    """Rows of reduced precision, GPUs and bit-equal files keep the table's numbers."""
    derivable = {(row.variant, row.device) for row in TOLERANCES if can_be_derived(row)}
    assert derivable == {("torchscript-frozen", "cpu"), ("pt2", "cpu"), ("onnx", "cpu")}


def test_a_derived_row_judges_batches_only_where_the_table_does() -> None:
    """A derived row that judges TorchScript's batches is refused: eager depends on them, too."""
    frozen = tolerance_for("torchscript-frozen", "cpu").model_copy(update={"reason": "derived: x"})
    assert frozen.beyond_table() == []
    assert frozen.model_copy(update={"rms_ratio": 101}).beyond_table() != []
    traced = tolerance_for("torchscript", "cpu").model_copy(update={"reason": "derived: x"})
    assert traced.model_copy(update={"scaled_error": 1e-4}).beyond_table() != []
    onnx = tolerance_for("onnx", "cpu").model_copy(update={"reason": "derived: x"})
    assert onnx.model_copy(update={"batch_invariance": 1e-3}).beyond_table() == []
    assert onnx.model_copy(update={"batch_invariance": None}).beyond_table() != []


@pytest.mark.parametrize(
    ("changes", "refused"),
    [
        ({"scaled_error": 1e-3}, False),
        ({"scaled_error": 1.1e-3}, True),
        ({"rms_ratio": 100}, False),
        ({"rms_ratio": 101}, True),
        ({"weights": 1e-3}, True),
        ({"largest_multiple": 5}, True),
        ({"evidence": None}, True),
    ],
)
def test_a_derived_row_is_accepted_up_to_its_cap(changes: dict[str, Any], refused: bool) -> None:
    """A bundle may have its network's own numbers, but no more than float32 can need."""
    row = ONNX.model_copy(update={"reason": "derived: from the network"} | changes)
    assert bool(row.beyond_table()) == refused
    if "scaled_error" in changes:
        assert row.model_copy(update={"reason": "mine"}).beyond_table()


def test_a_multiple_is_at_least_1() -> None:
    """The strictest multiple of the floor is 1, and no bound is negative."""
    for field in ("rms_multiple", "largest_multiple", "sample_spread", "rms_ratio"):
        row = tolerance_for("onnx", "cpu", changed([f"onnx.cpu.{field}=1"], None))
        assert getattr(row, field) == 1
        with pytest.raises(ToleranceError, match="is not a valid"):
            changed([f"onnx.cpu.{field}=0.99"], None)
    for field in ("scaled_error", "batch_invariance", "neighbours", "weights", "softmax_error"):
        row = tolerance_for("onnx", "cpu", changed([f"onnx.cpu.{field}=0"], None))
        assert getattr(row, field) == 0
        with pytest.raises(ToleranceError, match="is not a valid"):
            changed([f"onnx.cpu.{field}=-1e-9"], None)
    for field in ("flip_share", "tie_share", "accuracy_drop"):
        for share in ("1.01", "-0.01"):
            with pytest.raises(ToleranceError, match="is not a valid"):
                changed([f"onnx-int8.cpu.{field}={share}"], "a test")
