"""What convolutions, poolings, paddings and resizings read along each axis.

Each is told as ``Along``: the positions that an output position reads, and the period after which
that repeats (``training.describe.receptive`` has the rules).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from math import gcd
from typing import Any, NamedTuple

from torch import Tensor

from training.describe.arguments import family, many

Sources = Callable[[int], Iterable[int]]


class Along(NamedTuple):
    """An operation along one dimension; without ``sources`` it reads all positions there."""

    dim: int
    sources: Sources | None
    moved: int = 1
    period: int = 1


def is_windowed(name: str) -> bool:
    """Whether ``windows`` knows this function."""
    return family(name)[1] > 0 or name in ("interpolate", "pad", "pixel_shuffle", "flip")


def windows(
    name: str, x: Tensor, outputs: Sequence[Tensor], values: Mapping[str, Any]
) -> list[Along] | None:
    """What the function reads along each dimension that it works on; None if that is not known.

    Args:
        name: A function that ``is_windowed``.
        x: Its input.
        outputs: What it gave.
        values: Its arguments by name.
    """
    kind, n = family(name)
    if kind in ("conv", "conv_transpose"):
        return _convolution(kind, n, x, values)
    if kind in ("max_pool", "avg_pool", "lp_pool"):
        return _pooling(n, x, values)
    if name == "pad":
        pairs = list(zip(values["pad"][::2], values["pad"][1::2], strict=True))
        return [Along(x.ndim - 1 - i, _strided(1, left)) for i, (left, _) in enumerate(pairs)]
    if name == "flip":
        dims = [dim % x.ndim for dim in many(values["dim"], 1)]
        return [Along(dim, _backwards(x.shape[dim]), -1) for dim in dims]
    if name == "pixel_shuffle":
        factor = values["upscale_factor"]
        return [Along(dim, _nearest(1, factor), 1, factor) for dim in (x.ndim - 2, x.ndim - 1)]
    return _resizing(name, x, outputs[0], values)


def _convolution(kind: str, n: int, x: Tensor, values: Mapping[str, Any]) -> list[Along]:
    stride = many(values.get("stride", 1), n)
    dilation = many(values.get("dilation", 1), n)
    spans = [d * (k - 1) for k, d in zip(values["weight"].shape[2:], dilation, strict=True)]
    padding = values.get("padding", 0)
    if isinstance(padding, str):
        padding = [span // 2 if padding == "same" else 0 for span in spans]
    before = many(padding, n)
    first = x.ndim - n
    if kind == "conv_transpose":
        return [
            Along(first + i, _spread(stride[i], before[i], dilation[i], spans[i]), 1, stride[i])
            for i in range(n)
        ]
    return [
        Along(first + i, _strided(stride[i], before[i], dilation[i], spans[i]), stride[i])
        for i in range(n)
    ]


def _pooling(n: int, x: Tensor, values: Mapping[str, Any]) -> list[Along]:
    kernel = many(values["kernel_size"], n)
    stride = many(values.get("stride") or kernel, n)
    before, dilation = many(values.get("padding", 0), n), many(values.get("dilation", 1), n)
    return [
        Along(
            x.ndim - n + i,
            _strided(stride[i], before[i], dilation[i], dilation[i] * (kernel[i] - 1)),
            stride[i],
        )
        for i in range(n)
    ]


def _resizing(name: str, x: Tensor, out: Tensor, values: Mapping[str, Any]) -> list[Along] | None:
    """Adaptive pooling and interpolation, from x's sizes to the output's."""
    _, n = family(name)
    mode = "adaptive" if n else values.get("mode", "nearest")
    first = x.ndim - n if n else 2
    alongs = []
    for dim in range(first, x.ndim):
        a, b = x.shape[dim], out.shape[dim]
        moved, period = a // gcd(a, b), b // gcd(a, b)
        if mode == "adaptive" and b == 1:
            alongs.append(Along(dim, None))
        elif mode == "adaptive":
            alongs.append(Along(dim, _parts(a, b), moved, period))
        elif mode == "nearest":
            alongs.append(Along(dim, _nearest(a, b), moved, period))
        elif mode in ("linear", "bilinear", "trilinear") and not values.get("align_corners"):
            alongs.append(Along(dim, _two_nearest(a, b), moved, period))
        else:
            return None
    return alongs


def _strided(stride: int, before: int, dilation: int = 1, span: int = 0) -> Sources:
    return lambda o: range(o * stride - before, o * stride - before + span + 1, dilation)


def _spread(stride: int, before: int, dilation: int, span: int) -> Sources:
    """A transposed convolution: output o gets input i where o = i x stride - before + tap."""
    return lambda o: [
        (o + before - tap) // stride
        for tap in range(0, span + 1, dilation)
        if (o + before - tap) % stride == 0
    ]


def _backwards(length: int) -> Sources:
    return lambda o: [length - 1 - o]


def _nearest(a: int, b: int) -> Sources:
    return lambda o: [o * a // b]


def _parts(a: int, b: int) -> Sources:
    """Adaptive pooling's windows: from floor(o a / b) to before ceil((o + 1) a / b)."""
    return lambda o: range(o * a // b, -(-(o + 1) * a // b))


def _two_nearest(a: int, b: int) -> Sources:
    """Linear interpolation between the neighbours of (o + 1/2) a / b - 1/2."""
    return lambda o: [((2 * o + 1) * a - b) // (2 * b), -((b - (2 * o + 1) * a) // (2 * b))]
