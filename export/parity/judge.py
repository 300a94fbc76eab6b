"""From figures to a verdict: what the tolerances say of what was measured. Knows no torch.

Nothing is run here, so that figures in a file can be judged again under other tolerances.
"""

from collections.abc import Iterable, Iterator

from export.bundle.manifest import FeatureMaps, ParityVerdict
from export.bundle.tolerances import COVERAGE, Tolerance, violations
from export.parity.schema import (
    ALONE,
    EDGE_CASES,
    INSIDE_SHARE,
    Fault,
    FeatureFigures,
    Layer,
    ParityFigures,
    Row,
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
    failures |= {variant: [f"{variant}: {why}"] for variant, why in figures.broken.items()}
    for row in figures.rows:
        failures[row.variant] += [
            f"{row.variant}, batch {row.batch_size}{_place(row)}{complaint}"
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


def inside_words(compared: int, unmatched: int) -> str:
    """How much of the inside of the ONNX file was compared, and what that means."""
    values = compared + unmatched
    if compared == 0:
        return "no value inside has the name of a value of the checkpoint: nothing was compared"
    words = f"{compared} of {values} float values inside were compared with the checkpoint's"
    if compared < INSIDE_SHARE * values:
        words += ": hardly any; the others are parts of operators that the checkpoint has as one"
    return words


def explain(layers: tuple[Layer, ...], allowed: Tolerance, unmatched: int = 0) -> str:
    """The first wrong value in words: node, module, line, and the error before and after it."""
    position = first_wrong(layers, allowed)
    if not layers:
        return inside_words(0, unmatched)
    if position is None:
        compared = inside_words(len(layers), unmatched)
        return f"no value inside is beyond {allowed.variant}'s tolerance; {compared}"
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
        by_variant: Those of each variant.
        general: Those of the gate itself.
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
        self.by_variant, self.general = by_variant, general
        self.verdicts = tuple(
            _verdict(
                [row for row in figures.rows if row.variant == variant],
                table[variant],
                passed=not failed,
            )
            for variant, failed in by_variant.items()
            if variant not in figures.broken
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


def _place(row: Row) -> str:
    threads = "" if row.threads == 1 else f" in {row.threads} threads"
    return threads + (f", {row.block}" if row.block else "")


def _row_complaints(row: Row, allowed: Tolerance, figures: ParityFigures) -> Iterator[str]:
    if row.block == EDGE_CASES:
        # The RMS of a handful of values is a lottery: their largest error is judged.
        allowed = allowed.model_copy(update={"rms_ratio": None})
    for output, found in row.outputs.items():
        worst = figures.describe(found.worst[0], row.block)
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
    if not coverage.share_of_all_samples >= COVERAGE:
        yield (
            f"coverage: the {coverage.samples} samples of every batch size activate "
            f"{coverage.active} of the {coverage.active_in_all} units that all samples activate "
            f"({coverage.share_of_all_samples:.0%} < {COVERAGE:.0%}): faults in the others would "
            "not be seen"
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
        rms_ratio=max(c.rms_ratio for row, c in found if row.block != EDGE_CASES),
        sqnr_db=min(c.sqnr_db for _, c in found),
        label_flips=max((figures.flips for _, figures in labels), default=0),
        accuracy=accuracies[0] if accuracies else None,
        certificate=min((figures.certificate for _, figures in labels), default=None),
        samples=widest.samples,
        batch_sizes=tuple(sorted({row.batch_size for row in rows})),
        threads=tuple(sorted({row.threads for row in rows})),
        tolerance=tolerance,
    )
