"""What a call is, in words, and the formulas of its parameters and of its multiply-adds.

Formulas are written with the numbers of the call's input and output, not read off the weights, so
that comparing them with the weights' sizes says something. Letters of the general forms: I and O
channels (or features) in and out, G groups, K the kernel's numbers multiplied, P output positions.

==================  =====================  ===========================
function            parameters             multiply-adds
==================  =====================  ===========================
convolution         O x (I/G x K) + O      O x P x (I/G x K)
transposed          I x (O/G x K) + O      I x (input positions) x (O/G x K)
linear              O x I + O              (rows x) O x I
matrix product      those of its operands  outputs x (summed length)
bilinear            O x I x J + O          O x I x (J + 1): along J, then along I
batch norm          C + C                  one for each value
layer, group norm   one each a weight      two for each value, or three with weights
embedding           rows x width           none: it looks up
recurrent layers    those of its weights   places in time x (all matrices)
==================  =====================  ===========================

Biases are additions and not counted, and so are single multiplications, sums, comparisons and
functions such as exp. Batch normalisation in evaluation is one scale and one shift. The other
norms square and add for the variance, standardise, and then scale and shift. What has no formula
here (attention) is counted by ``torch.utils.flop_counter``, which counts
convolutions and matrix products alone, two for each multiply-add. Functions that neither knows
(a Fourier transform, say) have no formula and add nothing.
"""

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any, NamedTuple

from torch import Tensor
from torch.utils._pytree import tree_leaves

from training.describe.arguments import bound, family, many, sizes
from training.describe.trace import Call

MATRIX_PRODUCTS = ("matmul", "mm", "bmm", "addmm", "baddbmm", "mv", "dot")
RECURRENT = ("lstm", "gru", "rnn_tanh", "rnn_relu")
STATISTICS = ("layer_norm", "group_norm", "instance_norm", "rms_norm")


class Formula(NamedTuple):
    """A formula with its numbers, e.g. "16 x (1 x 5 x 5) + 16", and what it comes to."""

    text: str
    value: int

    def __str__(self) -> str:
        return self.text if self.text == f"{self.value:,}" else f"{self.text} = {self.value:,}"


NOTHING = Formula("0", 0)


def in_words(call: Call, label: str) -> str:
    """What the call is, e.g. "Conv2d 5x5, 1 -> 16, valid".

    Args:
        call: What was called.
        label: What to begin with: the layer's class or the function.
    """
    values = bound(call.name, call.arguments, call.keywords)
    words = WORDS.get(family(call.name)[0])
    return f"{label} {words(call, values)}" if words else label


def parameters(call: Call, new: Sequence[Tensor]) -> Formula:
    """How many parameters a call brings in.

    Args:
        call: What was called.
        new: The parameters among its arguments that no step before it had.
    """
    if not new:
        return NOTHING
    values = bound(call.name, call.arguments, call.keywords)
    weight, bias = values.get("weight"), values.get("bias")
    own = {id(tensor) for tensor in (weight, bias) if tensor is not None}
    x = values.get("input")
    if own != {id(tensor) for tensor in new} or weight is None or not isinstance(x, Tensor):
        return _sum([tuple(tensor.shape) for tensor in new])
    out = call.outputs[0]
    kind, n = family(call.name)
    if kind in ("conv", "conv_transpose"):
        groups, kernel = values.get("groups", 1), tuple(weight.shape[2:])
        given, made = x.shape[-n - 1], out.shape[-n - 1]
        if kind == "conv_transpose":
            product = _product((given,), (made // groups, *kernel))
        else:
            product = _product((made,), (given // groups, *kernel))
        return _plus(product, made if bias is not None else None)
    if call.name == "linear":
        product = _product((out.shape[-1], x.shape[-1]))
        return _plus(product, out.shape[-1] if bias is not None else None)
    if call.name in ("batch_norm", "group_norm", "instance_norm"):
        return _sum([(x.shape[1],)] * len(own))
    if call.name in ("layer_norm", "rms_norm"):
        return _sum([tuple(values["normalized_shape"])] * len(own))
    return _sum([tuple(tensor.shape) for tensor in new])


def multiply_adds(call: Call) -> Formula:
    """How often a call multiplies two numbers and adds the product to a sum."""
    values = bound(call.name, call.arguments, call.keywords)
    x, weight, out = values.get("input"), values.get("weight"), call.outputs[0]
    kind, n = family(call.name)
    if kind in ("conv", "conv_transpose") and x is not None and weight is not None:
        batch = (x.shape[0],) if x.ndim > n + 1 and x.shape[0] > 1 else ()
        swept = x if kind == "conv_transpose" else out
        return _product((*batch, *swept.shape[-n - 1 :]), tuple(weight.shape[1:]))
    if call.name == "linear" and isinstance(x, Tensor):
        rows = tuple(size for size in x.shape[:-1] if size > 1)
        return _product((*rows, out.shape[-1], x.shape[-1]))
    if call.name in MATRIX_PRODUCTS and isinstance(x, Tensor):
        return _product((*(size for size in out.shape if size > 1), x.shape[-1]))
    if call.name == "batch_norm":
        return _product(tuple(size for size in out.shape if size > 1))
    if call.name in STATISTICS:
        each = 2 if weight is None else 3
        return _product((each, *(size for size in out.shape if size > 1)))
    if call.name == "bilinear":
        made, first, second = call.arguments[2].shape
        rows = out.numel() // made
        return Formula(
            f"{rows * made:,} x {first:,} x ({second:,} + 1)", rows * made * first * (second + 1)
        )
    if call.name in RECURRENT and isinstance(x, Tensor):
        return _recurrent(call, x)
    return Formula("torch's count", call.flops // 2) if call.flops else NOTHING


def _recurrent(call: Call, x: Tensor) -> Formula:
    """At each place in time each matrix is multiplied with one vector."""
    places = x.numel() // x.shape[-1]
    weights = [leaf for leaf in tree_leaves(call.arguments[2:]) if isinstance(leaf, Tensor)]
    matrices = _sum([tuple(w.shape) for w in weights if w.ndim == len("OI")])
    return Formula(f"{places:,} x ({matrices.text})", places * matrices.value)


def _convolution_words(call: Call, values: Mapping[str, Any]) -> str:
    _, n = family(call.name)
    weight, channels = values["weight"], values["input"].shape[-n - 1]
    words = [sizes(weight.shape[2:]), f"{channels:,} -> {call.outputs[0].shape[-n - 1]:,}"]
    padding = values.get("padding", 0)
    if isinstance(padding, str):
        words.append(padding)
    else:
        before = many(padding, n)
        words.append(f"padding {_brief(before)}" if any(before) else "valid")
    for name in ("stride", "dilation"):
        numbers = many(values.get(name, 1), n)
        if set(numbers) != {1}:
            words.append(f"{name} {_brief(numbers)}")
    groups = values.get("groups", 1)
    if groups > 1:
        words.append("depthwise" if groups == channels else f"{groups} groups")
    return ", ".join(words) + _without_bias(values)


def _linear_words(call: Call, values: Mapping[str, Any]) -> str:
    made, given = values["weight"].shape
    return f"{given:,} -> {made:,}{_without_bias(values)}"


def _pool_words(call: Call, values: Mapping[str, Any]) -> str:
    _, n = family(call.name)
    kernel = many(values["kernel_size"], n)
    stride = many(values.get("stride") or kernel, n)
    words = [sizes(kernel)] + ([f"stride {_brief(stride)}"] if stride != kernel else [])
    if any(padding := many(values.get("padding", 0), n)):
        words.append(f"padding {_brief(padding)}")
    if set(dilation := many(values.get("dilation", 1), n)) != {1}:
        words.append(f"dilation {_brief(dilation)}")
    return ", ".join(words)


def _adaptive_words(call: Call, values: Mapping[str, Any]) -> str:
    _, n = family(call.name)
    return f"to {sizes(call.outputs[0].shape[-n:])}"


def _embedding_words(call: Call, values: Mapping[str, Any]) -> str:
    rows, width = values["weight"].shape
    return f"{rows:,} rows of {width:,}"


def _cat_words(call: Call, values: Mapping[str, Any]) -> str:
    return f"{len(call.tensors)} along axis {values.get('dim', 0)}"


def _picked_words(call: Call, values: Mapping[str, Any]) -> str:
    index = values["dim"] if isinstance(values["dim"], tuple) else (values["dim"],)
    return f"[{', '.join(map(_index_words, index))}]"


def _index_words(index: Any) -> str:
    if isinstance(index, slice):
        ends = ["" if end is None else str(end) for end in (index.start, index.stop)]
        return ":".join(ends if index.step is None else [*ends, str(index.step)])
    if isinstance(index, Tensor):
        return f"tensor {sizes(index.shape)}"
    return "..." if index is Ellipsis else str(index)


# By the function's family: "conv" is conv1d, conv2d and conv3d.
WORDS: dict[str, Callable[[Call, Mapping[str, Any]], str]] = {
    "conv": _convolution_words,
    "conv_transpose": _convolution_words,
    "linear": _linear_words,
    "max_pool": _pool_words,
    "avg_pool": _pool_words,
    "lp_pool": _pool_words,
    "adaptive_avg_pool": _adaptive_words,
    "adaptive_max_pool": _adaptive_words,
    "interpolate": lambda call, values: (
        f"to {sizes(call.outputs[0].shape[2:])}, {values.get('mode', 'nearest')}"
    ),
    "embedding": _embedding_words,
    "getitem": _picked_words,
    "cat": _cat_words,
    "stack": _cat_words,
    "pad": lambda _, values: ",".join(map(str, values["pad"])),
    "dropout": lambda _, values: f"{values.get('p', 0.5):g}: idle in evaluation",
    "batch_norm": lambda _, values: f"{values['input'].shape[1]:,} channels",
}


def _without_bias(values: Mapping[str, Any]) -> str:
    return ", no bias" if values.get("bias") is None else ""


def _brief(numbers: Sequence[int]) -> str:
    return str(numbers[0]) if len(set(numbers)) == 1 else sizes(numbers)


def _product(*factors: tuple[int, ...]) -> Formula:
    """The first factors as they are, each further group in brackets."""
    groups = [" x ".join(f"{factor:,}" for factor in group) for group in factors if group]
    text = " x ".join(groups[:1] + [f"({group})" for group in groups[1:]]) or "1"
    return Formula(text, prod(map(prod, factors)))


def _plus(product: Formula, bias: int | None) -> Formula:
    if bias is None:
        return product
    return Formula(f"{product.text} + {bias:,}", product.value + bias)


def _sum(shapes: Sequence[tuple[int, ...]]) -> Formula:
    text = " + ".join(_product(shape).text for shape in shapes)
    return Formula(text, sum(map(prod, shapes)))
