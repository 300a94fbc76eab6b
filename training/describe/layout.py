"""Memory layouts of tensors: channels first (NCHW) and channels last (NHWC).

The shape of a PyTorch tensor is N, C, H, W in both layouts; its strides differ. The value at
(n, c, h, w) is at offset n x stride_N + c x stride_C + h x stride_H + w x stride_W.

Shape suffixes: N images, C channels, H and W pixels.
"""

import numpy as np
import torch

from training.describe.schema import Cell, Description, Layout, MemoryFormat, Ordering, Shape

IMAGE_AXES = 4  # N, C, H, W
EXAMPLE = torch.Size((1, 2, 3, 3))


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


def layout() -> Layout:
    """Show how a tensor with the values 0, 1, 2, ... is stored in memory in both layouts."""
    x_NCHW = torch.arange(EXAMPLE.numel()).reshape(EXAMPLE)
    # Channels first stores each value at the offset of the same number.
    indices = list(np.ndindex(EXAMPLE))
    return Layout(
        shape=EXAMPLE,
        channels_first_strides=_strides(EXAMPLE, torch.contiguous_format),
        channels_last_strides=_strides(EXAMPLE, torch.channels_last),
        cells=tuple(
            Cell(
                offset=offset,
                channels_first=offset,
                channels_first_index=indices[offset],
                channels_last=value,
                channels_last_index=indices[value],
            )
            for offset, value in enumerate(x_NCHW.permute(0, 2, 3, 1).flatten().tolist())
        ),
    )


def _strides(shape: Shape, form: torch.memory_format) -> Shape:
    return tuple(torch.empty(shape, device="meta", memory_format=form).stride())
