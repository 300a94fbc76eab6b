"""Argument names of torch functions, because built-in functions have no signature to inspect."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

SPATIAL = re.compile(r"(conv|conv_transpose|avg_pool|max_pool|adaptive_avg_pool)([123])d")

# In the order of torch's documentation, up to the last one that a description needs.
NAMES: dict[str, tuple[str, ...]] = {
    "conv": ("input", "weight", "bias", "stride", "padding", "dilation", "groups"),
    "conv_transpose": (
        "input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation",
    ),
    "max_pool": ("input", "kernel_size", "stride", "padding", "dilation"),
    "avg_pool": ("input", "kernel_size", "stride", "padding"),
    "batch_norm": ("input", "running_mean", "running_var", "weight", "bias"),
    "layer_norm": ("input", "normalized_shape", "weight", "bias"),
    "group_norm": ("input", "num_groups", "weight", "bias"),
    "linear": ("input", "weight", "bias"),
    "pad": ("input", "pad"),
    "dropout": ("input", "p"),
}  # fmt: skip


def name_arguments(
    name: str, arguments: Sequence[Any], keywords: Mapping[str, Any]
) -> dict[str, Any]:
    """Map names to arguments; for functions not in ``NAMES``: "input", "dim" and keywords.

    Args:
        name: The function's name, without underscores.
        arguments: Positional arguments of the call.
        keywords: Keyword arguments of the call.
    """
    names = NAMES.get(family(name)[0], ("input", "dim"))
    return dict(zip(names, arguments, strict=False)) | dict(keywords)


def family(name: str) -> tuple[str, int]:
    """Split a function's name from its number of spatial axes: "conv2d" gives ("conv", 2).

    Functions other than convolutions and poolings keep their name and have 0 axes.
    """
    found = SPATIAL.fullmatch(name)
    return (found[1], int(found[2])) if found else (name, 0)


def many(value: Any, n: int) -> tuple[int, ...]:
    """One number for each of n axes; as in torch, a single number stands for all of them."""
    values = tuple(value) if isinstance(value, Sequence) else (value,)
    return tuple(map(int, values * n if len(values) == 1 else values))


def sizes(shape: Sequence[int]) -> str:
    """Format a shape: (1, 28, 28) is "1x28x28"; () is "scalar"."""
    return "x".join(map(str, shape)) or "scalar"
