"""Configuration and presets of a training run: a frozen record saved with the weights.

A run depends only on ``TrainConfig``, the data set and the machine.
"""

from typing import Any, Literal, Self

from pydantic import BaseModel, Field, model_validator

from training.models import ARCHITECTURES, architecture_config, resolved


class AugmentConfig(BaseModel, frozen=True, extra="forbid"):
    """Random affine and elastic distortion of each training image, drawn anew in each epoch.

    If all values are zero, augmentation is off. Ranges are symmetric: each image's value is drawn
    uniformly from -limit to +limit. Elastic distortion bends an image like rubber: it interpolates
    the random displacements of a few points. The idea is from Simard, Steinkraus and Platt 2003,
    "Best practices for convolutional neural networks"; they blur a random field instead.
    """

    rotation_deg: float = Field(default=0.0, ge=0, le=45, description="degrees, both ways")
    scale: float = Field(
        default=0.0, ge=0, lt=1, description="fraction of size, drawn for each axis"
    )
    shear: float = Field(default=0.0, ge=0, lt=1, description="pixels sideways per pixel of height")
    shift_px: float = Field(default=0.0, ge=0, le=14, description="pixels, drawn for each axis")
    elastic_px: float = Field(
        default=0.0,
        ge=0,
        le=4,
        description="standard deviation of a 5x5 grid's displacements along each axis, pixels",
    )

    stretch: float = Field(
        default=0.0,
        ge=0,
        le=3,
        description="how much wider a narrow digit becomes, as a share of its width, at most as "
        "wide as MNIST's box of 20 pixels; one digit in four becomes narrower, by at most a third",
    )
    stroke: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="how far strokes grow towards all eight neighbouring pixels; they shrink by "
        "half as much",
    )
    coarse_share: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="share of the images that are resampled through a coarser grid of pixels and "
        "gain contrast, like enlarged small pictures",
    )
    clean_share: float = Field(
        default=0.0, ge=0, lt=1, description="share of the images that are not distorted"
    )

    @property
    def is_off(self) -> bool:
        """True if no image would be changed."""
        return not any(self.model_dump(exclude={"clean_share"}).values())


AFFINE = AugmentConfig(rotation_deg=12, scale=0.12, shear=0.2, shift_px=2.5)


class DistilConfig(BaseModel, frozen=True, extra="forbid"):
    """Training on other networks' mean probabilities in addition to the labels.

    Hinton, Vinyals and Dean 2015, "Distilling the knowledge in a neural network".
    """

    teachers: tuple[str, ...] = Field(min_length=1, description="sha256 of each teacher's weights")
    share: float = Field(
        default=0.7,
        gt=0,
        le=1,
        description="weight of the loss on the teachers; the loss on the labels gets the rest",
    )
    temperature: float = Field(default=2.0, gt=0, le=100, description="divisor of the logits")


class TrainConfig(BaseModel, frozen=True, extra="forbid"):
    """All settings that determine a run, apart from the data and the machine."""

    model: str = Field(
        description="a name in training.models.ARCHITECTURES; a variant's name is replaced by "
        "its architecture's, and its hyperparameters are filled in"
    )
    architecture: dict[str, Any] = Field(
        default_factory=dict,
        description="the architecture's hyperparameters; missing ones are filled in",
    )
    epochs: int = Field(default=10, ge=1, le=10_000)
    batch_size: int = Field(default=256, ge=2, le=65_536, description="images")
    max_learning_rate: float = Field(
        default=5e-3, gt=0, le=1, description="the peak of the one-cycle schedule"
    )
    weight_decay: float = Field(default=0.01, ge=0, lt=1, description="decoupled, as in AdamW")
    decay_norms_and_biases: bool = Field(
        default=True, description="False: no weight decay on tensors of one axis"
    )
    ema_decay: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="decay of the moving average of the weights, which is saved; 0: no average",
    )
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    augment: AugmentConfig = AugmentConfig()
    precision: Literal["float32", "bfloat16"] = Field(
        default="float32",
        description="precision of the matrix products in a training step; weights, sums and "
        "metrics stay in float32",
    )
    compiled: bool = Field(
        default=False,
        description="compile the forward and backward pass with torch.compile; on CUDA, as a graph",
    )
    distil: DistilConfig | None = Field(
        default=None, description="networks to learn from in addition to the labels"
    )
    validation_images: int = Field(
        default=5_000, ge=10, description="held out of the training images, the same for each seed"
    )
    seed: int = Field(default=0, ge=0, lt=2**31)

    @model_validator(mode="before")
    @classmethod
    def _complete_architecture(cls, data: Any) -> Any:
        """Fill in the architecture's defaults, so that the saved record is complete."""
        if isinstance(data, dict) and "model" in data:
            given = data.get("architecture", {})
            name, numbers = resolved(str(data["model"]), given)
            config = architecture_config(name, numbers)
            return {**data, "model": name, "architecture": config.model_dump()}
        return data

    @model_validator(mode="after")
    def _is_trained_here(self) -> Self:
        if ARCHITECTURES[self.model].task == "none":
            raise ValueError(
                f"{self.model} is not trained here: its input is not an MNIST image; show its "
                f"layers with: python -m training describe {self.model}"
            )
        return self

    def with_changes(self, **changes: Any) -> Self:
        """Return a validated copy with the given fields replaced; None leaves a field as it is."""
        given = {name: value for name, value in changes.items() if value is not None}
        return type(self).model_validate({**self.model_dump(), **given})


# Elastic distortion imitates handwriting; for networks that milder distortions no longer improve.
BENT = AugmentConfig(rotation_deg=10, scale=0.1, shear=0.16, shift_px=2, elastic_px=0.5)
VERY_BENT = BENT.model_copy(update={"elastic_px": 0.8})
# Also prepares for drawings and small pictures whose pens, widths and resolutions differ from
# MNIST's. It costs no measurable accuracy on MNIST (docs/benchmarks.md).
VARIED = BENT.model_copy(
    update={"stretch": 2.5, "stroke": 0.5, "coarse_share": 0.3, "clean_share": 0.15}
)

Preset = Literal["quick", "full", "best"]

_WIDE_CNN = {"n1": 32, "n2": 64, "n3": 256, "dropout": 0.3, "batch_norm": True}
# Network, preset, hyperparameters, epochs and distortions, chosen only on validation images. There
# is no label smoothing: 0.05 raised the expected calibration error on them from 0.2% to 3.3% (CNN)
# and 4.8% (MLP), at accuracies within 0.04 points.
_PRESETS: list[tuple[str, Preset, dict[str, Any], int, AugmentConfig]] = [
    ("mlp", "quick", {"dropout": 0.2}, 10, AFFINE),
    ("mlp", "full", {"dropout": 0.2}, 40, AFFINE),
    ("mlp", "best", {"hidden": (1024, 1024), "dropout": 0.1}, 35, VERY_BENT),
    ("cnn", "quick", {"n1": 16, "n2": 32, "n3": 128, "dropout": 0.3}, 8, AFFINE),
    ("cnn", "full", _WIDE_CNN, 20, AFFINE),
    ("cnn", "best", _WIDE_CNN, 20, VARIED),
    # An epoch has as many pairs as there are images: twice the work of an epoch of the CNN.
    ("two-input", "quick", {}, 5, AFFINE),
    ("two-input", "full", {}, 20, AFFINE),
    ("two-input", "best", {}, 40, BENT),
    # It will reconstruct undistorted images, so it is trained on undistorted images.
    ("autoencoder", "quick", {}, 5, AugmentConfig()),
    ("autoencoder", "full", {}, 20, AugmentConfig()),
    ("autoencoder", "best", {}, 40, AugmentConfig()),
]
PRESETS: dict[tuple[str, str], TrainConfig] = {
    (model, which): TrainConfig(
        model=model, architecture=numbers, epochs=epochs, augment=distortions
    )
    for model, which, numbers, epochs, distortions in _PRESETS
}


def preset(name: str, which: Preset) -> TrainConfig:
    """Return a preset of any network that can be trained here.

    A variant uses its architecture's preset with its own hyperparameters. An architecture without
    a row in ``PRESETS`` uses the CNN's epochs, batch size, learning rate and augmentation with its
    own default hyperparameters, so that it can be compared with the CNN.

    Args:
        name: A name from ``training.models.model_names()``.
        which: "quick", "full" or "best".

    Raises:
        ValueError: The name is unknown, or the network is not trained here.
    """
    model, numbers = resolved(name, {})
    own = PRESETS.get((model, which))
    if own is not None:
        return own.with_changes(architecture={**own.architecture, **numbers})
    conditions = PRESETS["cnn", which].model_dump(exclude={"model", "architecture"})
    return TrainConfig(model=model, architecture=numbers, **conditions)
