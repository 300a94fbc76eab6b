"""The schema of ``parity.json``: everything that the gate measures. Imports no torch.

The figures contain no verdicts; ``judge`` decides whether they are good enough.
"""

from collections.abc import Collection
from typing import Self

from pydantic import Field

from export.bundle.manifest import SampleSet, TensorSpec
from export.bundle.metrics import Comparison, Figures
from export.bundle.tolerances import Device, Tolerance
from export.provenance.figures import WeightFigures

SCHEMA_VERSION = 3
# If fewer of the values inside have a counterpart, the report says that hardly any are compared.
INSIDE_SHARE = 0.5
EDGE_CASES = "edge cases"  # a block of samples with a scale of its own
ALONE = "alone"  # a batch of one, which also changes the batch size


class Row(Figures):
    """One variant at one batch size.

    Attributes:
        outputs: Each output compared with the reference's, except probabilities.
        batch_invariance: Largest scaled difference to the same samples' outputs in the first run's
            batch size; None for that run.
        softmax_error: See ``golden.head_error``.
        threads: Threads within an operator.
        block: Which samples: "" for those of the proof, ``EDGE_CASES``, or the sizes of variable
            axes. Each block has its own scale.
    """

    variant: str
    batch_size: int
    samples: int
    outputs: dict[str, Comparison]
    batch_invariance: float | None
    softmax_error: float
    threads: int = 1
    block: str = ""


class Saturation(Figures):
    """Whether int8 products can saturate on processors that add pairs of them in 16 bits.

    Attributes:
        products: Number of nodes that multiply unsigned activations by signed weights.
        channels: Number of their output channels.
        unsafe: Number of the channels in which a pair could exceed 16 bits.
        largest: The largest possible sum of two neighbouring products: 255 times the weights.
    """

    products: int
    channels: int
    unsafe: int
    largest: int

    def summary(self) -> str:
        """The consequence in one sentence."""
        if not self.unsafe:
            return f"no sum of two int8 products exceeds 16 bits: at most {self.largest:,}"
        return (
            f"in {self.unsafe:,} of {self.channels:,} int8 channels the sum of two products "
            f"could exceed 16 bits (up to {self.largest:,}): on x86 processors without VNNI it is "
            "exact only with ONNX Runtime's setting session.x64quantprecision=1, which this "
            "project sets there"
        )


class FileFigures(Figures):
    """Figures of a model's file that was only read; ``problems`` are differences to the request."""

    path: str
    size_bytes: int
    problems: tuple[str, ...]
    weights: WeightFigures | None = None
    saturation: Saturation | None = None


class FeatureFigures(Figures):
    """The first layer's file, compared with the checkpoint's values of that layer.

    Attributes:
        layer: A description of the layer.
        output: The file's only output.
        problems: Descriptions of differences to the ONNX file that it was cut from.
        by_batch: The comparison for each batch size.
    """

    layer: str
    output: TensorSpec
    path: str
    problems: tuple[str, ...]
    by_batch: dict[int, Comparison]


class Coverage(Figures):
    """Units (neurons and channels after activation functions) that the samples activate.

    Attributes:
        samples: How many samples every batch size runs over.
        units: The number of units.
        active_in_all: Units whose value is not the same for all samples of the set.
        active: Those of them whose value also varies over the samples of every batch size.
        by_layer: The numbers of active units and of all units of each activation.
    """

    samples: int
    units: int
    active_in_all: int
    active: int
    by_layer: dict[str, tuple[int, int]]

    @property
    def share(self) -> float:
        """Share of all units that are active, 0..1; only their weights prove the others."""
        # A network without activation functions has no units that could be inactive.
        return self.active / self.units if self.units else 1.0

    @property
    def share_of_all_samples(self) -> float:
        """Share of the units that all samples activate, 0..1; 0 if no unit is ever active."""
        if self.units == 0:
            return 1.0
        return self.active / self.active_in_all if self.active_in_all else 0.0


class LocalFigures(Figures):
    """One value compared with its operator's float64 result for the file's own values before it.

    Attributes:
        rms: The worst channel's RMS error over that of float32 (see ``metrics.Floor``).
        largest: The same for the largest errors.
        bound: The largest error over gamma_n * sum |a| |b|, which no summation order of a product
            exceeds; None for other operators.
        visible: How many times its limit the error would be if one weight of the layer were off by
            1%; None if there is no weight.
    """

    rms: float
    largest: float
    bound: float | None = None
    visible: float | None = None


class Layer(Figures):
    """One value inside the graph, in the order of computation.

    Attributes:
        value: The value's name in the ONNX graph.
        node: The ONNX node that computes it; ``op`` is that node's operator.
        module: Path of the module that it belongs to, e.g. "classifier.features.0".
        source: File and line of the code, relative to the repository or to site-packages.
        code: The text of that line.
        scaled_error: Against eager float32; ``rms_ratio`` against float64 over eager's own.
        exact: All operators up to here are exactly rounded, so the value must be bit-equal.
        local: Figures of the value's own operator, given the file's own inputs; None if it could
            not be computed alone.
    """

    value: str
    node: str
    op: str
    module: str
    source: str
    code: str
    scaled_error: float
    rms_ratio: float
    max_abs_error: float
    exact: bool
    local: LocalFigures | None = None

    @property
    def where(self) -> str:
        """Module and source line, if known."""
        return f"{self.module or 'the outermost module'}, {self.source or 'no source line'}"


class MutantResult(Figures):
    """A mutant of an ONNX file and the checks' results for it.

    Attributes:
        name: e.g. "one weight +1% (Conv)".
        planted: A description of the change.
        figures: The measured scaled_error, rms_ratio, label_flips, weights, exact and
            softmax_error.
        caught_by: The checks that killed it under the tolerances of the build; ``judge.kills``
            finds them for other tolerances.
        not_applicable: Why this model cannot have the fault; else None.
        outputs: Each output compared with the reference's; empty in older files.
        local: The worst figures of its values inside.
    """

    name: str
    planted: str
    figures: dict[str, float]
    caught_by: tuple[str, ...]
    not_applicable: str | None = None
    outputs: dict[str, Comparison] = Field(default_factory=dict)
    local: LocalFigures | None = None


class WorstSample(Figures):
    """One of the samples with the largest errors of the ONNX file.

    ``images`` are those of its inputs that are images, uint8 [H, W] as lists.
    """

    description: str
    eager_label: int | None
    images: dict[str, list[list[int]]]


class Trial(Figures):
    """A reduced-precision file with some layers in float32, judged on calibration samples.

    Attributes:
        kept: The names of the layers in float32.
        calibration: How int8's ranges were chosen; None for float16 and float32.
        sqnr_db: The worst output's SQNR against the float32 file; ``scaled_error`` likewise.
        accuracy: Share of labels that match the target; None if no targets are known.
        size_bytes: The size of the file.
        samples_per_s: Speed in batches of 64 with one thread on the machine of the build; None in a
            bundle, whose files must be the same on each machine.
        complaint: The first tolerance that it violates; None if it passes.
        surely: It passes by a margin that makes a failure on other samples unlikely.
    """

    kept: tuple[str, ...]
    calibration: str | None
    sqnr_db: float = float("-inf")
    scaled_error: float = float("inf")
    accuracy: float | None = None
    size_bytes: int = 0
    samples_per_s: float | None = None
    complaint: str | None
    surely: bool = False

    @property
    def passed(self) -> bool:
        """True if no tolerance was violated."""
        return self.complaint is None


class RepairFigures(Figures):
    """The repair search for a reduced-precision variant that had failed.

    Attributes:
        layers: The names of all layers that could be kept in float32.
        samples: How many calibration samples judged each trial.
        fp32: The float32 file, for comparison.
        trials: The trials in their order.
        chosen: The position of the trial that the gate judged next; None if none passed.
    """

    layers: tuple[str, ...]
    samples: int
    fp32: Trial
    trials: tuple[Trial, ...]
    chosen: int | None

    def without_times(self) -> "RepairFigures":
        """The same figures without times, which depend on the machine."""
        fp32, *trials = (
            trial.model_copy(update={"samples_per_s": None}) for trial in (self.fp32, *self.trials)
        )
        return self.model_copy(update={"fp32": fp32, "trials": tuple(trials)})


class ParityFigures(Figures):
    """Everything the gate measured on one device.

    Attributes:
        broken: Variants that could not be opened or run completely, and what happened; they have
            no rows.
        corners: In older files, the names of edge cases that come before the samples.
        edge_cases: The names of the edge cases, which have rows of their own.
        edge_cases_left_out: Edge cases that prove nothing, each with the reason.
        unmatched: Float values inside the ONNX file that were not compared, by name.
        faults: The mutants of the fp32 ONNX file; ``reduced_faults`` has those of the other ONNX
            files, by variant.
        variation: How much each output varies over the samples, in units of float32's floor: the
            RMS distance from the mean of the channel that varies most.
        distinct: How many of the samples differ from all others.
    """

    schema_version: int = SCHEMA_VERSION
    name: str
    device: Device
    proof: SampleSet
    corners: tuple[str, ...] = ()
    edge_cases: tuple[str, ...] = ()
    edge_cases_left_out: dict[str, str] = Field(default_factory=dict)
    outputs: tuple[TensorSpec, ...]
    tolerances: tuple[Tolerance, ...]
    rows: tuple[Row, ...]
    files: dict[str, FileFigures]
    neighbours: dict[str, dict[str, float]]
    coverage: Coverage
    layers: tuple[Layer, ...]
    unmatched: tuple[str, ...] = ()
    faults: tuple[MutantResult, ...]
    reduced_faults: dict[str, tuple[MutantResult, ...]] = Field(default_factory=dict)
    variation: dict[str, float] = Field(default_factory=dict)
    distinct: int | None = None
    worst: tuple[WorstSample, ...]
    features: FeatureFigures | None = None
    not_checked: dict[str, str]
    broken: dict[str, str] = Field(default_factory=dict)
    repairs: dict[str, RepairFigures] = Field(default_factory=dict)
    versions: dict[str, str]

    @property
    def variants(self) -> list[str]:
        """The variants that were measured, in order."""
        return list(dict.fromkeys(row.variant for row in self.rows))

    def without(self, variants: Collection[str]) -> Self:
        """The figures of the other variants."""
        return self.model_copy(
            update={
                "rows": tuple(row for row in self.rows if row.variant not in variants),
                "tolerances": tuple(t for t in self.tolerances if t.variant not in variants),
                "files": {v: found for v, found in self.files.items() if v not in variants},
                "neighbours": {v: n for v, n in self.neighbours.items() if v not in variants},
                "broken": {v: why for v, why in self.broken.items() if v not in variants},
                "reduced_faults": {
                    v: found for v, found in self.reduced_faults.items() if v not in variants
                },
                "repairs": {v: found.without_times() for v, found in self.repairs.items()},
            }
        )

    def replaced(self, fresh: Self, variants: Collection[str]) -> Self:
        """The figures, with those of some variants, whose files were replaced, from ``fresh``."""
        others = self.without(variants)
        mine = fresh.without([v for v in fresh.files if v not in variants])
        return self.model_copy(
            update={
                "rows": (*others.rows, *mine.rows),
                "files": others.files | mine.files,
                "neighbours": others.neighbours | mine.neighbours,
                "broken": others.broken | mine.broken,
                "reduced_faults": others.reduced_faults | mine.reduced_faults,
            }
        )

    def describe(self, position: int, block: str = "") -> str:
        """Describe a sample by its position in a block, so that a person can find it."""
        if block == EDGE_CASES:
            return f"edge case {self.edge_cases[position]!r}"
        if position < len(self.corners):
            return f"corner case {self.corners[position]!r}"
        sample = f"sample {position - len(self.corners)}"
        return f"{sample} of {block}" if block else sample

    def largest(self, variant: str) -> Row:
        """A variant's row with the most samples."""
        return max((r for r in self.rows if r.variant == variant), key=lambda row: row.samples)
