"""The error for a network that cannot be described, and its message."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from training.describe.arguments import family, many, name_arguments, sizes

ADVICE = "give another input size, or change the network"


class DescribeError(ValueError):
    """The network cannot be described; the message has where, what was given and expected."""


def explained(
    path: str,
    name: str,
    arguments: Sequence[Any],
    keywords: Mapping[str, Any],
    error: Exception,
) -> str:
    """Explain a failed call in one line.

    Args:
        path: Path of the module that made the call; "" for the outermost.
        name: The function's name, e.g. "conv2d".
        arguments: Positional arguments of the call.
        keywords: Keyword arguments of the call.
        error: The error that torch raised.
    """
    where = path or "forward"
    message = str(error).splitlines()[0] if str(error) else type(error).__name__
    if "meta" in message and ("item" in message or "device" in message or "data" in message):
        return (
            f"{where} ({name}) needs a tensor's values, but tensors made from shapes have none "
            f"({message}): register plain tensors as buffers, or pass real tensors to describe()"
        )
    values = name_arguments(name, arguments, keywords)
    x = values.get("input")
    reason = _mismatch(name, x, values) if isinstance(x, Tensor) else None
    if reason:
        return f"{where} {reason}: {ADVICE}"
    shapes = ", ".join(sizes(value.shape) for value in arguments if isinstance(value, Tensor))
    return f"{where} ({name}) cannot take {shapes or 'its arguments'}: {message}; {ADVICE}"


def _mismatch(name: str, x: Tensor, values: Mapping[str, Any]) -> str | None:
    """The shape that a dense layer, convolution or pooling got and expected; None for others."""
    weight = values.get("weight")
    if name == "linear" and isinstance(weight, Tensor) and x.shape[-1:] != weight.shape[1:]:
        return f"got {x.shape[-1]:,} features but expects {weight.shape[1]:,}"
    kind, n = family(name)
    if kind not in ("conv", "max_pool", "avg_pool"):
        return None
    if x.ndim not in (n + 1, n + 2):
        return f"got {sizes(x.shape)} but expects {n} axes after batch and channels"
    if not isinstance(weight, Tensor):
        kernel = many(values["kernel_size"], n)
        return f"got {sizes(x.shape[-n:])} but its kernel is {sizes(kernel)}"
    channels = weight.shape[1] * values.get("groups", 1)
    if x.shape[-n - 1] != channels:
        return f"got {x.shape[-n - 1]:,} channels but expects {channels:,}"
    return f"got {sizes(x.shape[-n:])} but its kernel is {sizes(weight.shape[2:])}"
