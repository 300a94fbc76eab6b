"""Judge measured figures by tolerances. Imports no torch.

No model is run here, so that figures in a file can be judged again with other tolerances.
"""

from collections.abc import Iterable, Iterator
from math import isnan

from export.bundle.manifest import FeatureMaps, ParityVerdict
from export.bundle.tolerances import (
    COVERAGE,
    LARGEST_MULTIPLE,
    Tolerance,
    tolerance_for,
    violations,
)
from export.parity.schema import (
    ALONE,
    EDGE_CASES,
    INSIDE_SHARE,
    SCHEMA_VERSION,
    FeatureFigures,
    Layer,
    LocalFigures,
    MutantResult,
    ParityFigures,
    Row,
)

# A fault is clearly visible if it exceeds its limit this many times: a correct file with other
# rounding, for example on another CPU, may come near the limit, but never near this.
CLEARLY = 2
# The least number of samples that must be given; copies of one sample count as one.
LEAST_DISTINCT = 4
PASSED, FAILED, INCONCLUSIVE = "PASSED", "FAILED", "INCONCLUSIVE"


def leakage_bound(tolerance: Tolerance, situation: str) -> float | None:
    """How much an output may change in a situation of ``measure_cross_sample_leakage``."""
    return tolerance.batch_invariance if situation == ALONE else tolerance.neighbours


def judge(figures: ParityFigures, tolerances: Iterable[Tolerance]) -> "Judgement":
    """Judge everything that the gate measured.

    Args:
        figures: The content of ``parity.json``.
        tolerances: A row for each variant that was measured, for the figures' device.
    """
    table = {row.variant: row for row in tolerances if row.device == figures.device}
    failures: dict[str, list[str]] = {variant: [] for variant in figures.variants}
    failures |= {variant: [f"{variant}: {why}"] for variant, why in figures.broken.items()}
    for row in figures.rows:
        failures[row.variant] += [
            f"{row.variant}, batch {row.batch_size}{_place(row)}{complaint}"
            for complaint in _row_violations(row, table[row.variant], figures)
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
    failures = _with_survivors(failures, figures, table)
    for variant, neighbours in figures.neighbours.items():
        for situation, difference in neighbours.items():
            allowed = leakage_bound(table[variant], situation)
            if allowed is not None and not difference <= allowed:
                failures[variant].append(
                    f"{variant}: an output depends on its batch: {situation} it differs by "
                    f"{difference:.1e} scaled > {allowed:.0e} from that among real samples"
                )
    general = list(_general_failures(figures, table))
    if figures.features is not None:
        general += _feature_failures(figures.features, table[figures.variants[0]])
    return Judgement(figures, table, failures, general, list(_inconclusive(figures, table)))


def bounds_values_inside(allowed: Tolerance) -> bool:
    """Whether a tolerance bounds the errors of single values, which int8's does not."""
    return allowed.scaled_error is not None or allowed.rms_ratio is not None


def first_wrong(layers: tuple[Layer, ...], allowed: Tolerance) -> int | None:
    """The position of the first value beyond the tolerance; None if there is none.

    If a value's operator was also computed alone, that result decides. The difference to the
    checkpoint's value would include the rounding errors of all values before it.
    """
    for position, layer in enumerate(layers):
        if layer.exact and layer.max_abs_error != 0:
            return position
        if layer.local is not None:
            if _local_violation(layer.local, allowed):
                return position
            continue
        scaled, ratio = allowed.scaled_error, allowed.rms_ratio
        if scaled is not None and not layer.scaled_error <= scaled:
            return position
        if ratio is not None and not layer.rms_ratio <= ratio:
            return position
    return None


def inside_words(compared: int, unmatched: int) -> str:
    """Describe how many values inside the ONNX file were compared, and what that means."""
    values = compared + unmatched
    if compared == 0:
        return "no intermediate value was compared: none has the name of one of the checkpoint's"
    words = f"{compared} of {values} float values were compared with the checkpoint's"
    if compared < INSIDE_SHARE * values:
        words += ", less than half; the others are parts of what is one operator in the checkpoint"
    return words


def explain(layers: tuple[Layer, ...], allowed: Tolerance, unmatched: int = 0) -> str:
    """Describe the first wrong value: node, module, source line, its error and the one before."""
    position = first_wrong(layers, allowed)
    if not layers:
        return inside_words(0, unmatched)
    if position is None:
        compared = inside_words(len(layers), unmatched)
        return f"no intermediate value exceeds the tolerance of {allowed.variant}; {compared}"
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
        f"  module: {wrong.module or '(the outermost module)'}\n"
        f"  source: {wrong.source}: {wrong.code}\n"
        f"  scaled error {wrong.scaled_error:.1e}, RMS {wrong.rms_ratio:.1f} x eager's; {earlier}"
        f"{_local_words(wrong.local)}"
    )


def kills(fault: MutantResult, allowed: Tolerance) -> tuple[str, ...]:
    """The checks that kill a mutant under a tolerance, from the mutant's figures."""
    weights, exact = fault.figures.get("weights", 0.0), fault.figures.get("exact", 0.0)
    checks = {
        "samples": _samples_kill(fault, allowed),
        "layers": fault.local is not None and _local_violation(fault.local, allowed),
        "weights": allowed.weights is not None and not weights <= allowed.weights,
        "exact values": exact != 0,
    }
    return tuple(check for check, beyond in checks.items() if beyond)


def blind_layers(layers: tuple[Layer, ...]) -> list[Layer]:
    """Layers in which the samples do not clearly show a weight that is off by 1%."""
    return [
        layer
        for layer in layers
        if layer.local and layer.local.visible is not None and layer.local.visible < CLEARLY
    ]


def _samples_kill(fault: MutantResult, allowed: Tolerance) -> bool:
    """Whether any of the mutant's outputs exceeds a limit."""
    if any(any(violations(output, allowed)) for output in fault.outputs.values()):
        return True
    bounds: dict[str, float | None] = {"softmax_error": allowed.softmax_error}
    if not fault.outputs:  # an older file
        bounds |= {"scaled_error": allowed.scaled_error, "rms_ratio": allowed.rms_ratio}
    return any(_over(fault.figures.get(name), bound) > 1 for name, bound in bounds.items())


def _local_violation(found: LocalFigures, allowed: Tolerance) -> bool:
    most = allowed.largest_multiple
    # A multiple above LARGEST_MULTIPLE widens the bound of a sum's rounding by the same factor.
    bound = None if most is None else max(1.0, most / LARGEST_MULTIPLE)
    pairs = ((found.rms, allowed.rms_multiple), (found.largest, most), (found.bound, bound))
    return any(_over(figure, limit) > 1 for figure, limit in pairs)


def _local_words(found: LocalFigures | None) -> str:
    if found is None:
        return ""
    return (
        f"\n  its operator, run on the file's own inputs to it: RMS {found.rms:.1f} x and "
        f"largest error {found.largest:.1f} x float32's own rounding error"
    )


def _over(figure: float | None, bound: float | None) -> float:
    """A figure divided by its bound; 0 if it is not judged or not known."""
    if figure is None or bound is None:
        return 0.0
    if bound == 0:
        return 0.0 if figure == 0 else float("inf")
    return float("inf") if isnan(figure) else figure / bound


class Judgement:
    """The verdicts on the measured variants, and descriptions of what failed.

    Attributes:
        failures: All failures, variant by variant, then ``general``.
        by_variant: The failures of each variant.
        general: The failures of the gate itself, then the reasons why it is inconclusive.
        inconclusive: Why the samples could not have shown a fault, if that is so.
        mutants: The fp32 ONNX file's mutants, with the checks that kill them under these
            tolerances.
        blind: Descriptions of layers with weights that only their provenance proves.
        verdicts: The verdict on each variant, with its worst figures.
        features: The verdict on the file of the first layer, if there is one.
    """

    def __init__(
        self,
        figures: ParityFigures,
        table: dict[str, Tolerance],
        by_variant: dict[str, list[str]],
        general: list[str],
        inconclusive: list[str],
    ) -> None:
        """Collect the failures and make the verdicts."""
        self.by_variant, self.inconclusive = by_variant, inconclusive
        self.general = [*general, *(f"inconclusive: {reason}" for reason in inconclusive)]
        self.failures = [*(f for part in by_variant.values() for f in part), *self.general]
        self.mutants = judged_mutants(figures, table)
        self.blind = [
            f"{layer.value} ({layer.op}, {layer.where})" for layer in blind_layers(figures.layers)
        ]
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

    @property
    def verdict(self) -> str:
        """Passed, failed, or inconclusive: no fault was found, but none would have been visible."""
        if self.passed:
            return PASSED
        return INCONCLUSIVE if len(self.failures) == len(self.inconclusive) else FAILED

    @property
    def killed(self) -> tuple[int, int]:
        """The numbers of killed and of applicable mutants of the fp32 ONNX file."""
        found = [bool(mutant.caught_by) for mutant in self.mutants if not mutant.not_applicable]
        return sum(found), len(found)

    def summaries(self) -> Iterator[str]:
        """Yield each verdict as a line for a terminal, and how its tolerance was loosened."""
        for verdict in self.verdicts:
            yield verdict.summary()
            if verdict.tolerance.loosened:
                yield f"  LOOSENED {verdict.tolerance.loosened}"
        if self.features is not None:
            yield self.features.summary()
        for layer in self.blind:
            yield f"SAMPLES BLIND, PROVENANCE ONLY: {layer}: no sample reveals a weight off by 1%"


def _place(row: Row) -> str:
    threads = "" if row.threads == 1 else f" in {row.threads} threads"
    return threads + (f", {row.block}" if row.block else "")


def _row_violations(row: Row, allowed: Tolerance, figures: ParityFigures) -> Iterator[str]:
    allowed = _for_block(row, allowed)
    for output, found in row.outputs.items():
        worst = figures.describe(found.worst[0], row.block)
        for complaint in violations(found, allowed):
            yield f", {output}: {complaint}, worst at {worst}"
    invariance, bound = row.batch_invariance, allowed.batch_invariance
    if invariance is not None and bound is not None and not invariance <= bound:
        yield (
            f": outputs differ from those at the first batch size by {invariance:.2e} > {bound:.0e}"
        )
    if not row.softmax_error <= allowed.softmax_error:
        yield (
            f": probabilities differ from softmax(logits) by {row.softmax_error:.2e} > "
            f"{allowed.softmax_error:.0e}"
        )


def is_inexact(row: Row, allowed: Tolerance) -> bool:
    """Whether an output in a row exceeds the tolerance."""
    allowed = _for_block(row, allowed)
    return any(any(violations(found, allowed)) for found in row.outputs.values())


def _for_block(row: Row, allowed: Tolerance) -> Tolerance:
    """A tolerance for a row's block of samples.

    Edge cases are judged by their largest error, relative to their own floor if there is one. The
    RMS error of a few values is mostly chance, and the scaled error allowed for samples does not
    apply to outputs far outside their range.
    """
    if row.block != EDGE_CASES:
        return allowed
    has_floor = any(found.floor_largest is not None for found in row.outputs.values())
    changes: dict[str, float | None] = {"rms_ratio": None}
    if allowed.scaled_error and has_floor:  # if 0, edge cases must be bit-equal too
        changes |= {"scaled_error": None, "batch_invariance": None}
    return allowed.model_copy(update=changes)


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


def judged_mutants(figures: ParityFigures, table: dict[str, Tolerance]) -> tuple[MutantResult, ...]:
    """The fp32 ONNX file's mutants, with the checks that kill them under these tolerances."""
    allowed = table.get("onnx")
    if allowed is None:
        return figures.faults
    return tuple(
        fault.model_copy(update={"caught_by": kills(fault, allowed)}) for fault in figures.faults
    )


def _with_survivors(
    failures: dict[str, list[str]], figures: ParityFigures, table: dict[str, Tolerance]
) -> dict[str, list[str]]:
    """Add the mutants of reduced-precision files that no check kills to the failures."""
    for variant, faults in figures.reduced_faults.items():
        failures[variant] += [
            f"{variant}: mutant not killed: {fault.name} ({fault.planted})"
            for fault in _survivors(faults, table[variant], figures.device)
        ]
    return failures


def _survivors(
    faults: Iterable[MutantResult], allowed: Tolerance, device: str
) -> Iterator[MutantResult]:
    """The mutants that should be killed and are not.

    If the tolerance says, with a reason, that weights are not judged, mutants that only provenance
    would have killed may survive. Every other mutant must be killed.
    """
    table = tolerance_for(allowed.variant, device)
    for fault in faults:
        if fault.not_applicable is not None or kills(fault, allowed):
            continue
        excused = allowed.weights is None and kills(
            fault, allowed.model_copy(update={"weights": table.weights})
        )
        if not excused:
            yield fault


def _inconclusive(figures: ParityFigures, table: dict[str, Tolerance]) -> Iterator[str]:
    """Reasons why the samples and the mutants could not have shown a fault."""
    allowed = table.get("onnx") or table[figures.variants[0]]
    if allowed.evidence is None:
        return
    multiple = CLEARLY * (allowed.rms_multiple or 1)
    for output, variation in figures.variation.items():
        if not variation > multiple:
            yield (
                f"{output} hardly varies: {variation:.2g} x float32's own rounding error (<= "
                f"{multiple:g} x), so a file with the same output for all samples would pass; give "
                "samples with different outputs"
            )
    if figures.distinct is not None and figures.distinct < LEAST_DISTINCT:
        yield f"only {figures.distinct} samples are distinct; expected at least {LEAST_DISTINCT}"
    # Mutants are planted, and values inside compared, only on the CPU.
    if figures.device == "cpu" and figures.schema_version >= SCHEMA_VERSION:
        yield from _unseen(figures, allowed)


def _unseen(figures: ParityFigures, allowed: Tolerance) -> Iterator[str]:
    if not figures.layers:
        yield "no intermediate value was compared: none has the name of one of the checkpoint's"
    applicable = [fault for fault in figures.faults if fault.not_applicable is None]
    if not applicable:
        yield "no mutant could be planted, so nothing shows that a fault would be detected"
    elif not any(
        kills(fault, allowed.model_copy(update={"weights": None})) for fault in applicable
    ):
        yield "no sample reveals any mutant: only the provenance of the weights can detect a fault"
    if allowed.weights is None:
        for layer in blind_layers(figures.layers):
            yield (
                f"no sample reveals a weight off by 1% in {layer.value} ({layer.op}, {layer.where})"
                ", and the provenance of weights is not judged"
            )


def _general_failures(figures: ParityFigures, table: dict[str, Tolerance]) -> Iterator[str]:
    coverage = figures.coverage
    if not coverage.share_of_all_samples >= COVERAGE:
        yield (
            f"coverage: the {coverage.samples} samples of every batch size activate "
            f"{coverage.active} of the {coverage.active_in_all} units that all samples activate "
            f"({coverage.share_of_all_samples:.0%} < {COVERAGE:.0%}): faults in the others would "
            "not be detected"
        )
    for layer in figures.layers:
        if layer.exact and layer.max_abs_error != 0:
            yield (
                f"onnx: {layer.value} ({layer.op}, {layer.where}) is computed only by exactly "
                f"rounded operators and must be bit-equal: it differs by {layer.max_abs_error:.1e}"
            )
        elif "onnx" in table and layer.local and _local_violation(layer.local, table["onnx"]):
            yield (
                f"onnx: {layer.value} ({layer.op}, {layer.where}) is not the result of its "
                f"operator: RMS {layer.local.rms:.1f} x and largest error "
                f"{layer.local.largest:.1f} x float32's own rounding error"
            )
    if "onnx" in table:
        for fault in _survivors(figures.faults, table["onnx"], figures.device):
            yield f"mutation test: no check kills the mutant {fault.name} ({fault.planted})"


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
        scaled_error=max(c.scaled_error for row, c in found if row.block != EDGE_CASES),
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
