"""All that the gate measures, as ``parity.json`` holds it. Knows no torch.

Figures alone: whether they are good enough is for ``judge`` to say.
"""

from collections.abc import Collection
from typing import Self

from pydantic import Field

from export.bundle.manifest import SampleSet, TensorSpec
from export.bundle.metrics import Comparison, Figures
from export.bundle.tolerances import Device, Tolerance
from export.provenance.figures import WeightFigures

SCHEMA_VERSION = 3
# Where more of the values have no counterpart, it is said that the inside is hardly compared.
INSIDE_SHARE = 0.5
EDGE_CASES = "edge cases"  # a block of samples with a scale of its own
ALONE = "alone"  # a batch of one: another batch size, not only other neighbours


class Row(Figures):
    """One variant at one batch size.

    Attributes:
        outputs: Each output compared with the reference's, probabilities left out.
        batch_invariance: Largest scaled difference to the same samples' answers in batches of the
            largest size; None at that size.
        softmax_error: See ``golden.head_error``.
        threads: Threads within an operator.
        block: Which samples: "" for those of the proof, ``EDGE_CASES``, or the sizes of variable
            axes. Each block has a scale of its own.
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
    """What processors would make of int8 products that they add in pairs in 16 bits.

    Attributes:
        products: Nodes that multiply unsigned activations by signed weights.
        channels: Their output channels; ``unsafe`` those where a pair could exceed 16 bits.
        largest: The largest sum of two neighbouring products that could be: 255 times the weights.
    """

    products: int
    channels: int
    unsafe: int
    largest: int

    def summary(self) -> str:
        """What follows, in words."""
        if not self.unsafe:
            return f"no pair of int8 products exceeds 16 bits: at most {self.largest:,}"
        return (
            f"in {self.unsafe:,} of {self.channels:,} int8 channels two products together could "
            f"exceed 16 bits (up to {self.largest:,}): exact on x86 processors without VNNI only "
            "with ONNX Runtime's setting session.x64quantprecision=1, which this project sets there"
        )


class FileFigures(Figures):
    """A model's file, read and not run; ``problems`` are what is not as it was asked for."""

    path: str
    size_bytes: int
    problems: tuple[str, ...]
    weights: WeightFigures | None = None
    saturation: Saturation | None = None


class FeatureFigures(Figures):
    """The file of the first layer beside the checkpoint's values at that place.

    Attributes:
        layer: Which it is, in words.
        output: The file's only output.
        problems: What is not as in the ONNX file that it was cut from, in words.
        by_batch: What was found, by batch size.
    """

    layer: str
    output: TensorSpec
    path: str
    problems: tuple[str, ...]
    by_batch: dict[int, Comparison]


class Coverage(Figures):
    """Units (neurons and channels behind activation functions) that the samples activate.

    Attributes:
        samples: How many samples every batch size runs over.
        units: All units there are.
        active_in_all: Those whose value is not the same for all samples of the set.
        active: Those of them that are not the same for the samples of every batch size either.
        by_layer: active and all units of each activation.
    """

    samples: int
    units: int
    active_in_all: int
    active: int
    by_layer: dict[str, tuple[int, int]]

    @property
    def share(self) -> float:
        """Active ones of all units, 0..1: the others are proven by their weights alone."""
        # A network without activation functions has nothing that could be dead.
        return self.active / self.units if self.units else 1.0

    @property
    def share_of_all_samples(self) -> float:
        """Active ones of those that all samples activate, 0..1; 0 if nothing is ever active."""
        if self.units == 0:
            return 1.0
        return self.active / self.active_in_all if self.active_in_all else 0.0


class LocalFigures(Figures):
    """One value beside what its operators give in float64 for the file's own values before it.

    Attributes:
        rms: The worst channel's RMS error over that of float32 (see ``metrics.Floor``).
        largest: The same of the largest errors.
        bound: The largest error over gamma_n * sum |a| |b|, which no order of a product's sum
            exceeds; None of other operators.
        visible: How many times beyond its limit a weight of the layer would be that is off by 1%;
            None where there is no weight.
    """

    rms: float
    largest: float
    bound: float | None = None
    visible: float | None = None


class Layer(Figures):
    """One value inside the graph, in the order of computation.

    Attributes:
        value: Its name in the ONNX graph; ``node`` is the node that gives it, ``op`` its kind.
        module: Path of the module that it belongs to, e.g. "classifier.features.0".
        source: File and line of the code, relative to the repository or to site-packages.
        code: That line.
        scaled_error: Against eager float32; ``rms_ratio`` against float64 over eager's own.
        exact: All operators up to here are exactly rounded: it must be bit-equal.
        local: What the value's own operator does to the file's own inputs; None where it could not
            be computed alone.
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
        """Module and source line, as far as known."""
        return f"{self.module or 'the outermost module'}, {self.source or 'no source line'}"


class MutantResult(Figures):
    """A mutant of an ONNX file and what the checks made of it.

    Attributes:
        name: e.g. "one weight +1% (Conv)".
        planted: What was changed, in words.
        figures: What was measured: scaled_error, rms_ratio, label_flips, weights, exact,
            softmax_error.
        caught_by: The checks that killed it under the tolerances of the build; ``judge.kills``
            says it of others.
        not_applicable: Why this model cannot have the fault; else None.
        outputs: Each output compared with the reference's; none in older files.
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

    ``images`` are its image-like inputs, uint8 [H, W] as lists.
    """

    description: str
    eager_label: int | None
    images: dict[str, list[list[int]]]


class Trial(Figures):
    """A file of reduced precision with some layers in float32, asked calibration samples.

    Attributes:
        kept: Those layers' names.
        calibration: How int8's ranges were chosen; None of float16 and float32.
        sqnr_db: Against the float32 file, as ``scaled_error``; the worst output's.
        accuracy: Share of labels that are the target; None where no targets are known.
        size_bytes: Of the file.
        samples_per_s: In batches of 64, one thread, on the machine of the build; None in a bundle,
            whose files are the same on each machine.
        complaint: The first tolerance that it violates, None if it passes.
        surely: It passes by so much that other samples will hardly say otherwise.
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
        """True if nothing was beyond the tolerance."""
        return self.complaint is None


class RepairFigures(Figures):
    """What was tried for a variant of reduced precision that had failed.

    Attributes:
        layers: The names of all that could be kept in float32.
        samples: How many calibration samples judged each trial.
        fp32: The float32 file, for comparison.
        trials: In their order.
        chosen: The trial that the gate judged then; None if none passed.
    """

    layers: tuple[str, ...]
    samples: int
    fp32: Trial
    trials: tuple[Trial, ...]
    chosen: int | None

    def without_times(self) -> "RepairFigures":
        """The same without what is of this machine and this moment."""
        fp32, *trials = (
            trial.model_copy(update={"samples_per_s": None}) for trial in (self.fp32, *self.trials)
        )
        return self.model_copy(update={"fp32": fp32, "trials": tuple(trials)})


class ParityFigures(Figures):
    """Everything the gate measured on one device.

    Attributes:
        broken: Variants that could not be opened or run to the end, and what happened; they have
            no rows.
        corners: In older files, the names of edge cases that stand before the samples.
        edge_cases: The names of the edge cases, which have rows of their own.
        edge_cases_left_out: Those that prove nothing, each with the reason.
        unmatched: Float values inside the ONNX file that were not compared, by name.
        faults: The mutants of the fp32 ONNX file; ``reduced_faults`` those of the other ONNX files,
            by variant.
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
        """The same with some variants' figures taken from ``fresh``: their files are others now."""
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
        """A sample by its position in a block, as a person would look it up."""
        if block == EDGE_CASES:
            return f"edge case {self.edge_cases[position]!r}"
        if position < len(self.corners):
            return f"corner case {self.corners[position]!r}"
        sample = f"sample {position - len(self.corners)}"
        return f"{sample} of {block}" if block else sample

    def largest(self, variant: str) -> Row:
        """A variant's row over most samples."""
        return max((r for r in self.rows if r.variant == variant), key=lambda row: row.samples)
