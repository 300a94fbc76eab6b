"""Which argument of a torch function is which; torch's built-in functions do not tell."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

SPATIAL = re.compile(r"((?:conv|conv_transpose|(?:adaptive_)?(?:avg|max)_pool|lp_pool))([123])d")

CONVOLUTION = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
TRANSPOSED = (
    "input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation",
)  # fmt: skip
MAX_POOL = ("input", "kernel_size", "stride", "padding", "dilation", "ceil_mode")
AVERAGE_POOL = ("input", "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad")
NORM = ("input", "running_mean", "running_var", "weight", "bias")
MATRICES = ("input", "mat2")

# In the order of torch's documentation; only those that a description asks for.
NAMES: dict[str, tuple[str, ...]] = {
    **{f"conv{n}d": CONVOLUTION for n in (1, 2, 3)},
    **{f"conv_transpose{n}d": TRANSPOSED for n in (1, 2, 3)},
    **{f"max_pool{n}d": MAX_POOL for n in (1, 2, 3)},
    **{f"avg_pool{n}d": AVERAGE_POOL for n in (1, 2, 3)},
    **{f"lp_pool{n}d": ("input", "norm_type", "kernel_size", "stride") for n in (1, 2, 3)},
    **{f"adaptive_{kind}_pool{n}d": ("input", "output_size") for n in (1, 2, 3)
       for kind in ("avg", "max")},
    "batch_norm": NORM,
    "instance_norm": NORM,
    "layer_norm": ("input", "normalized_shape", "weight", "bias"),
    "rms_norm": ("input", "normalized_shape", "weight"),
    "group_norm": ("input", "num_groups", "weight", "bias"),
    "linear": ("input", "weight", "bias"),
    "embedding": ("input", "weight"),
    "prelu": ("input", "weight"),
    "pad": ("input", "pad", "mode"),
    "interpolate": ("input", "size", "scale_factor", "mode", "align_corners"),
    "pixel_shuffle": ("input", "upscale_factor"),
    "dropout": ("input", "p"),
    "cat": ("tensors", "dim"),
    "concat": ("tensors", "dim"),
    "stack": ("tensors", "dim"),
    "matmul": MATRICES,
    "mm": MATRICES,
    "bmm": MATRICES,
    "addmm": ("bias", "input", "mat2"),
    "baddbmm": ("bias", "input", "mat2"),
}  # fmt: skip


def bound(name: str, arguments: Sequence[Any], keywords: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments by name; those of functions not in ``NAMES`` are "input", "dim" and keywords.

    Args:
        name: The function's, without underscores.
        arguments: As given.
        keywords: As given.
    """
    names = NAMES.get(name, ("input", "dim"))
    values = dict(zip(names, arguments, strict=False)) | dict(keywords)
    for short, long in (("other", "mat2"), ("axis", "dim"), ("axes", "dim")):
        if short in values:
            values.setdefault(long, values[short])
    return values


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
