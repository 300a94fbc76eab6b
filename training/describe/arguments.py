"""Names of the arguments of torch's functions, which built-in functions do not have themselves."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

SPATIAL = re.compile(r"(conv|conv_transpose|(?:adaptive_)?(?:avg|max)_pool)([123])d")

# In the order of torch's documentation, as far as a description needs them.
NAMES: dict[str, tuple[str, ...]] = {
    "conv": ("input", "weight", "bias", "stride", "padding", "dilation", "groups"),
    "conv_transpose": (
        "input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation",
    ),
    "max_pool": ("input", "kernel_size", "stride", "padding", "dilation"),
    "avg_pool": ("input", "kernel_size", "stride", "padding"),
    "adaptive_avg_pool": ("input", "output_size"),
    "adaptive_max_pool": ("input", "output_size"),
    "batch_norm": ("input", "running_mean", "running_var", "weight", "bias"),
    "layer_norm": ("input", "normalized_shape", "weight", "bias"),
    "group_norm": ("input", "num_groups", "weight", "bias"),
    "linear": ("input", "weight", "bias"),
    "prelu": ("input", "weight"),
    "pad": ("input", "pad"),
    "dropout": ("input", "p"),
    "cat": ("tensors", "dim"),
    "stack": ("tensors", "dim"),
    "matmul": ("input", "other"),
}  # fmt: skip


def name_arguments(
    name: str, arguments: Sequence[Any], keywords: Mapping[str, Any]
) -> dict[str, Any]:
    """The arguments by name; those of functions not in ``NAMES`` are "input", "dim" and keywords.

    Args:
        name: The function's, without underscores.
        arguments: As given.
        keywords: As given.
    """
    names = NAMES.get(family(name)[0], ("input", "dim"))
    return dict(zip(names, arguments, strict=False)) | dict(keywords)


def family(name: str) -> tuple[str, int]:
    """A function without its number of spatial axes, and that: "conv2d" is ("conv", 2).

    Functions that are no convolutions or poolings keep their name and have 0.
    """
    found = SPATIAL.fullmatch(name)
    return (found[1], int(found[2])) if found else (name, 0)


def many(value: Any, n: int) -> tuple[int, ...]:
    """One number for each of n axes: torch takes a single number to stand for all of them."""
    values = tuple(value) if isinstance(value, Sequence) else (value,)
    return tuple(map(int, values * n if len(values) == 1 else values))


def sizes(shape: Sequence[int]) -> str:
    """A shape in words: (1, 28, 28) is "1x28x28"; () is "one number"."""
    return "x".join(map(str, shape)) or "one number"
