"""From figures to verdicts, checked at the bounds on figures made by hand."""

import math
from typing import Any

import pytest

from export.bundle.manifest import TensorSpec
from export.bundle.tolerances import BOUNDS, Tolerance, tolerance_for, with_rows
from export.parity.judge import (
    FAILED,
    INCONCLUSIVE,
    PASSED,
    blind_layers,
    explain,
    first_wrong,
    inside_words,
    is_inexact,
    judge,
    kills,
)
from export.parity.schema import ALONE, Coverage, FeatureFigures, LocalFigures, ParityFigures
from tests.export.parity import figures as made

ONNX, INT8 = tolerance_for("onnx", "cpu"), tolerance_for("onnx-int8", "cpu")


def _failures(figures: ParityFigures, row: Tolerance | None = None) -> list[str]:
    return judge(figures, with_rows(figures.tolerances, [row] if row else [])).failures


def _local(**changes: Any) -> LocalFigures:
    return made.HONEST_LOCAL.model_copy(update=changes)


@pytest.mark.parametrize(
    ("change", "killed"),
    [
        ({"scaled_error": 2e-6}, False),
        ({"scaled_error": 2.1e-6}, True),
        ({"rms_ratio": 8}, False),
        ({"rms_ratio": 8.1}, True),
        ({"floor_rms": 3}, False),
        ({"floor_rms": 3.1}, True),
        ({"floor_largest": 4}, False),
        ({"floor_largest": 4.1}, True),
        ({"floor_rms": math.nan}, True),
        ({"sample_spread": 99}, False),
    ],
)
def test_a_mutant_is_killed_beyond_a_limit(change: dict[str, float], killed: bool) -> None:
    """Each figure of the answers that the fp32 file's tolerance bounds can kill."""
    mutant = made.fault(outputs={"logits": made.comparison(**change)})
    assert kills(mutant, ONNX) == (("samples",) if killed else ())


@pytest.mark.parametrize(
    ("change", "killed"),
    [
        ({"sqnr_db": 35}, False),
        ({"sqnr_db": 34.9}, True),
        ({"sample_spread": 40}, False),
        ({"sample_spread": 40.1}, True),
        ({"scaled_error": 1.0, "rms_ratio": 99.0}, False),
    ],
)
def test_a_mutant_of_int8_is_seen_by_its_noise(change: dict[str, float], killed: bool) -> None:
    """Int8 has no bound for single values."""
    mutant = made.fault(outputs={"logits": made.comparison(**change)})
    assert kills(mutant, INT8) == (("samples",) if killed else ())


def test_a_label_that_flips_kills() -> None:
    """A flipped label exceeds its limit, and equal integers kill nothing."""
    labels = made.labels(flips=1, largest_flip_margin=0.5)
    flipped = made.fault(outputs={"logits": made.comparison(labels=labels)})
    assert kills(flipped, ONNX) == ("samples",)
    equal = made.fault(outputs={"ids": made.comparison(unequal=0, sqnr_db=1.0, floor_rms=9.0)})
    assert kills(equal, ONNX) == kills(equal, INT8) == ()


def test_the_worst_of_several_outputs_kills() -> None:
    """One output beyond its limit is enough, as are probabilities that are not the softmax."""
    outputs = {"a": made.comparison(), "b": made.comparison(floor_rms=6.0)}
    assert kills(made.fault(outputs=outputs), ONNX) == ("samples",)
    for error, killed in ((1e-6, ()), (1.1e-6, ("samples",))):
        assert kills(made.fault(figures={"softmax_error": error}), ONNX) == killed


@pytest.mark.parametrize(
    ("figures", "row", "killed"),
    [
        ({"weights": 5e-7}, ONNX, ()),
        ({"weights": 5.1e-7}, ONNX, ("weights",)),
        ({"weights": math.nan}, ONNX, ("weights",)),
        ({"weights": 1.0}, ONNX.model_copy(update={"weights": None}), ()),
        ({"exact": 1e-30}, ONNX, ("exact values",)),
        ({"weights": 1.0, "exact": 1.0}, ONNX, ("weights", "exact values")),
    ],
)
def test_weights_and_exact_values_kill_by_themselves(
    figures: dict[str, float], row: Tolerance, killed: tuple[str, ...]
) -> None:
    """Stored numbers have a bound, and any difference in bit-equal values kills."""
    mutant = made.fault(figures=figures)
    assert kills(mutant, row) == killed


@pytest.mark.parametrize(
    ("change", "wrong"),
    [
        ({"rms": 3}, False),
        ({"rms": 3.1}, True),
        ({"largest": 4}, False),
        ({"largest": 4.1}, True),
        ({"bound": 1}, False),
        ({"bound": 1.1}, True),
        ({"largest": math.nan}, True),
    ],
)
def test_an_operator_alone_may_reach_its_limit(change: dict[str, float], wrong: bool) -> None:
    """First wrong value, verdict on the file and mutants use the same rule."""
    mutant = made.fault(local=_local(**change))
    assert kills(mutant, ONNX) == (("layers",) if wrong else ())
    layers = (made.layer(), made.layer(local=_local(**change)))
    assert first_wrong(layers, ONNX) == (1 if wrong else None)
    failures = _failures(made.honest(layers=layers))
    assert len(failures) == int(wrong)
    assert all("is not the result of its operator" in failure for failure in failures)


def test_who_allows_more_than_the_largest_multiple_allows_more_of_the_bound() -> None:
    """Twice LARGEST_MULTIPLE doubles the bound of a sum's rounding; less leaves it at 1."""
    for multiple, bound, wrong in (
        (8, 2.0, False),
        (8, 2.1, True),
        (2, 1.0, False),
        (2, 1.1, True),
    ):
        row = ONNX.model_copy(update={"largest_multiple": multiple})
        mutant = made.fault(local=_local(bound=bound))
        assert (kills(mutant, row) == ("layers",)) == wrong
    row = ONNX.model_copy(update={"largest_multiple": None})
    assert kills(made.fault(local=_local(bound=9.0, largest=9.0)), row) == ()


@pytest.mark.parametrize(
    ("change", "wrong"),
    [
        ({"scaled_error": 2e-6}, False),
        ({"scaled_error": 2.1e-6}, True),
        ({"scaled_error": math.nan}, True),
        ({"rms_ratio": 8}, False),
        ({"rms_ratio": 8.1}, True),
        ({"exact": True, "max_abs_error": 0.0}, False),
        ({"exact": True, "max_abs_error": 1e-30}, True),
        ({"exact": False, "max_abs_error": 1.0}, False),
    ],
)
def test_a_value_that_was_not_computed_alone_is_judged_by_its_distance(
    change: dict[str, Any], wrong: bool
) -> None:
    """The distance is to the checkpoint's value; for exactly rounded operators it must be 0."""
    layers = (made.layer(local=None), made.layer(local=None, **change), made.layer())
    assert first_wrong(layers, ONNX) == (1 if wrong else None)
    found = _failures(made.honest(layers=layers))
    assert len(found) == int(wrong and bool(change.get("exact")))


def test_the_explanation_names_the_first_wrong_value_and_the_one_before() -> None:
    """It gives the node and both errors, or says that all is within the tolerance."""
    right = made.layer(value="right", scaled_error=1e-7)
    wrong = made.layer(value="wrong", local=_local(rms=9.0))
    words = explain((right, wrong), ONNX)
    assert "first wrong value: wrong" in words
    assert "the value before it (right) has 1.0e-07" in words
    assert "RMS 9.0 x and largest error 1.0 x" in words
    assert "it is the first value" in explain((wrong, right), ONNX)
    assert "no intermediate value exceeds the tolerance of onnx; 1 of 1" in explain((right,), ONNX)


def test_half_of_the_values_inside_are_enough() -> None:
    """Below half, a note says that less than half was compared, or that none was."""
    assert "less than half" not in inside_words(1, 1)
    assert "less than half" in inside_words(49, 51)
    assert "no intermediate value was compared" in inside_words(0, 1)
    assert inside_words(3, 1).startswith("3 of 4 ")


def test_a_weight_is_visible_at_twice_its_limit() -> None:
    """Below that a layer is blind, and a value without a weight is not a blind layer."""
    for visible, blind in ((1.99, 1), (2.0, 0), (None, 0)):
        assert len(blind_layers((made.layer(local=_local(visible=visible)),))) == blind
    assert blind_layers((made.layer(local=None),)) == []


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        ({"variation": {"logits": 6.0}}, INCONCLUSIVE),
        ({"variation": {"logits": 6.1}}, PASSED),
        ({"variation": {"logits": math.nan}}, INCONCLUSIVE),
        ({"variation": {}}, PASSED),
        ({"distinct": 3}, INCONCLUSIVE),
        ({"distinct": 4}, PASSED),
        ({"distinct": None}, PASSED),
        ({"layers": ()}, INCONCLUSIVE),
        ({"faults": ()}, INCONCLUSIVE),
        ({"faults": (made.fault(not_applicable="none"),)}, INCONCLUSIVE),
        ({"faults": (made.fault(figures={"weights": 1.0}),)}, INCONCLUSIVE),
        ({"layers": (), "schema_version": 2}, PASSED),
    ],
)
def test_what_would_have_shown_no_fault_is_inconclusive(
    change: dict[str, Any], verdict: str
) -> None:
    """Conclusive runs vary beyond the floor, have four distinct samples and reveal mutants."""
    figures = made.honest(**change)
    judgement = judge(figures, figures.tolerances)
    assert judgement.verdict == verdict
    assert judgement.passed == (verdict == PASSED)
    given_up = ONNX.model_copy(update={"evidence": None})
    assert _failures(figures, given_up) == []


def test_what_is_wrong_is_no_longer_inconclusive() -> None:
    """A failure together with a lack of evidence is a failure."""
    figures = made.with_row(made.row(softmax_error=1.0), made.honest(distinct=3))
    assert judge(figures, figures.tolerances).verdict == FAILED


def test_outputs_must_vary_by_the_multiple_that_is_allowed() -> None:
    """A larger RMS bound requires more variation, and no bound requires twice the floor."""
    figures = made.honest(variation={"logits": 7.0})
    for multiple, passes in ((3.5, False), (3.4, True), (None, True)):
        row = ONNX.model_copy(update={"rms_multiple": multiple})
        assert (_failures(figures, row) == []) == passes
    unbounded = ONNX.model_copy(update={"rms_multiple": None})
    for variation, passes in ((2.0, False), (2.1, True)):
        figures = made.honest(variation={"logits": variation})
        assert (_failures(figures, unbounded) == []) == passes


def test_a_gpu_is_asked_for_no_mutants() -> None:
    """Mutants and inner values are checked only on the CPU."""
    figures = made.honest("cuda", faults=(), layers=())
    assert _failures(figures) == []


@pytest.mark.parametrize(
    ("all_of_them", "active", "passes"),
    [(100, 95, True), (100, 94, False), (0, 0, False)],
)
def test_95_of_100_units_are_enough(all_of_them: int, active: int, passes: bool) -> None:
    """The share is that of units that any sample activates; a dead network has none."""
    coverage = Coverage(samples=9, units=200, active_in_all=all_of_them, active=active, by_layer={})
    assert (_failures(made.honest(coverage=coverage)) == []) == passes
    without_units = coverage.model_copy(update={"units": 0})
    assert _failures(made.honest(coverage=without_units)) == []
    assert (without_units.share, without_units.share_of_all_samples) == (1, 1)
    assert coverage.share == active / 200


def test_an_answer_alone_in_its_batch_may_differ_as_at_another_batch_size() -> None:
    """A batch of one is another batch size, but among other samples nothing may change."""
    for situation, difference, passes in (
        (ALONE, 2e-6, True),
        (ALONE, 2.1e-6, False),
        ("beside noise", 1e-12, False),
    ):
        neighbours = {"onnx": {situation: difference}, "torchscript": {ALONE: 1.0}}
        assert (_failures(made.honest(neighbours=neighbours)) == []) == passes


@pytest.mark.parametrize(
    ("variant", "change", "passes"),
    [
        ("onnx", {"floor_largest": 4.0}, True),
        ("onnx", {"floor_largest": 4.1}, False),
        ("onnx", {"scaled_error": 1.0}, True),
        ("onnx", {"scaled_error": 1.0, "floor_largest": None}, False),
        ("onnx", {"rms_ratio": 99.0}, True),
        ("onnx-fp16", {"scaled_error": 1.0, "floor_largest": None}, False),
        ("torchscript", {"scaled_error": 1e-9}, False),
    ],
)
def test_edge_cases_are_held_against_their_own_floor(
    variant: str, change: dict[str, Any], passes: bool
) -> None:
    """Only the largest error counts; without a floor the table applies, bit-equality stays."""
    figures = made.with_row(made.edge_row(variant, **change))
    failures = _failures(figures)
    assert (failures == []) == passes
    assert all("edge case 'full'" in failure for failure in failures)


def test_samples_of_other_sizes_are_no_edge_cases() -> None:
    """Their scaled error and RMS are judged like those of the proof's own samples."""
    for change in ({"rms_ratio": 8.1}, {"scaled_error": 2.1e-6}):
        row = made.row(block="length 5", outputs={"logits": made.comparison(**change)})
        assert len(_failures(made.with_row(row))) == 1


def test_edge_cases_with_a_floor_may_depend_on_the_batch() -> None:
    """Answers far beyond the samples' have no scale for a comparison of batches."""
    edge = made.edge_row().model_copy(update={"batch_invariance": 1.0})
    assert _failures(made.with_row(edge)) == []
    without = made.edge_row(floor_largest=None).model_copy(update={"batch_invariance": 1.0})
    assert _failures(made.with_row(without)) != []


def test_verdicts_hold_the_worst_figures_of_samples() -> None:
    """They cover all batch sizes and outputs, but not edge cases."""
    near = made.comparison(scaled_error=1e-6, rms_ratio=2.0, sqnr_db=50.0, samples=9)
    small = made.row(batch_size=1, samples=9, threads=2, outputs={"logits": near})
    figures = made.honest()
    edge = made.edge_row(scaled_error=1.0, rms_ratio=99.0)
    figures = figures.model_copy(update={"rows": (*figures.rows, small, edge)})
    verdict = next(v for v in judge(figures, figures.tolerances).verdicts if v.variant == "onnx")
    assert (verdict.scaled_error, verdict.rms_ratio, verdict.sqnr_db) == (1e-6, 2.0, 50.0)
    assert (verdict.samples, verdict.batch_sizes, verdict.threads) == (
        made.SAMPLES,
        (1, 256),
        (1, 2),
    )
    assert (verdict.accuracy, verdict.certificate, verdict.label_flips) == (0.9, 10.0, 0)


def test_a_broken_variant_fails_without_rows_and_has_no_verdict() -> None:
    """The failure describes what happened, and other variants are judged as usual."""
    figures = made.honest()
    kept = {
        "rows": tuple(row for row in figures.rows if row.variant != "pt2"),
        "files": {v: file for v, file in figures.files.items() if v != "pt2"},
        "neighbours": {v: near for v, near in figures.neighbours.items() if v != "pt2"},
    }
    broken = figures.model_copy(update=kept | {"broken": {"pt2": "cannot be opened: SIGSEGV"}})
    judgement = judge(broken, broken.tolerances)
    assert judgement.by_variant["pt2"] == ["pt2: cannot be opened: SIGSEGV"]
    assert len(judgement.failures) == 1
    assert "pt2" not in {verdict.variant for verdict in judgement.verdicts}


def test_problems_of_files_and_weights_fail_their_variant() -> None:
    """Problems of the file's structure and numbers unlike the checkpoint's are failures."""
    figures = made.honest()
    weights = made.weights(problems=("w is not in the file",))
    file = figures.files["onnx"].model_copy(
        update={"problems": ("opset: expected 20",), "weights": weights}
    )
    spoilt = figures.model_copy(update={"files": figures.files | {"onnx": file}})
    expected = ["onnx: opset: expected 20", "onnx weights: w is not in the file"]
    assert judge(spoilt, spoilt.tolerances).by_variant["onnx"] == expected


def test_an_answer_beyond_the_tolerance_is_inexact() -> None:
    """For an edge case only the largest error counts, as in the verdict."""
    assert not is_inexact(made.row(), ONNX)
    beyond = 2 * (ONNX.rms_ratio or 0)
    assert is_inexact(made.row(outputs={"logits": made.comparison(rms_ratio=beyond)}), ONNX)
    assert not is_inexact(made.edge_row(rms_ratio=beyond), ONNX)
    assert is_inexact(made.edge_row(floor_largest=100.0), ONNX)


def test_a_mutant_that_nothing_kills_fails_the_gate() -> None:
    """This holds for fp32 and reduced precision, unless the mutant does not apply."""
    seen = made.honest().faults
    survivor = made.fault()
    (failure,) = _failures(made.honest(faults=(*seen, survivor)))
    assert failure == "mutation test: no check kills the mutant a mutant (somewhere)"
    (failure,) = _failures(made.honest(reduced_faults={"onnx-int8": (survivor,)}))
    assert failure == "onnx-int8: mutant not killed: a mutant (somewhere)"
    cannot = made.fault(not_applicable="it has no bias")
    figures = made.honest(faults=(*seen, cannot), reduced_faults={"onnx-int8": (cannot,)})
    judgement = judge(figures, figures.tolerances)
    assert (judgement.failures, judgement.killed) == ([], (1, 1))


def test_weights_that_are_not_judged_excuse_what_they_alone_would_have_killed() -> None:
    """Only a difference above the table's bound is excused; below it another check must see it."""
    row = ONNX.model_copy(update={"weights": None})
    seen = made.honest().faults
    for weights, passes in ((5.1e-7, True), (5e-7, False)):
        mutant = made.fault(figures={"weights": weights})
        assert (_failures(made.honest(faults=(*seen, mutant)), row) == []) == passes
    blind = made.layer(local=_local(visible=1.0))
    assert _failures(made.honest(layers=(blind,))) == []
    (reason,) = _failures(made.honest(layers=(blind,)), row)
    assert "the provenance of weights is not judged" in reason


def test_an_older_mutant_is_judged_by_the_figures_that_it_has() -> None:
    """Without its answers, its worst scaled error and RMS ratio have the same limits."""
    for figures, killed in (
        ({"scaled_error": 2e-6, "rms_ratio": 8.0}, False),
        ({"scaled_error": 2.1e-6, "rms_ratio": 1.0}, True),
        ({"scaled_error": 0.0, "rms_ratio": 8.1}, True),
    ):
        assert bool(kills(made.fault(outputs={}, figures=figures), ONNX)) == killed


def test_a_bound_of_0_asks_for_bit_equality() -> None:
    """Any difference exceeds the bound, and no difference does not."""
    row = tolerance_for("torchscript", "cpu")
    for error, killed in ((0.0, ()), (1e-300, ("samples",))):
        mutant = made.fault(outputs={"logits": made.comparison(scaled_error=error)})
        assert kills(mutant, row) == killed


def test_a_row_that_judges_nothing_kills_nothing() -> None:
    """Without any bound, no figure of a mutant exceeds a limit."""
    row = ONNX.model_copy(update=dict.fromkeys(BOUNDS) | {"softmax_error": 1.0})
    wild = made.comparison(scaled_error=9.0, rms_ratio=9.0, floor_rms=99.0, floor_largest=99.0)
    mutant = made.fault(outputs={"logits": wild}, local=_local(rms=99.0, largest=99.0, bound=99.0))
    assert kills(mutant, row) == ()


def _feature_figures(**changes: Any) -> FeatureFigures:
    output = TensorSpec(name="maps", datatype="FP32", shape=(-1, 4))
    by_batch = {256: made.comparison(labels=None), 1: made.comparison(labels=None, **changes)}
    return FeatureFigures(layer="x", output=output, path="features", problems=(), by_batch=by_batch)


@pytest.mark.parametrize(
    ("change", "passes"), [({}, True), ({"scaled_error": 2e-6}, True), ({"rms_ratio": 9.0}, False)]
)
def test_the_first_layer_s_file_is_judged_as_the_fp32_file(
    change: dict[str, float], passes: bool
) -> None:
    """The first variant's tolerance applies at each batch size, and the worst figures count."""
    rows = (made.row("onnx"), made.row("torchscript"))
    features = _feature_figures(**change)
    figures = made.honest(features=features, rows=rows, files={}, neighbours={})
    judgement = judge(figures, figures.tolerances)
    assert judgement.passed == passes
    assert all(failure.startswith("features, batch 1: RMS") for failure in judgement.failures)
    assert judgement.features is not None
    verdict = judgement.features.verdict
    assert (verdict.passed, verdict.variant) == (passes, "onnx")
    assert verdict.scaled_error == change.get("scaled_error", 0)
    assert verdict.rms_ratio == change.get("rms_ratio", 1)
    assert (verdict.sqnr_db, verdict.batch_sizes, verdict.samples) == (60, (1, 256), made.SAMPLES)
    broken = features.model_copy(update={"problems": ("it has another weight",)})
    (problem,) = [f for f in _failures(made.honest(features=broken)) if "weight" in f]
    assert problem == "features: it has another weight"


def test_summaries_name_features_loosenings_and_blind_layers() -> None:
    """There is one line for each verdict, feature file, loosening and blind layer."""
    loosened = ONNX.model_copy(update={"loosened": "rms_ratio: 99 instead of 8"})
    blind = made.layer(local=_local(visible=1.0))
    figures = made.honest(features=_feature_figures(), layers=(blind,))
    judgement = judge(figures, with_rows(figures.tolerances, [loosened]))
    lines = list(judgement.summaries())
    assert len(lines) == len(made.CPU) + 3
    assert sum("LOOSENED rms_ratio: 99 instead of 8" in line for line in lines) == 1
    assert lines[-1].startswith("SAMPLES BLIND, PROVENANCE ONLY: x (x, x, x)")


def test_a_failure_names_its_row_and_sample() -> None:
    """The message gives threads, block and sample, so that they can be looked up."""
    wrong = {"logits": made.comparison(floor_rms=9.0, worst=(7, 1))}
    row = made.row(outputs=wrong, threads=2, batch_size=64)
    (failure,) = _failures(made.with_row(row))
    assert failure.startswith("onnx, batch 64 in 2 threads, logits: RMS error 9.0 x")
    assert failure.endswith("worst at sample 7")
    (failure,) = _failures(made.with_row(row.model_copy(update={"block": "length 5"})))
    assert failure.startswith("onnx, batch 64 in 2 threads, length 5, logits")
    assert failure.endswith("worst at sample 7 of length 5")
    older = made.with_row(made.row(outputs=wrong), made.honest(corners=("white", "black")))
    assert _failures(older)[0].endswith("worst at sample 5")
    assert older.describe(1) == "corner case 'black'"
    assert older.describe(4) == "sample 2"


def test_the_largest_row_is_a_variant_s_own() -> None:
    """It is the variant's row with the most samples."""
    figures = made.honest()
    assert figures.schema_version == 3
    small, large = (made.row(samples=n, batch_size=n) for n in (5, made.SAMPLES + 1))
    other = made.row("pt2", samples=made.SAMPLES + 2)
    figures = figures.model_copy(update={"rows": (small, large, other, *figures.rows)})
    assert figures.largest("onnx") == large
    assert figures.variants[:2] == ["onnx", "pt2"]
