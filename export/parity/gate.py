"""The gate: every format, at every batch size, on real images, against truth and yardstick.

A row that fails says which format, which batch size, which image and by how much.
"""

from collections.abc import Iterable, Iterator

from pydantic import BaseModel, ConfigDict
from tqdm import tqdm

from export.bundle import Format, ParityVerdict
from export.golden import Predict, run_batched
from export.parity.metrics import Array, Comparison, compare, scaled_difference, softmax_error
from export.parity.reference import Reference
from export.parity.tolerances import PROBABILITY_ERROR, Tolerance, tolerance_for
from export.parity.weights import Provenance
from export.session import Device

# One, odd ones, powers of two and their neighbours (kernels switch there). The largest runs over
# every image, the others over the first WIDE_IMAGES, which leaves a remainder for most.
BATCH_SIZES = (256, 128, 64, 33, 32, 31, 16, 8, 7, 3, 2, 1)
WIDE_IMAGES = 1_000


class Row(BaseModel):
    """One format at one batch size.

    Attributes:
        batch_invariance: Scaled difference to the same images' logits in batches of 256; None at
            256 itself.
        softmax_error: See ``metrics.softmax_error``.
        failures: What was wrong, in words; empty if it passed.
    """

    model_config = ConfigDict(frozen=True)

    format: Format
    precision: str
    device: Device
    batch_size: int
    comparison: Comparison
    batch_invariance: float | None
    softmax_error: float
    failures: tuple[str, ...]


class ParityReport(BaseModel):
    """Everything the gate measured; what the bundle's parity.json holds."""

    model_config = ConfigDict(frozen=True)

    passed: bool
    device: Device
    images_name: str
    data_sha256: str
    tolerances: tuple[Tolerance, ...]
    rows: tuple[Row, ...]
    weights: Provenance
    not_checked: dict[str, str] = {}

    @property
    def failures(self) -> list[str]:
        """What failed, in words: weights first, then the rows in their order."""
        return [*self.weights.failures, *(f for row in self.rows for f in row.failures)]

    def verdicts(self) -> tuple[ParityVerdict, ...]:
        """One line a format: its worst figures."""
        return tuple(self._verdict(tolerance) for tolerance in self.tolerances)

    def _verdict(self, tolerance: Tolerance) -> ParityVerdict:
        rows = [row for row in self.rows if row.format == tolerance.format]
        return ParityVerdict(
            format=tolerance.format,
            device=tolerance.device,
            passed=not any(row.failures for row in rows)
            and not (tolerance.format == "onnx" and self.weights.failures),
            scaled_error=max(row.comparison.scaled_error for row in rows),
            rms_ratio=max(row.comparison.rms_ratio for row in rows),
            label_flips=max(row.comparison.label_flips for row in rows),
            images=max(row.comparison.images for row in rows),
            batch_sizes=tuple(sorted(row.batch_size for row in rows)),
            tolerance=tolerance,
        )


def run_gate(
    candidates: dict[Format, Predict],
    reference: Reference,
    device: Device,
    data_sha256: str,
    weights: Provenance,
    not_checked: dict[str, str] | None = None,
) -> ParityReport:
    """Measure each candidate against the reference.

    Args:
        candidates: The formats to check, each as a function that runs it on ``device``.
        reference: Images and the checkpoint's answers.
        device: Where the candidates run (the reference is always the CPU).
        data_sha256: Fingerprint of the data set that the images are of.
        weights: What the comparison of the ONNX file's weights gave.
        not_checked: Formats that cannot be checked there, each with its reason: it is reported.
    """
    tolerances = {format_: tolerance_for(format_, device) for format_ in candidates}
    rows = list(
        tqdm(
            _rows(candidates, tolerances, reference),
            desc="parity",
            total=len(candidates) * len(BATCH_SIZES),
            unit="row",
            leave=False,
            disable=None,
        )
    )
    return ParityReport(
        passed=not (weights.failures or any(row.failures for row in rows)),
        weights=weights,
        device=device,
        images_name=reference.images_name,
        data_sha256=data_sha256,
        tolerances=tuple(tolerances.values()),
        rows=tuple(rows),
        not_checked=not_checked or {},
    )


def _rows(
    candidates: dict[Format, Predict],
    tolerances: dict[Format, Tolerance],
    reference: Reference,
) -> Iterator[Row]:
    at_largest: dict[Format, Array] = {}
    for batch_size in BATCH_SIZES:
        wide = batch_size == BATCH_SIZES[0]
        count = len(reference.images) if wide else min(WIDE_IMAGES, len(reference.images))
        eager = reference.eager(count, batch_size)
        for format_, predict in candidates.items():
            answers = run_batched(predict, reference.images[:count], batch_size)
            first = at_largest.setdefault(format_, answers[0])
            invariance = None if wide else scaled_difference(answers[0], first[:count])
            comparison = compare(answers[0], eager, reference.truth[:count])
            softmax = softmax_error(answers[1], answers[0])
            where = f"{format_}, batch {batch_size}"
            worst = reference.describe(comparison.worst_image)
            complaints = _complaints(comparison, invariance, softmax, tolerances[format_], worst)
            yield Row(
                format=format_,
                precision=tolerances[format_].precision,
                device=tolerances[format_].device,
                batch_size=batch_size,
                comparison=comparison,
                batch_invariance=invariance,
                softmax_error=softmax,
                failures=tuple(f"{where}: {complaint}" for complaint in complaints),
            )


def _complaints(
    found: Comparison, invariance: float | None, softmax: float, allowed: Tolerance, worst: str
) -> Iterable[str]:
    image = f"worst at {worst}, off by {found.max_abs_error:.2e}"
    if found.non_finite:
        yield f"{found.non_finite} logits are NaN or infinite, first at {worst}"
    if not found.scaled_error <= allowed.scaled_error:
        yield f"scaled error {found.scaled_error:.2e} > {allowed.scaled_error:.0e} ({image})"
    if not found.rms_ratio <= allowed.rms_ratio:
        yield f"RMS error {found.rms_ratio:.1f} x eager's > {allowed.rms_ratio:.0f} x ({image})"
    # "not <=", here as above: a comparison with NaN is false, and NaN must fail.
    if (
        invariance is not None
        and allowed.batch_invariance is not None
        and not invariance <= allowed.batch_invariance
    ):
        yield (
            f"answers differ from those in batches of {BATCH_SIZES[0]} by {invariance:.2e} scaled "
            f"> {allowed.batch_invariance:.0e}"
        )
    if not softmax <= PROBABILITY_ERROR:
        yield f"probabilities differ from softmax(logits) by {softmax:.2e} > {PROBABILITY_ERROR}"
