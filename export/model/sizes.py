"""Which sizes are proven for variable axes other than the batch, such as the length of a text.

Samples of one size make up a block. The smallest size, the largest and one in between are proven;
if the user has no samples of a size, larger ones are cropped.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from export.bundle.manifest import SubjectError, TensorSpec
from export.bundle.metrics import Array, Arrays
from export.model.under_test import Samples

Sizes = dict[str, int]
"""The size of each variable axis, by its name."""

CROPPED_SAMPLES = 256


def variable_axes(inputs: Sequence[TensorSpec]) -> dict[str, tuple[int, int]]:
    """The smallest and the largest size of each variable axis, by its name.

    Raises:
        SubjectError: Axes with the same name were declared with different bounds.
    """
    found: dict[str, tuple[int, int]] = {}
    for spec in inputs:
        for index, bounds in spec.bounds.items():
            name = spec.axes[index]
            if found.setdefault(name, bounds) != bounds:
                raise SubjectError(
                    f"the axis {name} has the sizes {found[name][0]}..{found[name][1]} and, in "
                    f"{spec}, {bounds[0]}..{bounds[1]}; expected one range for one name"
                )
    return found


def block_sizes(inputs: Sequence[TensorSpec], arrays: Arrays) -> Sizes:
    """The sizes of the variable axes in some samples.

    Raises:
        SubjectError: A size is out of bounds, or axes with the same name have different sizes.
    """
    sizes: Sizes = {}
    for spec in inputs:
        for index, (low, high) in spec.bounds.items():
            name, size = spec.axes[index], arrays[spec.name].shape[index]
            if sizes.setdefault(name, size) != size or not low <= size <= high:
                raise SubjectError(
                    f"the samples of {spec.name} have the size {size} on the axis {name}; "
                    f"expected {low}..{high} and the same size wherever the axis occurs"
                )
    return sizes


def with_sizes(inputs: Sequence[TensorSpec], given: Sequence[Samples]) -> Samples:
    """The first samples given, with other blocks so that every size that must be proven is there.

    Raises:
        SubjectError: A size is missing, and no samples are large enough to be cropped to it.
    """
    axes = variable_axes(inputs)
    first, *further = given
    if further and not axes:
        raise SubjectError(
            f"{first.name}: several files, but no axis is variable; expected one file, or variable "
            "axes: --input NAME=DATATYPE[-1,NAME=LOW..HIGH]"
        )
    blocks = {_words(block_sizes(inputs, s.arrays)): s for s in reversed(given)}
    others = [replace(s, sizes=_words(block_sizes(inputs, s.arrays))) for s in further]
    for sizes in sizes_to_prove(axes):
        if _words(sizes) in blocks:
            continue
        block = next((c for s in given if (c := _cropped(inputs, s, sizes))), None)
        if block is None:
            raise SubjectError(
                f"there are no samples of the size {_words(sizes)}, or larger ones to crop; "
                "expected samples of the largest size of each axis: give another file with "
                "--inputs, or declare a smaller range"
            )
        others.append(block)
    return replace(first, others=tuple(others))


def sizes_to_prove(axes: dict[str, tuple[int, int]]) -> list[Sizes]:
    """All axes at their largest, their smallest and in between; each axis alone at its smallest."""
    if not axes:
        return []
    largest = {name: high for name, (_, high) in axes.items()}
    wanted = [
        largest,
        {name: low for name, (low, _) in axes.items()},
        {name: (low + high) // 2 for name, (low, high) in axes.items()},
        *(largest | {name: low} for name, (low, _) in axes.items()),
    ]
    return [sizes for position, sizes in enumerate(wanted) if sizes not in wanted[:position]]


def _cropped(inputs: Sequence[TensorSpec], samples: Samples, sizes: Sizes) -> Samples | None:
    """The samples cut to smaller sizes; None if they are too small."""
    arrays = {}
    for spec in inputs:
        array = samples.arrays[spec.name][:CROPPED_SAMPLES]
        for index, name in spec.axes.items():
            if array.shape[index] < sizes[name]:
                return None
            array = np.take(array, range(sizes[name]), axis=index)
        arrays[spec.name] = _shortened(spec, array, inputs, sizes)
    return Samples(arrays, samples.name, samples.sha256, sizes=_words(sizes))


def _shortened(spec: TensorSpec, array: Array, inputs: Sequence[TensorSpec], sizes: Sizes) -> Array:
    """Lengths, limited to the cropped size of the axis that they count."""
    if spec.domain is None or spec.domain.kind != "length":
        return array
    counted = [n for n, (_, high) in variable_axes(inputs).items() if high == spec.domain.high]
    return np.minimum(array, min((sizes[name] for name in counted), default=array.max())).astype(
        array.dtype
    )


def _words(sizes: Sizes) -> str:
    return ", ".join(f"{name}={size}" for name, size in sizes.items())
