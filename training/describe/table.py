"""Format a description as aligned text for a terminal."""

from collections import Counter
from collections.abc import Callable, Sequence

from training.describe.arguments import sizes
from training.describe.rules import NO_FORMULA, Formula
from training.describe.schema import (
    AxisField,
    Description,
    InputField,
    Layout,
    MemoryFormat,
    Shape,
    Step,
    Totals,
)

KIB = 2**10

LEGEND = """\
Evaluation mode: dropout is inactive, batch normalisation uses its running statistics.
  receptive field  the part of the input that one output value depends on, along each axis; its
                   theoretical size away from the border, which may exceed the input; where branches
                   join, that of the widest. all: the whole axis; ?: there is no rule
  jump             how far the field moves from one output to the next; -: not by a regular step
  multiply-adds    multiplications whose products are summed. Biases, poolings and activations
                   count as 0, batch normalisation as one for each value: a scale and a shift.
                   no formula: there is no rule for this function, and it counts as 0
  #2               the second call of the same module or function"""

FORMATS = """\
The shape is N, C, H, W in both layouts. In memory, channels first stores one whole channel after
another; channels last stores all channels of a pixel next to each other. A stride is the distance
to the next value along an axis, in the order N, C, H, W: it is 1 along W in channels first, and
along C in channels last. Values and parameters are the same. Many convolutions run faster in
channels last: measure it."""


def as_text(description: Description) -> str:
    """Format a description: its steps, its totals, and its memory tables if it has them."""
    parts = [_title(description), _steps(description), _totals(description.totals), LEGEND]
    if description.memory_formats is not None:
        parts.append(_memory_formats(description.memory_formats))
    if description.layout is not None:
        parts.append(_layout(description.layout))
    return "\n\n".join(parts)


def aligned(rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> str:
    """Format rows as a table whose columns are two spaces apart and whose first row is underlined.

    Args:
        rows: Cells, the same number in each row.
        right: Indices of the columns to align on the right.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def _title(description: Description) -> str:
    inputs = ", ".join(f"{given.name} {sizes(given.shape)}" for given in description.inputs)
    outputs = ", ".join(f"{made.name} {sizes(made.shape)}" for made in description.outputs)
    return f"{description.name}, in evaluation mode\ninputs:  {inputs}\noutputs: {outputs}"


def _steps(description: Description) -> str:
    named = len(description.inputs) > 1
    rows = [("step", "what", "output", "parameters", "multiply-adds", "receptive field", "jump")]
    rows += [
        (
            step.name,
            step.what,
            _shapes(step.outputs),
            _parameters(step),
            _formula(step.multiply_add_formula, step.multiply_adds),
            _each_input(step.receptive_field, named, _sees),
            _each_input(step.receptive_field, named, _jumps),
        )
        for step in description.steps
    ]
    return aligned(rows)


def _shapes(shapes: Sequence[Shape]) -> str:
    return ", ".join(
        f"{count} of {sizes(shape)}" if count > 1 else sizes(shape)
        for shape, count in Counter(shapes).items()
    )


def _parameters(step: Step) -> str:
    if step.shared and not step.parameters:
        return "counted above"
    text = _formula(step.parameter_formula, step.parameters)
    frozen = step.parameters - step.trainable
    return f"{text}, {frozen:,} frozen" if frozen else text


def _formula(text: str, value: int) -> str:
    if value:
        return str(Formula(text, value))
    return text if text == NO_FORMULA.text else "-"


def _each_input(
    fields: Sequence[InputField], named: bool, words: Callable[[Sequence[AxisField]], str]
) -> str:
    if not fields:
        return "-"
    texts = [words(field.axes) for field in fields]
    if not named or texts == ["-"] * len(texts):
        return texts[0]
    return "; ".join(f"{field.input}: {text}" for field, text in zip(fields, texts, strict=True))


def _sees(axes: Sequence[AxisField]) -> str:
    words = [{"all": "all", "unknown": "?"}.get(axis.reach, str(axis.size)) for axis in axes]
    return words[0] if set(words) in ({"all"}, {"?"}) else "x".join(words)


def _jumps(axes: Sequence[AxisField]) -> str:
    words = ["-" if axis.jump is None else f"{axis.jump:g}" for axis in axes]
    return words[0] if len(set(words)) == 1 else "x".join(words)


def _totals(totals: Totals) -> str:
    frozen = f", {totals.frozen:,} frozen" if totals.frozen else ""
    rows = [
        ("total", ""),
        ("parameters", f"{totals.parameters:,} ({totals.trainable:,} trainable{frozen})"),
        ("buffers", f"{totals.buffers:,} values"),
        ("multiply-adds", f"{totals.multiply_adds:,}"),
        ("inputs, float32", _bytes(totals.input_bytes)),
        ("weights, float32", f"{_bytes(totals.weight_bytes)}, including buffers"),
        ("activations, float32", f"{_bytes(totals.activation_bytes)}, all kept as in training"),
    ]
    if totals.unused:
        rows.append(("unused by forward", ", ".join(totals.unused)))
    return aligned(rows)


def _bytes(count: int) -> str:
    size, unit = float(count), "bytes"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if size >= KIB:
            size, unit = size / KIB, larger
    return f"{count:,} bytes ({size:,.1f} {unit})" if count >= KIB else f"{count} bytes"


def _memory_formats(formats: Sequence[MemoryFormat]) -> str:
    if not formats:
        return "Memory formats: no step has an output with four axes (N, C, H, W)."
    rows = [("step", "shape", "NCHW in memory", "strides", "NHWC in memory", "strides")]
    rows += [
        (
            entry.step,
            sizes(entry.shape),
            sizes(entry.channels_first.sizes),
            str(entry.channels_first.strides),
            sizes(entry.channels_last.sizes),
            str(entry.channels_last.strides),
        )
        for entry in formats
    ]
    return f"{aligned(rows)}\n\n{FORMATS}"


def _layout(layout: Layout) -> str:
    count = len(layout.cells)
    title = (
        f"The numbers 0 to {count - 1} in a tensor of shape {sizes(layout.shape)} (N, C, H, W), "
        "in memory order.\n"
        f"Strides: channels first {layout.channels_first_strides}, "
        f"channels last {layout.channels_last_strides}.\n"
        "The offset of the value at (n, c, h, w) is the sum of each index times its stride."
    )
    rows = [("offset", "NCHW value", "its (n, c, h, w)", "NHWC value", "its (n, c, h, w)")]
    rows += [
        (
            str(cell.offset),
            str(cell.channels_first),
            str(cell.channels_first_index),
            str(cell.channels_last),
            str(cell.channels_last_index),
        )
        for cell in layout.cells
    ]
    return f"{title}\n\n{aligned(rows, right=(0, 1, 3))}"
