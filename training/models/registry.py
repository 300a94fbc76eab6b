"""The architectures by name. A new one needs a file, a line in ``ARCHITECTURES`` and a test row.

A network's ``task`` determines its inputs and outputs. Most networks classify a digit: they map
standardised images, float [N, 1, 28, 28], to logits, float [N, 10].
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ValidationError
from torch import nn

from training.models.autoencoder import Autoencoder, AutoencoderConfig
from training.models.cnn import Cnn, CnnConfig
from training.models.conv1d import Conv1dConfig, Conv1dNetwork
from training.models.conv3d import Conv3dConfig, Conv3dNetwork
from training.models.inception import Inception, InceptionConfig
from training.models.lecture502 import (
    INPUT_SIZE,
    Lecture502Config,
    Lecture502Subclass,
    lecture502_sequential,
)
from training.models.mlp import Mlp, MlpConfig
from training.models.resnet import ResNet, ResNetConfig
from training.models.two_input import TwoInput, TwoInputConfig
from training.models.vgg import Vgg, VggConfig

Task = Literal["digit", "pair", "image", "none"]


class Architecture(NamedTuple):
    """An architecture: its hyperparameters, its module, its inputs and its task.

    Attributes:
        config: The pydantic model that validates the hyperparameters.
        module: Called with an instance of ``config``, returns a freshly initialised module.
        inputs: The shape of one sample of each input, without the batch axis; standardised
            floats. If a hyperparameter changes a shape, this is the shape for the defaults.
        task: "digit": logits, float [N, 10]. "pair": two images in; (first_logits [N, 10],
            second_logits [N, 10], sum_logits [N, 19]) out. "image": an image in, the standardised
            image, float [N, 1, 28, 28], out. "none": not trained here.
    """

    config: type[BaseModel]
    module: Callable[[Any], nn.Module]
    inputs: tuple[tuple[int, ...], ...] = ((1, 28, 28),)
    task: Task = "digit"


_DIGIT_IMAGE = (1, 28, 28)
_INPUT_502 = ((3, INPUT_SIZE, INPUT_SIZE),)

ARCHITECTURES: dict[str, Architecture] = {
    "autoencoder": Architecture(AutoencoderConfig, Autoencoder, task="image"),
    "cnn": Architecture(CnnConfig, Cnn),
    "conv1d": Architecture(Conv1dConfig, Conv1dNetwork),
    "conv3d": Architecture(Conv3dConfig, Conv3dNetwork),
    "inception": Architecture(InceptionConfig, Inception),
    "lecture502-sequential": Architecture(
        Lecture502Config, lecture502_sequential, _INPUT_502, "none"
    ),
    "lecture502-subclass": Architecture(Lecture502Config, Lecture502Subclass, _INPUT_502, "none"),
    "mlp": Architecture(MlpConfig, Mlp),
    "resnet": Architecture(ResNetConfig, ResNet),
    "two-input": Architecture(TwoInputConfig, TwoInput, (_DIGIT_IMAGE, _DIGIT_IMAGE), "pair"),
    "vgg": Architecture(VggConfig, Vgg),
}

# Former names of networks, which checkpoint records of version 1 still contain.
RENAMED = {
    "branches": "inception",
    "deep": "vgg",
    "large-sequential": "lecture502-sequential",
    "large-subclass": "lecture502-subclass",
    "pair": "two-input",
    "rows": "conv1d",
    "skip": "resnet",
    "volume": "conv3d",
}

# Names for architectures with some of their hyperparameters fixed.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "cnn-strided": ("cnn", {"down": "strided"}),
    "cnn-average-pool": ("cnn", {"down": "average"}),
    "cnn-batch-norm": ("cnn", {"batch_norm": True}),
    "cnn-grouped": ("cnn", {"convolution": "grouped"}),
    "cnn-separable": ("cnn", {"convolution": "separable"}),
    "cnn-dilated": ("cnn", {"convolution": "dilated"}),
    "cnn-global-average": ("cnn", {"head": "average"}),
}


def model_names() -> list[str]:
    """The names of all architectures and of their variants, sorted."""
    return sorted({*ARCHITECTURES, *VARIANTS})


def resolved(name: str, numbers: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Resolve a name to a key of ``ARCHITECTURES`` and hyperparameters.

    Args:
        name: A key of ``ARCHITECTURES``, of ``VARIANTS`` or of ``RENAMED``.
        numbers: Further hyperparameters; those that a variant fixes may be repeated, not changed.

    Raises:
        ValueError: The name is unknown (the message lists the known ones), or a hyperparameter
            contradicts the value that the variant fixes.
    """
    name = RENAMED.get(name, name)
    if name in ARCHITECTURES:
        return name, dict(numbers)
    if name not in VARIANTS:
        raise ValueError(f"unknown model {name!r}; known: {', '.join(model_names())}")
    architecture, fixed = VARIANTS[name]
    for number, value in fixed.items():
        if numbers.get(number, value) != value:
            raise ValueError(
                f"{name} is {architecture} with {number}={value!r}, got {number}="
                f"{numbers[number]!r}: leave it out, or use the model {architecture}"
            )
    return architecture, {**fixed, **numbers}


def architecture_config(name: str, numbers: Mapping[str, Any]) -> BaseModel:
    """Validate an architecture's hyperparameters and fill in the defaults.

    Args:
        name: A key of ``ARCHITECTURES``, of ``VARIANTS`` or of ``RENAMED``.
        numbers: The hyperparameters that differ from the defaults.

    Raises:
        ValueError: The name or a hyperparameter is unknown, or a value is out of range; the
            message names it.
    """
    architecture, numbers = resolved(name, numbers)
    config = ARCHITECTURES[architecture].config
    try:
        return config.model_validate(numbers)
    except ValidationError as error:
        known = ", ".join(config.model_fields)
        raise ValueError(
            f"invalid hyperparameters of {name} (it has: {known}): {explained(error)}"
        ) from error


def explained(error: ValidationError) -> str:
    """Format a validation error as one line: each field, what was expected and what was given."""
    return "; ".join(
        f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}, got {problem['input']!r}"
        if problem["loc"]
        else problem["msg"].removeprefix("Value error, ")
        for problem in error.errors()
    )


def build_model(name: str, numbers: Mapping[str, Any]) -> nn.Module:
    """Build a freshly initialised module of the named architecture, in training mode.

    Args:
        name: A key of ``ARCHITECTURES``, of ``VARIANTS`` or of ``RENAMED``.
        numbers: As for ``architecture_config``.

    Raises:
        ValueError: As ``architecture_config``.
    """
    architecture, _ = resolved(name, numbers)
    return ARCHITECTURES[architecture].module(architecture_config(name, numbers))
