"""The schema of a bundle's manifest. Imports no torch.

Tensors are described as in the Open Inference Protocol, by ``name``, ``datatype`` and ``shape``,
with -1 for the batch axis.
"""

from typing import Any, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, model_validator

from export.bundle.tolerances import Device, Format, Tolerance, variant_name

SCHEMA_VERSION = 3
NAMED = 5  # layer names shown in one line
# The name and the version are used in URLs, metric labels and file paths.
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$"
SHA256_PATTERN = r"^[0-9a-f]{64}$"

Task = Literal["tensors", "image-classification", "digits"]
# The numeric datatypes of the Open Inference Protocol; BYTES, its strings, are not supported.
Datatype = Literal[
    "BOOL",
    "UINT8",
    "UINT16",
    "UINT32",
    "UINT64",
    "INT8",
    "INT16",
    "INT32",
    "INT64",
    "FP16",
    "FP32",
    "FP64",
]
DTYPES: dict[Datatype, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype(np.uint8),
    "UINT16": np.dtype(np.uint16),
    "UINT32": np.dtype(np.uint32),
    "UINT64": np.dtype(np.uint64),
    "INT8": np.dtype(np.int8),
    "INT16": np.dtype(np.int16),
    "INT32": np.dtype(np.int32),
    "INT64": np.dtype(np.int64),
    "FP16": np.dtype(np.float16),
    "FP32": np.dtype(np.float32),
    "FP64": np.dtype(np.float64),
}


class BundleError(ValueError):
    """A bundle is missing, incomplete, altered or of another schema; the message names the file."""


class SubjectError(ValueError):
    """A module, its weights or samples cannot be exported as given; the message says what to do."""


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Domain(_Strict):
    """Which values an input may have.

    Attributes:
        kind: "range": every number from ``low`` to ``high``; "tokens": the ids 0 to ``high`` of a
            vocabulary; "mask": each sample is one or more ones, followed by zeros; "length": how
            many positions are valid, from ``low`` to ``high``.
        low: The smallest value; None for a mask.
        high: The largest value; None for a mask.
    """

    kind: Literal["range", "tokens", "mask", "length"]
    low: FiniteFloat | None = None
    high: FiniteFloat | None = None

    @model_validator(mode="after")
    def _has_limits(self) -> Self:
        if self.kind == "mask":
            return self
        if self.low is None or self.high is None or self.low > self.high:
            raise ValueError(
                f"{self.kind} goes from {self.low} to {self.high}; expected two numbers, the "
                "smaller one first"
            )
        if self.kind != "range" and self.low < (0 if self.kind == "tokens" else 1):
            least = 0 if self.kind == "tokens" else 1
            raise ValueError(f"{self.kind} starts at {self.low:g}; expected at least {least}")
        return self


class TensorSpec(_Strict):
    """One input or output, e.g. images UINT8 [-1, 28, 28].

    Attributes:
        kind: What an output means: "logits" are [-1, K], the largest is the label;
            "probabilities" are the softmax of the logits before them; "values" is anything else.
        bounds: For each variable axis (-1) beyond the batch axis, its index and the inclusive
            minimum and maximum of its size. All samples of a request have the same sizes.
        axes: Names of variable axes by index; axes with the same name have the same size in a
            request.
        domain: Which values an input may have; None: not declared.
    """

    name: str = Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    datatype: Datatype
    shape: tuple[int, ...]
    kind: Literal["values", "logits", "probabilities"] = "values"
    bounds: dict[int, tuple[int, int]] = Field(default_factory=dict)
    axes: dict[int, str] = Field(default_factory=dict)
    domain: Domain | None = None

    @model_validator(mode="after")
    def _variable_axes_have_bounds(self) -> Self:
        variable = {axis for axis, size in enumerate(self.shape) if axis > 0 and size == -1}
        if variable != self.bounds.keys():
            raise ValueError(
                f"{self} has bounds for the axes {sorted(self.bounds)}; expected bounds for the "
                f"axes of size -1 after the batch axis: {sorted(variable)}"
            )
        for axis, (low, high) in self.bounds.items():
            if not 1 <= low <= high:
                raise ValueError(
                    f"{self} has the bounds {low} to {high} for axis {axis}; expected a minimum "
                    "of at least 1 and a maximum that is not below it"
                )
        if not self.axes.keys() <= variable:
            raise ValueError(
                f"{self} names the axes {sorted(self.axes)}; expected names only for axes of size "
                f"-1 after the batch axis: {sorted(variable)}"
            )
        return self

    @property
    def sample_bounds(self) -> tuple[tuple[int, int], ...]:
        """For each axis of a sample, the inclusive minimum and maximum of its size."""
        return tuple(
            self.bounds.get(axis, (size, size)) for axis, size in enumerate(self.shape) if axis > 0
        )

    @property
    def largest_sample(self) -> tuple[int, ...]:
        """The largest shape that a sample may have."""
        if not self.bounds:
            return self.shape[1:]
        return tuple(high for _, high in self.sample_bounds)

    @property
    def dtype(self) -> "np.dtype[Any]":
        """NumPy's type of the values."""
        return DTYPES[self.datatype]

    def __str__(self) -> str:
        """The spec as on the command line: images=UINT8[-1,28,28]."""
        return f"{self.name}={self.datatype}[{','.join(map(str, self.shape))}]"


class ImagePreprocessing(_Strict):
    """How a picture is converted to one sample of an image classifier.

    The steps are: resize, crop the centre, multiply by ``scale``, subtract ``mean`` and divide by
    ``std``. The pixels are 0 to 255 before scaling.

    Attributes:
        resize: The picture is resized so that its shorter side has this many pixels; None: it is
            not resized.
        crop: Height and width of the input, in pixels.
        channels: 1: grey; 3: red, green, blue.
        layout: The order of the input's axes; "NHW" has no axis for the only channel.
        interpolation: How the picture is resized; with anti-aliasing, except for "nearest".
        scale: For example 1/255; 1 leaves the pixels as they are.
        mean: One number per channel, after scaling.
        std: One number per channel, after scaling; above 0.
    """

    resize: int | None = Field(None, ge=1)
    crop: tuple[int, int]
    channels: Literal[1, 3]
    layout: Literal["NCHW", "NHWC", "NHW"]
    interpolation: Literal["bilinear", "bicubic", "nearest"] = "bilinear"
    scale: float = Field(1.0, gt=0, allow_inf_nan=False)
    mean: tuple[FiniteFloat, ...]
    std: tuple[FiniteFloat, ...]

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if len(self.mean) != self.channels or len(self.std) != self.channels:
            raise ValueError(
                f"mean has {len(self.mean)} numbers and std {len(self.std)}; expected "
                f"{self.channels}, one for each channel"
            )
        if min(self.std) <= 0:
            raise ValueError(f"std is {self.std}; expected numbers above 0")
        if min(self.crop) < 1:
            raise ValueError(f"crop is {self.crop}; expected a height and a width of at least 1")
        if self.resize is not None and self.resize < max(self.crop):
            raise ValueError(
                f"resize is {self.resize} and crop {self.crop}; expected a resized picture that "
                "is at least as large as the crop"
            )
        if self.layout == "NHW" and self.channels != 1:
            raise ValueError(f"layout NHW has one channel, not {self.channels}; expected NCHW")
        return self

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """The shape of one sample in the layout."""
        height, width = self.crop
        if self.layout == "NCHW":
            return (self.channels, height, width)
        return (height, width, self.channels) if self.layout == "NHWC" else (height, width)


class FileEntry(_Strict):
    """One file of the bundle; only models have the last three fields."""

    path: str = Field(pattern=r"^[A-Za-z0-9._-]+$", description="the file's name in the bundle")
    role: Literal["model", "weights", "golden", "parity", "guard", "features", "features-golden"]
    sha256: str = Field(pattern=SHA256_PATTERN)
    size_bytes: int = Field(ge=0)
    format: Format | None = None
    precision: Literal["fp32", "fp16", "int8"] | None = None
    opset: int | None = None

    @property
    def variant(self) -> str | None:
        """The variant of a model file, e.g. "onnx-int8"; None for other files."""
        return None if self.format is None else variant_name(self.format, self.precision)


class ParityVerdict(_Strict):
    """The gate's verdict on one variant: the worst figures over all outputs and batch sizes.

    ``samples`` is how many samples the batches of 256 ran over; other batch sizes run over at most
    the first 1,000, or one batch. If there are too few samples for a batch, they are repeated.
    ``certificate`` is the smallest distance between the reference's two best logits divided by the
    largest error: above 2, no label of these samples can change. None without logits.
    """

    format: Format
    precision: str
    device: Device
    passed: bool
    scaled_error: float
    rms_ratio: float
    sqnr_db: float | None
    label_flips: int
    accuracy: float | None
    certificate: float | None
    samples: int
    batch_sizes: tuple[int, ...]
    threads: tuple[int, ...] = (1,)
    tolerance: Tolerance

    @property
    def variant(self) -> str:
        """The format, followed by the precision unless that is fp32."""
        return self.tolerance.variant

    @model_validator(mode="after")
    def _passed_means_within_the_tolerance(self) -> Self:
        bounds = (self.tolerance.scaled_error, self.tolerance.rms_ratio)
        figures = (self.scaled_error, self.rms_ratio)
        if self.passed and any(
            bound is not None and not figure <= bound
            for figure, bound in zip(figures, bounds, strict=True)
        ):
            raise ValueError("the verdict is passed, but its figures exceed the tolerance")
        return self

    def summary(self) -> str:
        """One line for a terminal."""
        bound = self.tolerance.scaled_error
        limit = "" if bound is None else f" (<= {bound:.0e})" if bound else " (bit-equal)"
        ratio = self.tolerance.rms_ratio
        parts = [
            f"{self.variant:18} {self.device}: {'passed' if self.passed else 'FAILED'}",
            f"scaled error {self.scaled_error:.1e}{limit}",
            f"RMS {self.rms_ratio:.1f} x eager's (<= {ratio:.0f})" if ratio else "",
            f"SQNR {self.sqnr_db:.1f} dB" if self.sqnr_db and self.tolerance.sqnr_db else "",
            f"{self.label_flips} label flips in {self.samples:,} samples",
        ]
        return "  ".join(part for part in parts if part)


class FeatureMaps(_Strict):
    """The output of the first layer's file, and the gate's verdict on it.

    Attributes:
        layer: A description, e.g. "features.1 (ReLU after Conv 5x5, 16 channels)".
        output: The file's only output: [-1, channels, ...], or [-1, units] for a dense layer.
        verdict: The verdict by the tolerance of the fp32 ONNX file, of which this file is a part.
    """

    layer: str
    output: TensorSpec
    verdict: ParityVerdict

    def summary(self) -> str:
        """One line for a terminal."""
        found = self.verdict
        return (
            f"{'first layer':18} {found.device}: {'passed' if found.passed else 'FAILED'}  "
            f"scaled error {found.scaled_error:.1e}  RMS {found.rms_ratio:.1f} x eager's  "
            f"{found.samples} samples  {self.layer}"
        )


class TrainingSummary(_Strict):
    """How the weights were trained; the complete record is kept with the checkpoint.

    Attributes:
        test_accuracy: Share of test samples whose outputs are all correct, 0..1; None for a network
            whose outputs are not correct or incorrect.
        expected_calibration_error: 0..1; None for a network with more than one output of
            probabilities.
        split_sha256: Fingerprint of the images held out for validation; None in older bundles.
    """

    config: dict[str, Any]
    parameters: int
    data_name: str
    data_sha256: str
    split_sha256: str | None = None
    test_images: str = Field(description="the test images that were used")
    test_accuracy: float | None = Field(ge=0, le=1)
    expected_calibration_error: float | None = Field(ge=0, le=1)
    device: str
    commit: str


class FactorySummary(_Strict):
    """The factory of any other module: ``package.module:function`` and its arguments."""

    factory: str = Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")
    arguments: dict[str, Any]
    parameters: int


class SampleSet(_Strict):
    """Which samples were used: their name, their number and their fingerprint."""

    name: str
    samples: int
    sha256: str = Field(pattern=SHA256_PATTERN)


class RepairSummary(_Strict):
    """How a variant was repaired that failed with all layers in reduced precision.

    Attributes:
        layers: How many layers could be in reduced precision.
        kept: The names of the layers that are in float32 instead.
        calibration: How int8's ranges were chosen: "minmax", "entropy" or "percentile", each
            fitted to every second calibration sample; None for float16.
        trials: How many files were tried, on the other calibration samples.
    """

    layers: int
    kept: tuple[str, ...]
    calibration: str | None
    trials: int

    def summary(self) -> str:
        """A description for a terminal."""
        shown, more = self.kept[:NAMED], len(self.kept) - NAMED
        names = f" ({', '.join(shown)}{f' and {more} more' if more > 0 else ''})" if shown else ""
        ranges = f", ranges by {self.calibration}" if self.calibration else ""
        return (
            f"{len(self.kept)} of {self.layers} layers kept in float32{names}{ranges}; "
            f"{self.trials} trials"
        )


class GuardSummary(_Strict):
    """Which images guard.npz describes; see ``export.mnist.ood_detector``.

    Attributes:
        learned: The images that the components were fitted to.
        held_out: Other images, with which p-values are computed.
        unusual_below: An image with a smaller p-value is reported as unusual.
    """

    learned: SampleSet
    held_out: SampleSet
    unusual_below: float = Field(gt=0, lt=1)


class Manifest(_Strict):
    """The manifest of a bundle; its fields are in reading order.

    Attributes:
        task: What the model does, which decides the endpoints that return more than its tensors;
            None in older bundles.
        preprocessing: How a picture is converted to an input, for image classifiers.
    """

    schema_version: int = SCHEMA_VERSION
    name: str = Field(pattern=NAME_PATTERN)
    version: str = Field(pattern=NAME_PATTERN)
    architecture: str
    task: Task | None = None
    inputs: tuple[TensorSpec, ...] = Field(min_length=1)
    outputs: tuple[TensorSpec, ...] = Field(min_length=1)
    labels: tuple[str, ...]
    preprocessing: ImagePreprocessing | None = None
    files: tuple[FileEntry, ...]
    parity: tuple[ParityVerdict, ...]
    features: FeatureMaps | None = None
    proof: SampleSet = Field(description="the samples of the proof")
    calibration: SampleSet | None = Field(description="the samples that set int8's scales")
    guard: GuardSummary | None = None
    repaired: dict[str, RepairSummary] = Field(
        default_factory=dict, description="variants that keep some layers in float32 to pass"
    )
    not_built: dict[str, str] = Field(description="what is missing, and why")
    tolerances: tuple[Tolerance, ...] = Field(
        description="the allowed errors of the ONNX variants, for each device that can serve them"
    )
    training: TrainingSummary | None
    factory: FactorySummary | None = None
    commit: str
    versions: dict[str, str]

    @model_validator(mode="after")
    def _guard_has_a_file(self) -> Self:
        if (self.guard is not None) != any(entry.role == "guard" for entry in self.files):
            raise ValueError("expected a guard and its file together, or neither")
        return self

    @model_validator(mode="after")
    def _feature_maps_are_whole(self) -> Self:
        roles = {entry.role for entry in self.files} & {"features", "features-golden"}
        if len(roles) != (0 if self.features is None else 2):
            raise ValueError(
                "expected feature maps, their file and their golden samples together, or none"
            )
        return self

    @property
    def parameters(self) -> int:
        """The number of trainable parameters."""
        source = self.training or self.factory
        return source.parameters if source else 0

    def tolerance(self, device: str, variant: str = "onnx") -> Tolerance:
        """The tolerance for a variant of the ONNX file on a device.

        Raises:
            BundleError: The bundle has none, or one that is looser than this code's table without a
                recorded reason.
        """
        for row in self.tolerances:
            if (row.device, row.variant) == (device, variant):
                looser = row.beyond_table()
                if looser and not row.loosened:
                    raise BundleError(
                        f"{self.name} has a looser tolerance than the table for {variant} on "
                        f"{device}, without a recorded reason: {'; '.join(looser)}"
                    )
                return row
        raise BundleError(f"{self.name} has no tolerance for {variant} on {device}")
