"""The one table of tolerances, each with its reason. Knows no torch.

The errors are defined in ``metrics``. The figures behind the reasons were measured on MNIST with
an MLP and a CNN over batch sizes 1 to 1,000: honest exports stay near 5e-7 scaled and at twice
eager's own rounding error; a strong weight off by 1% gives 250 times it or more. Weak
weights, which no image shows, are left to ``weights``.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Tolerance(BaseModel):
    """What one format may differ by on one device.

    Attributes:
        scaled_error: Upper bound of max |difference| / max |reference| over logits; 0 means
            bit-equal.
        rms_ratio: Upper bound of the RMS error against float64, in units of eager float32's own.
        batch_invariance: Upper bound of the scaled difference between the same images' logits at
            two batch sizes; 0 means bit-equal; None where the reference itself depends on the
            batch size and nothing can be asked.
        reason: Why these numbers.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["onnx", "torchscript", "pt2"]
    precision: Literal["fp32"]
    device: Literal["cpu", "cuda"]
    scaled_error: float = Field(ge=0)
    rms_ratio: float = Field(gt=0)
    batch_invariance: float | None = Field(default=None, ge=0)
    reason: str


# Softmax in float32 against softmax in float64 of the same logits: a few units in the last place
# of numbers up to 1 (6e-8 each). Far below any fault in the head.
PROBABILITY_ERROR = 1e-6
# A BatchNorm folded in float32 against the same fold in float64: a product with a quotient, and a
# sum, so a few roundings of 6e-8 each; measured 1.6e-7.
FOLD_ERROR = 5e-7

TOLERANCES: tuple[Tolerance, ...] = (
    Tolerance(
        format="torchscript",
        precision="fp32",
        device="cpu",
        scaled_error=0,
        rms_ratio=1,
        reason="a trace replays eager's own kernels: bit-equal at the same batch size and threads",
    ),
    Tolerance(
        format="pt2",
        precision="fp32",
        device="cpu",
        scaled_error=2e-6,
        rms_ratio=8,
        reason="same operators, but a compiler may fuse them; measured 0, faults give 250 times",
    ),
    Tolerance(
        format="onnx",
        precision="fp32",
        device="cpu",
        scaled_error=2e-6,
        rms_ratio=8,
        batch_invariance=2e-6,
        reason="other kernels, other order of sums; measured 4.6e-7 and 2.0, faults give 250 times",
    ),
    Tolerance(
        format="onnx",
        precision="fp32",
        device="cuda",
        scaled_error=5e-6,
        rms_ratio=20,
        batch_invariance=5e-6,
        reason="provisional, not measured: TF32 off, cuDNN may choose another algorithm per batch",
    ),
    Tolerance(
        format="torchscript",
        precision="fp32",
        device="cuda",
        scaled_error=5e-6,
        rms_ratio=20,
        batch_invariance=5e-6,
        reason="provisional, not measured: TF32 off, cuDNN may choose another algorithm per batch",
    ),
)


def tolerance_for(format_: str, device: str, precision: str = "fp32") -> Tolerance:
    """The table's row.

    Raises:
        KeyError: The table has no such row, so nothing of the kind can be proven.
    """
    for row in TOLERANCES:
        if (row.format, row.precision, row.device) == (format_, precision, device):
            return row
    raise KeyError(f"no tolerance is defined for {format_} {precision} on {device}")
