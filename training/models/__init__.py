"""The architectures by name. Adding one is one file, one line in ``ARCHITECTURES``, one test row.

Every architecture maps standardised images, float [N, 1, 28, 28], to logits, float [N, 10].
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from pydantic import BaseModel, ValidationError
from torch import nn

from training.models.cnn import Cnn, CnnConfig
from training.models.mlp import Mlp, MlpConfig


class Architecture(NamedTuple):
    """An architecture's numbers (``config``) and the module made from them (``module``)."""

    config: type[BaseModel]
    module: Callable[[Any], nn.Module]


ARCHITECTURES: dict[str, Architecture] = {
    "cnn": Architecture(CnnConfig, Cnn),
    "mlp": Architecture(MlpConfig, Mlp),
}


def architecture_config(name: str, numbers: Mapping[str, Any]) -> BaseModel:
    """The validated numbers of an architecture, defaults filled in.

    Args:
        name: A key of ``ARCHITECTURES``.
        numbers: The numbers that differ from the defaults.

    Raises:
        ValueError: Unknown name, unknown number, or a number out of range; names the culprit.
    """
    if name not in ARCHITECTURES:
        raise ValueError(f"unknown model {name!r}; known: {', '.join(sorted(ARCHITECTURES))}")
    try:
        return ARCHITECTURES[name].config.model_validate(dict(numbers))
    except ValidationError as error:
        known = ", ".join(ARCHITECTURES[name].config.model_fields)
        raise ValueError(
            f"bad architecture for {name} (its numbers: {known}): {explained(error)}"
        ) from error


def explained(error: ValidationError) -> str:
    """A validation error in one line: each field, what was expected and what came."""
    return "; ".join(
        f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}, got {problem['input']!r}"
        if problem["loc"]
        else problem["msg"].removeprefix("Value error, ")
        for problem in error.errors()
    )


def build_model(name: str, numbers: Mapping[str, Any]) -> nn.Module:
    """A freshly initialised module of the named architecture, in training mode.

    Args:
        name: A key of ``ARCHITECTURES``.
        numbers: As for ``architecture_config``.
    """
    return ARCHITECTURES[name].module(architecture_config(name, numbers))
