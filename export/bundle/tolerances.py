"""The table of tolerances, each with its reason. Imports no torch.

``metrics``, ``export.provenance`` and ``export.parity`` define the errors. The figures in the
reasons were measured on MNIST with an MLP and a CNN over batch sizes 1 to 1,000. Correct float32
exports stay near 5e-7 scaled and at twice eager's own rounding error; a strong weight off by 1%
gives at least 250 times that. Weak weights, which affect no image, are checked by provenance.
"""

from collections.abc import Iterable, Iterator
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from export.bundle.metrics import Comparison, LabelFigures

Format = Literal["onnx", "torchscript", "torchscript-frozen", "pt2"]
# tf32 is not a file's precision, but a way for a device to run an fp32 file: 10 bits of mantissa
# inside matrix products.
Precision = Literal["fp32", "fp16", "int8", "tf32"]
Device = Literal["cpu", "cuda"]

# Of the units that all samples together activate, the samples used at every batch size must
# activate at least this share: a gate cannot detect faults in inactive units.
COVERAGE = 0.95
# A share of flips or a drop of accuracy fails only if it exceeds so many standard deviations.
STANDARD_DEVIATIONS = 3
# How many times float32's own floor (``metrics.Floor``) a correct float32 file's error may be: the
# worst channel's root mean square, and its largest value. For 96 random networks of eight kinds,
# correct files reached 0.63 and 0.73 in outputs, 1.13 and 1.59 in operators computed alone, none
# beyond a limit; a weight off by 1% was at least 268 times beyond the limits at its own layer
# (``python -m tests.export.limits --seeds 12``). 32 seeds of five of the kinds: 1.98 and 263.
RMS_MULTIPLE, LARGEST_MULTIPLE = 3.0, 4.0
# The worst sample's error over the median sample's in reduced precision. Measured on MNIST's
# 10,000 images: float16 2.1 to 3.0, int8 2.5 to 21 (an image outside the calibration's ranges); a
# sample with a garbage output at 35 dB has about 80. This is about the geometric mean of 21 and 80.
SAMPLE_SPREAD = 40.0
# A derived row may widen the table's numbers, but never beyond these: half of float16's tolerance,
# and the RMS ratio of a weight off by 1% on MNIST.
LARGEST_DERIVED, LARGEST_DERIVED_RATIO = 1e-3, 100.0
DERIVED = "derived: "
HALF_ROUNDING = 2.0**-11  # float16 rounds to 11 significant bits: relative error of one rounding

DYNAMIC_INT8_REFUSED = (
    "dynamic int8 scales each batch by its own largest activation, so an output depends on the "
    "other samples in its batch (by up to 0.16 in the logits, as measured): it cannot be proven "
    "for batched serving; use onnx-int8, whose scales are fixed"
)


class ToleranceError(ValueError):
    """The table has no such tolerance, or a requested change of it is invalid."""


class Tolerance(BaseModel):
    """The allowed error of one variant (a format in a precision) on one device; None: not judged.

    Attributes:
        scaled_error: Upper bound of max |difference| / max |reference| over a channel's values; 0
            means bit-equal.
        rms_ratio: Upper bound of the RMS error against float64, in units of eager float32's own.
        batch_invariance: Upper bound of the scaled difference between the same samples' outputs at
            two batch sizes; 0 means bit-equal; None where the reference itself depends on the
            batch size and is compared at each.
        neighbours: The same for two batches of one size in which the other samples differ.
        softmax_error: Upper bound of |probabilities - softmax(its own logits)|.
        weights: Upper bound of a stored weight's error (see ``export.provenance.figures``).
        sqnr_db: Lower bound of the signal-to-quantization-noise ratio against float64, decibels.
        flip_share: Upper bound of the share of labels that differ from eager's where the reference
            is not a near tie (``metrics.NEAR_TIE``). None: no label may differ unless the
            reference's two best logits lie within twice the allowed error.
        tie_share: Upper bound of the share of samples whose two best logits are equal.
        accuracy_drop: Upper bound of eager's accuracy minus this variant's, 0..1, beyond chance.
        rms_multiple: Upper bound of ``Comparison.floor_rms``, if a floor was measured.
        largest_multiple: The same of ``Comparison.floor_largest``.
        sample_spread: Upper bound of ``Comparison.sample_spread`` in a reduced precision.
        evidence: 1: samples and mutants must be able to show a fault, else the verdict is
            "inconclusive". None: this is not required.
        reason: The reason for these numbers; it begins with ``DERIVED`` if they were derived from
            the network.
        loosened: Which numbers were widened for this model, and why; None if none were.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Format
    precision: Precision = "fp32"
    device: Device
    scaled_error: float | None = Field(default=None, ge=0)
    rms_ratio: float | None = Field(default=None, ge=1)
    batch_invariance: float | None = Field(default=None, ge=0)
    neighbours: float | None = Field(default=None, ge=0)
    softmax_error: float = Field(default=1e-6, ge=0)
    weights: float | None = Field(default=None, ge=0)
    sqnr_db: float | None = Field(default=None, gt=0)
    flip_share: float | None = Field(default=None, ge=0, le=1)
    tie_share: float | None = Field(default=None, ge=0, le=1)
    accuracy_drop: float | None = Field(default=None, ge=0, le=1)
    rms_multiple: float | None = Field(default=RMS_MULTIPLE, ge=1)
    largest_multiple: float | None = Field(default=LARGEST_MULTIPLE, ge=1)
    sample_spread: float | None = Field(default=SAMPLE_SPREAD, ge=1)
    evidence: float | None = Field(default=1, ge=1, le=1)
    reason: str
    loosened: str | None = None

    @property
    def variant(self) -> str:
        """The format, followed by the precision unless that is fp32."""
        return variant_name(self.format, self.precision)

    @property
    def is_derived(self) -> bool:
        """True if the numbers are derived from the network (``parity.limits``), not the table's."""
        return self.reason.startswith(DERIVED)

    def beyond_table(self) -> list[str]:
        """List, as text, the fields in which this row allows more than the table.

        A derived row may allow more, up to separate bounds.
        """
        table = tolerance_for(self.variant, self.device)
        if self.is_derived and can_be_derived(table):
            table = table.model_copy(
                update={
                    "scaled_error": LARGEST_DERIVED,
                    "rms_ratio": LARGEST_DERIVED_RATIO,
                    "batch_invariance": LARGEST_DERIVED if table.batch_invariance else None,
                }
            )
        return self.looser_than(table)

    def looser_than(self, other: "Tolerance") -> list[str]:
        """List, as text, the fields in which this row allows more than the other."""
        return [
            f"{field}: {_shown(getattr(self, field))} instead of {_shown(getattr(other, field))}"
            for field in BOUNDS
            if _looser(field, getattr(self, field), getattr(other, field))
        ]


BOUNDS = tuple(
    name
    for name in Tolerance.model_fields
    if name not in {"format", "precision", "device", "reason", "loosened"}
)

# ``softmax_error``: float32's softmax differs from float64's of the same logits by a few units in
# the last place of numbers up to 1 (6e-8 each): 1e-6, far below any fault in the head.
# ``FOLD_ERROR``: a BatchNorm folded in float32 against the same fold in float64: a product with a
# quotient, and a sum, so a few roundings of 6e-8 each; measured 1.6e-7.
FOLD_ERROR = 5e-7

TOLERANCES: tuple[Tolerance, ...] = (
    Tolerance(
        format="torchscript",
        device="cpu",
        scaled_error=0,
        rms_ratio=1,
        neighbours=0,
        weights=0,
        reason="a trace runs eager's own kernels: bit-equal at the same batch size and threads",
    ),
    Tolerance(
        format="torchscript-frozen",
        device="cpu",
        scaled_error=2e-6,
        rms_ratio=8,
        neighbours=0,
        reason="freezing folds BatchNorm into convolutions; measured 2.4e-6 absolute, 3e-7 scaled",
    ),
    Tolerance(
        format="pt2",
        device="cpu",
        scaled_error=2e-6,
        rms_ratio=8,
        neighbours=0,
        weights=0,
        reason="same operators, but a compiler may fuse them; measured 0, faults 250 times onnx's",
    ),
    Tolerance(
        format="onnx",
        device="cpu",
        scaled_error=2e-6,
        rms_ratio=8,
        batch_invariance=2e-6,
        neighbours=0,
        weights=FOLD_ERROR,
        reason="other kernels, other order of sums; measured 4.6e-7 and 2.0, faults 250 times that",
    ),
    Tolerance(
        format="onnx",
        precision="fp16",
        device="cpu",
        scaled_error=2e-3,
        batch_invariance=2e-3,
        neighbours=0,
        softmax_error=2 * HALF_ROUNDING,
        weights=HALF_ROUNDING * 1.01,
        flip_share=0.001,
        tie_share=0.003,
        accuracy_drop=0.0005,
        reason="11 bits per value, also in the probabilities; measured 8.8e-4 scaled and no flip",
    ),
    Tolerance(
        format="onnx",
        precision="int8",
        device="cpu",
        neighbours=0,
        weights=0.51,
        sqnr_db=35,
        flip_share=0.001,
        tie_share=0,
        accuracy_drop=0.002,
        reason="8 bits per value, last layer in fp32; measured 37 dB, no such flip, 0.04 pp less",
    ),
    Tolerance(
        format="onnx",
        device="cuda",
        scaled_error=5e-6,
        rms_ratio=20,
        batch_invariance=5e-6,
        neighbours=5e-6,
        weights=FOLD_ERROR,
        reason="provisional, not measured: TF32 off, cuDNN may choose another algorithm per batch",
    ),
    Tolerance(
        format="onnx",
        precision="tf32",
        device="cuda",
        scaled_error=5e-3,
        batch_invariance=5e-3,
        neighbours=5e-3,
        weights=FOLD_ERROR,
        flip_share=0.001,
        accuracy_drop=0.0005,
        reason="provisional, not measured: 10 bits of mantissa inside products",
    ),
    Tolerance(
        format="onnx",
        precision="fp16",
        device="cuda",
        scaled_error=2e-3,
        batch_invariance=2e-3,
        neighbours=2e-3,
        softmax_error=2 * HALF_ROUNDING,
        weights=HALF_ROUNDING * 1.01,
        flip_share=0.001,
        tie_share=0.003,
        accuracy_drop=0.0005,
        reason="provisional, not measured on CUDA: as on the CPU",
    ),
    Tolerance(
        format="torchscript",
        device="cuda",
        scaled_error=5e-6,
        rms_ratio=20,
        batch_invariance=5e-6,
        neighbours=5e-6,
        weights=0,
        reason="provisional, not measured: TF32 off, cuDNN may choose another algorithm per batch",
    ),
)


def can_be_derived(row: Tolerance) -> bool:
    """Whether a variant rounds like float32 on the CPU, for which alone floors are measured."""
    return row.precision == "fp32" and row.device == "cpu" and row.scaled_error != 0


def variant_name(format_: str, precision: str | None) -> str:
    """The name of a variant: onnx, onnx-int8, torchscript-frozen, ..."""
    return format_ if precision in ("fp32", None) else f"{format_}-{precision}"


def tolerance_for(variant: str, device: str, table: Iterable[Tolerance] = TOLERANCES) -> Tolerance:
    """The table's row for a variant on a device.

    Raises:
        ToleranceError: The table has no such row, so the variant cannot be proven there.
    """
    for row in table:
        if (row.variant, row.device) == (variant, device):
            return row
    raise ToleranceError(f"no tolerance is defined for {variant} on {device}")


def with_rows(table: Iterable[Tolerance], rows: Iterable[Tolerance]) -> tuple[Tolerance, ...]:
    """The table with ``rows`` replacing those of the same variant and device."""
    by_key = {(row.variant, row.device): row for row in rows}
    return tuple(by_key.get((row.variant, row.device), row) for row in table)


def changed(
    changes: Iterable[str], because: str | None, table: Iterable[Tolerance] = TOLERANCES
) -> tuple[Tolerance, ...]:
    """Change numbers of the table; a number that becomes looser is recorded in its row.

    Args:
        changes: Each is "VARIANT.DEVICE.FIELD=NUMBER", e.g. "onnx.cpu.scaled_error=1e-5"; NUMBER
            is "none" if the figure shall not be judged.
        because: The reason; required if a number becomes looser.
        table: The table to change.

    Raises:
        ToleranceError: The row or field does not exist, the number is invalid, or a looser number
            has no reason.
    """
    rows = {f"{row.variant}.{row.device}": row for row in table}
    for change in changes:
        key, _, number = change.partition("=")
        row_name, _, field = key.rpartition(".")
        if row_name not in rows or field not in BOUNDS:
            raise ToleranceError(
                f"{change!r}: expected VARIANT.DEVICE.FIELD=NUMBER with, as VARIANT.DEVICE, one of "
                f"{', '.join(rows)} and, as FIELD, one of {', '.join(BOUNDS)}"
            )
        row = rows[row_name]
        try:
            bound = None if number == "none" else float(number)
            new = Tolerance.model_validate(row.model_dump() | {field: bound})
        except ValueError as error:
            raise ToleranceError(f"{change!r}: {number!r} is not a valid {field}") from error
        if loosened := new.looser_than(row):
            if not because:
                raise ToleranceError(
                    f"{change!r} allows more than the table: give a reason (--because)"
                )
            note = f"{'; '.join(loosened)} because {because}"
            earlier = f"{row.loosened}; " if row.loosened else ""
            new = new.model_copy(update={"loosened": earlier + note})
        rows[row_name] = new
    return tuple(rows.values())


def violations(found: Comparison, allowed: Tolerance) -> Iterator[str]:
    """Describe each figure of one output that exceeds the tolerance.

    Bounds are tested with "not <=", because a comparison with NaN is false and NaN must fail.
    """
    if found.non_finite:
        yield f"{found.non_finite} values are NaN or infinite"
    if found.unequal is not None:  # integers and booleans have no rounding
        if found.unequal:
            yield f"{found.unequal} integer or boolean values differ"
        return
    bound = allowed.scaled_error
    if bound is not None and not found.scaled_error <= bound:
        yield (
            f"scaled error {found.scaled_error:.2e} > {bound:.0e} "
            f"(largest difference {found.max_abs_error:.2e})"
        )
    if allowed.rms_ratio is not None and not found.rms_ratio <= allowed.rms_ratio:
        yield f"RMS error {found.rms_ratio:.1f} x eager's > {allowed.rms_ratio:.0f} x"
    yield from _multiple_violations(found, allowed)
    if allowed.sqnr_db is not None and not found.sqnr_db >= allowed.sqnr_db:
        yield f"SQNR {found.sqnr_db:.1f} dB < {allowed.sqnr_db:.0f} dB"
    if found.labels is not None:
        yield from _label_violations(found, found.labels, allowed)


def _multiple_violations(found: Comparison, allowed: Tolerance) -> Iterator[str]:
    multiples = (
        ("RMS", found.floor_rms, allowed.rms_multiple),
        ("largest", found.floor_largest, allowed.largest_multiple),
    )
    for which, multiple, limit in multiples:
        if multiple is not None and limit is not None and not multiple <= limit:
            yield f"{which} error {multiple:.1f} x float32's own rounding error > {limit:g} x"
    spread = allowed.sample_spread
    if allowed.precision != "fp32" and spread is not None and not found.sample_spread <= spread:
        yield (
            f"the worst sample's error is {found.sample_spread:.0f} x the median sample's > "
            f"{spread:g} x"
        )


def _label_violations(found: Comparison, labels: LabelFigures, allowed: Tolerance) -> Iterator[str]:
    if allowed.flip_share is not None:
        # In few samples a share may be exceeded by chance: 1 of 993 does not prove more than 0.1%.
        expected = allowed.flip_share * labels.samples
        if not labels.decided_flips <= expected + STANDARD_DEVIATIONS * expected**0.5:
            yield (
                f"{labels.decided_flips} of {labels.samples} labels differ where the reference "
                f"is not a near tie > {allowed.flip_share:.1%} plus what may be chance"
            )
    elif labels.flips and allowed.scaled_error is not None:
        reach = 2 * allowed.scaled_error * found.largest_value
        if not labels.largest_flip_margin <= reach:
            yield (
                f"{labels.flips} of {labels.samples} labels differ, one where the reference's "
                f"margin is {labels.largest_flip_margin:.2e} > {reach:.0e}"
            )
    if allowed.tie_share is not None and not labels.ties <= allowed.tie_share * labels.samples:
        yield (
            f"{labels.ties} of {labels.samples} samples have two equal largest logits > "
            f"{allowed.tie_share:.1%}"
        )
    if allowed.accuracy_drop is not None and labels.accuracy is not None:
        drop = (labels.eager_accuracy or 0) - labels.accuracy
        # A correct file may flip near ties and the allowed share of labels. Such flips change the
        # accuracy this much by chance, so a few samples prove no drop. The candidate's own flips
        # are not used: otherwise the worst candidate would be allowed the most.
        honest_flips = labels.near_ties + (allowed.flip_share or 0) * labels.samples
        chance = STANDARD_DEVIATIONS * honest_flips**0.5 / labels.samples
        if not drop <= allowed.accuracy_drop + chance:
            yield (
                f"accuracy falls by {drop:.2%} > {allowed.accuracy_drop:.2%} plus {chance:.2%} "
                "that may be chance"
            )


def _looser(field: str, mine: float | None, other: float | None) -> bool:
    if field == "flip_share":  # None is the strictest value here
        return (mine or 0) > (other or 0)
    if mine is None or other is None:  # a figure that is not judged may be anything
        return mine is None and other is not None
    return mine < other if field == "sqnr_db" else mine > other


def _shown(bound: Any) -> str:
    return "not judged" if bound is None else f"{bound:g}"
