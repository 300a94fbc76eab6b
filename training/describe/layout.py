"""Memory layouts of tensors: channels first (NCHW) and channels last (NHWC).

The shape of a PyTorch tensor is N, C, H, W in both layouts; its strides differ. The value at
(n, c, h, w) is at offset n x stride_N + c x stride_C + h x stride_H + w x stride_W.

Shape suffixes: N images, C channels, H and W pixels.
"""

import torch

from training.describe.schema import (
    Cell,
    Description,
    Layout,
    MemoryFormat,
    Ordering,
    Shape,
)

IMAGE_AXES = 4  # N, C, H, W
EXAMPLE = (1, 2, 3, 3)


def memory_formats(description: Description) -> tuple[MemoryFormat, ...]:
    """Sizes and strides of each 4D output in both layouts, with the strides that torch reports."""
    return tuple(
        MemoryFormat(
            step=step.name,
            shape=shape,
            channels_first=Ordering(sizes=shape, strides=_strides(shape, torch.contiguous_format)),
            channels_last=Ordering(
                sizes=(shape[0], *shape[2:], shape[1]),
                strides=_strides(shape, torch.channels_last),
            ),
        )
        for step in description.steps
        for shape in step.outputs
        if len(shape) == IMAGE_AXES
    )


def layout(shape: Shape = EXAMPLE) -> Layout:
    """Show how the values 0, 1, 2, ... of a small tensor are stored in memory in both layouts.

    Args:
        shape: The tensor's shape: N, C, H, W.
    """
    x_NCHW = torch.arange(torch.Size(shape).numel()).reshape(shape)
    first, last = (
        x_NCHW.clone(memory_format=form) for form in (torch.contiguous_format, torch.channels_last)
    )
    cells = []
    # as_strided returns the values in memory order, whatever the shape.
    in_first, in_last = (x.as_strided((x.numel(),), (1,)).tolist() for x in (first, last))
    for offset, (a, b) in enumerate(zip(in_first, in_last, strict=True)):
        cells.append(
            Cell(
                offset=offset,
                channels_first=a,
                channels_first_index=_index(x_NCHW, a),
                channels_last=b,
                channels_last_index=_index(x_NCHW, b),
            )
        )
    return Layout(
        shape=shape,
        channels_first_strides=tuple(first.stride()),
        channels_last_strides=tuple(last.stride()),
        cells=tuple(cells),
    )


def _strides(shape: Shape, form: torch.memory_format) -> Shape:
    return tuple(torch.empty(shape, device="meta", memory_format=form).stride())


def _index(x_NCHW: torch.Tensor, value: int) -> Shape:
    return tuple(int(i) for i in (x_NCHW == value).nonzero()[0])
