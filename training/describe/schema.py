"""The fields of a description, as shown in the command line's table and written to its JSON."""

from typing import Literal

from pydantic import BaseModel, Field

Shape = tuple[int, ...]


class AxisField(BaseModel, frozen=True, extra="forbid"):
    """The receptive field along one axis of an input."""

    reach: Literal["window", "scattered", "all", "unknown"] = Field(
        description="window: a window that moves by `jump`; scattered: a window that moves "
        "irregularly (e.g. after flattening); all: the whole axis; unknown: there is no rule"
    )
    size: int | None = Field(description="positions of the input; None for all and unknown")
    jump: float | None = Field(
        description="positions of the input from one output to the next (the strides of all "
        "layers so far, multiplied); None if the window does not move regularly"
    )


class InputField(BaseModel, frozen=True, extra="forbid"):
    """The receptive field in one input."""

    input: str = Field(description="the name of forward's argument")
    axes: tuple[AxisField, ...] = Field(
        description="the input's axes without the batch axis; the channels of an image or a "
        "volume, and a single channel, are left out"
    )


class Step(BaseModel, frozen=True, extra="forbid"):
    """One call of a torch function, in the order of execution."""

    name: str = Field(description="the module's path, or the path and the function's name")
    what: str = Field(description='in words, e.g. "Conv2d 5x5, 1 -> 16, valid"')
    function: str = Field(description="torch's function, e.g. conv2d")
    outputs: tuple[Shape, ...] = Field(description="shapes, including the batch axis")
    parameters: int = Field(description="those that no earlier step uses, including frozen ones")
    trainable: int = Field(description="number of these that require a gradient")
    parameter_formula: str = Field(description='e.g. "16 x (1 x 5 x 5) + 16"')
    shared: tuple[str, ...] = Field(description="parameters that an earlier step counts")
    multiply_adds: int = Field(description="for the batch as given: one sample by default")
    multiply_add_formula: str = Field(
        description="e.g. 16 x 24 x 24 x (1 x 5 x 5); torch's count, or no formula (counts as 0)"
    )
    receptive_field: tuple[InputField, ...] = Field(
        description="for each input that the step depends on; of several outputs, the widest"
    )
    activation_bytes: int = Field(
        description="float32 memory of newly written values; 0 for views and in-place operations"
    )


class Named(BaseModel, frozen=True, extra="forbid"):
    """An input or output tensor of the network."""

    name: str
    shape: Shape = Field(description="including the batch axis")


class Totals(BaseModel, frozen=True, extra="forbid"):
    """Sums over the steps, and the parameters that no step uses."""

    parameters: int
    trainable: int
    frozen: int
    unused: tuple[str, ...] = Field(description="parameters that forward does not use")
    buffers: int = Field(description="values in buffers, e.g. running means")
    multiply_adds: int
    weight_bytes: int = Field(description="parameters and buffers at 4 bytes each")
    activation_bytes: int = Field(
        description="outputs of all steps at 4 bytes each, all kept at once as in training"
    )
    input_bytes: int


class Ordering(BaseModel, frozen=True, extra="forbid"):
    """A tensor's sizes from the slowest axis to the fastest, and its strides."""

    sizes: Shape = Field(description="in the order of the axes in memory")
    strides: Shape = Field(description="steps in memory, in values, in the order N, C, H, W")


class MemoryFormat(BaseModel, frozen=True, extra="forbid"):
    """One step's output in both layouts."""

    step: str
    shape: Shape = Field(description="N, C, H, W: tensor.shape in both layouts")
    channels_first: Ordering = Field(description="NCHW, torch.contiguous_format")
    channels_last: Ordering = Field(description="NHWC, torch.channels_last")


class Cell(BaseModel, frozen=True, extra="forbid"):
    """One place in memory, and the value that each layout stores there."""

    offset: int = Field(description="in values from the beginning")
    channels_first: int
    channels_first_index: Shape = Field(description="n, c, h, w")
    channels_last: int
    channels_last_index: Shape = Field(description="n, c, h, w")


class Layout(BaseModel, frozen=True, extra="forbid"):
    """A small tensor, value by value, as both layouts store it in memory."""

    shape: Shape
    channels_first_strides: Shape
    channels_last_strides: Shape
    cells: tuple[Cell, ...]


class Description(BaseModel, frozen=True, extra="forbid"):
    """A network, step by step, in evaluation mode."""

    name: str
    mode: Literal["evaluation"] = "evaluation"
    inputs: tuple[Named, ...]
    steps: tuple[Step, ...]
    outputs: tuple[Named, ...] = Field(description="each named after the step that computes it")
    totals: Totals
    memory_formats: tuple[MemoryFormat, ...] | None = None
    layout: Layout | None = None
