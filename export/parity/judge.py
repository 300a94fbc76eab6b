"""From figures to a verdict: what the tolerances say of what was measured. Knows no torch.

Nothing is run here, so that figures in a file can be judged again under other tolerances.
"""

from collections.abc import Iterable, Iterator

from export.bundle.manifest import FeatureMaps, ParityVerdict
from export.bundle.metrics import Comparison, LabelFigures
from export.bundle.tolerances import COVERAGE, Tolerance
from export.parity.schema import ALONE, Fault, FeatureFigures, Layer, ParityFigures, Row

STANDARD_DEVIATIONS = 3


def violations(found: Comparison, allowed: Tolerance) -> Iterator[str]:
    """What of one output's figures is beyond the tolerance, in words; nothing if all is within.

    "not <=" throughout: a comparison with NaN is false, and NaN must fail.
    """
    if found.non_finite:
        yield f"{found.non_finite} values are NaN or infinite"
    bound = allowed.scaled_error
    if bound is not None and not found.scaled_error <= bound:
        yield (
            f"scaled error {found.scaled_error:.2e} > {bound:.0e} "
            f"(off by {found.max_abs_error:.2e} at worst)"
        )
    if allowed.rms_ratio is not None and not found.rms_ratio <= allowed.rms_ratio:
        yield f"RMS error {found.rms_ratio:.1f} x eager's > {allowed.rms_ratio:.0f} x"
    if allowed.sqnr_db is not None and not found.sqnr_db >= allowed.sqnr_db:
        yield f"SQNR {found.sqnr_db:.1f} dB < {allowed.sqnr_db:.0f} dB"
    if found.labels is not None:
        yield from _label_complaints(found, found.labels, allowed)


def _label_complaints(found: Comparison, labels: LabelFigures, allowed: Tolerance) -> Iterator[str]:
    if allowed.flip_share is not None:
        if not labels.decided_flips <= allowed.flip_share * labels.samples:
            yield (
                f"{labels.decided_flips} of {labels.samples} labels differ where the reference "
                f"does not waver > {allowed.flip_share:.1%}"
            )
    elif labels.flips and allowed.scaled_error is not None:
        reach = 2 * allowed.scaled_error * found.largest_value
        if not labels.largest_flip_margin <= reach:
            yield (
                f"{labels.flips} of {labels.samples} labels differ, one where the reference's best "
                f"leads by {labels.largest_flip_margin:.2e} > {reach:.0e}"
            )
    if allowed.tie_share is not None and not labels.ties <= allowed.tie_share * labels.samples:
        yield f"{labels.ties} samples have two best logits > {allowed.tie_share:.1%}"
    if allowed.accuracy_drop is not None and labels.accuracy is not None:
        drop = (labels.eager_accuracy or 0) - labels.accuracy
        # So many flips to either side give this much by chance: a few samples prove no drop.
        chance = STANDARD_DEVIATIONS * labels.flips**0.5 / labels.samples
        if not drop <= allowed.accuracy_drop + chance:
            yield (
                f"accuracy falls by {drop:.2%} > {allowed.accuracy_drop:.2%} and {chance:.2%} that "
                "may be chance"
            )


def neighbour_bound(tolerance: Tolerance, situation: str) -> float | None:
    """What an answer may change by in a situation that ``gate.measure_neighbours`` names."""
    return tolerance.batch_invariance if situation == ALONE else tolerance.neighbours


def judge(figures: ParityFigures, tolerances: Iterable[Tolerance]) -> "Judgement":
    """Judge everything that the gate measured.

    Args:
        figures: What ``parity.json`` holds.
        tolerances: A row for each variant that was measured, on the figures' device.
    """
    table = {row.variant: row for row in tolerances if row.device == figures.device}
    failures: dict[str, list[str]] = {variant: [] for variant in figures.variants}
    for row in figures.rows:
        failures[row.variant] += [
            f"{row.variant}, batch {row.batch_size}{complaint}"
            for complaint in _row_complaints(row, table[row.variant], figures)
        ]
    for variant, checks in figures.files.items():
        failures[variant] += [f"{variant}: {problem}" for problem in checks.problems]
        weights, bound = checks.weights, table[variant].weights
        if weights is not None and bound is not None:
            failures[variant] += [f"{variant} weights: {p}" for p in weights.problems]
            if not weights.error <= bound:
                failures[variant].append(
                    f"{variant} weights: {weights.worst}: {weights.error:.1e} > {bound:.1e}"
                )
    for variant, neighbours in figures.neighbours.items():
        for situation, difference in neighbours.items():
            allowed = neighbour_bound(table[variant], situation)
            if allowed is not None and not difference <= allowed:
                failures[variant].append(
                    f"{variant}: an answer depends on its batch: {situation} it differs by "
                    f"{difference:.1e} scaled > {allowed:.0e} from that among other samples"
                )
    # Who has said, with a reason, that weights are not to be judged has no eyes for faults in them.
    judged = all(row.weights is not None for variant, row in table.items() if variant == "onnx")
    general = list(_general_failures(figures, figures.faults if judged else ()))
    if figures.features is not None:
        general += _feature_failures(figures.features, table[figures.variants[0]])
    return Judgement(figures, table, failures, general)


def first_wrong(layers: tuple[Layer, ...], allowed: Tolerance) -> int | None:
    """Position of the first value beyond the tolerance; None if none is."""
    for position, layer in enumerate(layers):
        if layer.exact and layer.max_abs_error != 0:
            return position
        scaled, ratio = allowed.scaled_error, allowed.rms_ratio
        if scaled is not None and not layer.scaled_error <= scaled:
            return position
        if ratio is not None and not layer.rms_ratio <= ratio:
            return position
    return None


def explain(layers: tuple[Layer, ...], allowed: Tolerance) -> str:
    """The first wrong value in words: node, module, line, and the error before and after it."""
    position = first_wrong(layers, allowed)
    if position is None:
        return f"no value inside is beyond {allowed.variant}'s tolerance"
    wrong = layers[position]
    before = layers[position - 1] if position else None
    earlier = (
        f"the value before it ({before.value}) has {before.scaled_error:.1e} and "
        f"{before.rms_ratio:.1f} x"
        if before
        else "it is the first value"
    )
    return (
        f"first wrong value: {wrong.value}, of the ONNX node {wrong.node} ({wrong.op})\n"
        f"  module: {wrong.module or '(the outermost)'}\n"
        f"  source: {wrong.source}: {wrong.code}\n"
        f"  scaled error {wrong.scaled_error:.1e}, RMS {wrong.rms_ratio:.1f} x eager's; {earlier}"
    )


class Judgement:
    """The verdicts on a report's variants, and what failed in words.

    Attributes:
        failures: All failures, variant by variant, then those of the gate itself.
        verdicts: One for each variant: its worst figures.
        features: The same for the file of the first layer, if there is one.
    """

    def __init__(
        self,
        figures: ParityFigures,
        table: dict[str, Tolerance],
        by_variant: dict[str, list[str]],
        general: list[str],
    ) -> None:
        """Sum up."""
        self.failures = [*(f for part in by_variant.values() for f in part), *general]
        self.by_variant = by_variant
        self.verdicts = tuple(
            _verdict(
                [row for row in figures.rows if row.variant == variant],
                table[variant],
                passed=not failed,
            )
            for variant, failed in by_variant.items()
        )
        self.features = None
        if figures.features is not None:
            self.features = _feature_maps(figures.features, table[figures.variants[0]])

    @property
    def passed(self) -> bool:
        """True if nothing failed."""
        return not self.failures

    def summaries(self) -> Iterator[str]:
        """Each verdict in a line for a terminal, and who widened its tolerance."""
        for verdict in self.verdicts:
            yield verdict.summary()
            if verdict.tolerance.loosened:
                yield f"  LOOSENED {verdict.tolerance.loosened}"
        if self.features is not None:
            yield self.features.summary()


def _row_complaints(row: Row, allowed: Tolerance, figures: ParityFigures) -> Iterator[str]:
    for output, found in row.outputs.items():
        worst = figures.describe(found.worst[0])
        for complaint in violations(found, allowed):
            yield f", {output}: {complaint}, worst at {worst}"
    invariance, bound = row.batch_invariance, allowed.batch_invariance
    if invariance is not None and bound is not None and not invariance <= bound:
        yield (
            f": answers differ from those in the largest batches by {invariance:.2e} > {bound:.0e}"
        )
    if not row.softmax_error <= allowed.softmax_error:
        yield (
            f": probabilities differ from softmax(logits) by {row.softmax_error:.2e} > "
            f"{allowed.softmax_error:.0e}"
        )


def _feature_failures(found: FeatureFigures, allowed: Tolerance) -> Iterator[str]:
    yield from (f"{found.path}: {problem}" for problem in found.problems)
    for batch_size, comparison in found.by_batch.items():
        for complaint in violations(comparison, allowed):
            yield f"{found.path}, batch {batch_size}: {complaint}"


def _feature_maps(found: FeatureFigures, allowed: Tolerance) -> FeatureMaps:
    rows = found.by_batch.values()
    verdict = ParityVerdict(
        format=allowed.format,
        precision=allowed.precision,
        device=allowed.device,
        passed=not list(_feature_failures(found, allowed)),
        scaled_error=max((row.scaled_error for row in rows), default=float("inf")),
        rms_ratio=max((row.rms_ratio for row in rows), default=float("inf")),
        sqnr_db=min((row.sqnr_db for row in rows), default=None),
        label_flips=0,
        accuracy=None,
        certificate=None,
        samples=max((row.samples for row in rows), default=0),
        batch_sizes=tuple(sorted(found.by_batch)),
        tolerance=allowed,
    )
    return FeatureMaps(layer=found.layer, output=found.output, verdict=verdict)


def _general_failures(figures: ParityFigures, faults: Iterable[Fault]) -> Iterator[str]:
    coverage = figures.coverage
    if not coverage.share >= COVERAGE:
        yield (
            f"coverage: the {coverage.samples} samples of every batch size activate "
            f"{coverage.active} of the {coverage.active_in_all} units that all samples activate "
            f"({coverage.share:.0%} < {COVERAGE:.0%}): faults in the others would not be seen"
        )
    for layer in figures.layers:
        if layer.exact and layer.max_abs_error != 0:
            yield (
                f"onnx: {layer.value} ({layer.op}, {layer.where}) comes of exactly rounded "
                f"operators alone and must be bit-equal: it differs by {layer.max_abs_error:.1e}"
            )
    for fault in faults:
        if not fault.caught_by and fault.not_applicable is None:
            yield f"self-test: this gate would not have caught {fault.name} ({fault.planted})"


def _verdict(rows: list[Row], tolerance: Tolerance, *, passed: bool) -> ParityVerdict:
    found = [(row, comparison) for row in rows for comparison in row.outputs.values()]
    labels = [(c, c.labels) for _, c in found if c.labels is not None]
    widest = max(rows, key=lambda row: row.samples)
    accuracies = [c.labels.accuracy for c in widest.outputs.values() if c.labels]
    return ParityVerdict(
        format=tolerance.format,
        precision=tolerance.precision,
        device=tolerance.device,
        passed=passed,
        scaled_error=max(c.scaled_error for _, c in found),
        rms_ratio=max(c.rms_ratio for _, c in found),
        sqnr_db=min(c.sqnr_db for _, c in found),
        label_flips=max((figures.flips for _, figures in labels), default=0),
        accuracy=accuracies[0] if accuracies else None,
        certificate=min((figures.certificate for _, figures in labels), default=None),
        samples=widest.samples,
        batch_sizes=tuple(sorted(row.batch_size for row in rows)),
        tolerance=tolerance,
    )
