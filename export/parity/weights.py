"""Weight provenance: are the ONNX file's weights the checkpoint's? Asks no image, misses no unit.

Each initialiser is compared with the checkpoint's tensor of its name: bit-equal, or, where the
exporter folded a BatchNorm into the layer before it, equal to the same fold computed in float64
up to float32's rounding. A gate of images alone overlooks a changed weight that hardly matters
for these images; this one does not.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from export.parity.metrics import Array, scaled_difference
from export.parity.tolerances import FOLD_ERROR
from export.servable import ServableModel


class Provenance(BaseModel):
    """Where the initialisers come from; ``failures`` says in words what was wrong, if anything.

    ``fold_error`` is the largest difference of a folded tensor to the float64 fold: of a weight
    over that weight itself, of a bias (a difference of large numbers) over the largest bias.
    """

    model_config = ConfigDict(frozen=True)

    equal: tuple[str, ...]
    folded: tuple[str, ...]
    fold_error: float
    failures: tuple[str, ...]


def check_weights(path: Path, model: ServableModel) -> Provenance:
    """Compare an ONNX file's initialisers with a module's tensors.

    Args:
        path: What ``export.to_onnx`` wrote, or what became of it.
        model: The checkpoint's module, float32, in evaluation mode.
    """
    found = {t.name: numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}
    weights = {name: array for name, array in found.items() if name.startswith("classifier.")}
    expected = dict(_expected(model))
    equal, folded, failures, worst = [], [], [], 0.0
    for name in sorted(expected.keys() | weights.keys()):
        if name not in weights or name not in expected:
            where = "the checkpoint" if name not in expected else "the ONNX file"
            failures.append(f"onnx weights: {name} is not in {where}")
            continue
        array, (tensor, is_fold) = weights[name], expected[name]
        if array.shape != tensor.shape:
            failures.append(f"onnx weights: {name} is {array.shape}, expected {tensor.shape}")
        elif not is_fold and np.array_equal(array, tensor):
            equal.append(name)
        elif not is_fold:
            failures.append(
                f"onnx weights: {name} differs from the checkpoint: {_where(array, tensor)}"
            )
        else:
            error = _fold_error(array, tensor, elementwise=name.endswith(".weight"))
            worst = max(worst, error)
            folded.append(name)
            if not error <= FOLD_ERROR:
                failures.append(
                    f"onnx weights: {name} differs from the BatchNorm fold by {error:.1e} > "
                    f"{FOLD_ERROR:.0e}: {_where(array, tensor)}"
                )
    return Provenance(
        equal=tuple(equal), folded=tuple(folded), fold_error=worst, failures=tuple(failures)
    )


def _expected(model: ServableModel) -> Iterator[tuple[str, tuple[Array, bool]]]:
    """Initialiser's name to (what it should hold, whether a BatchNorm was folded into it)."""
    modules = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d | nn.BatchNorm1d | nn.BatchNorm2d)
    ]
    for (name, module), (_, after) in zip(modules, [*modules[1:], ("", None)], strict=True):
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            continue
        if isinstance(after, nn.BatchNorm1d | nn.BatchNorm2d):
            weight, bias = _fold(module, after)
            yield f"{name}.weight", (weight.numpy(), True)
            yield f"{name}.weight_bias", (bias.numpy(), True)
        else:
            for part, tensor in module.named_parameters():
                yield f"{name}.{part}", (tensor.detach().numpy(), False)


def _fold(layer: nn.Module, norm: nn.BatchNorm1d | nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Weight and bias, float64, of one layer that computes the layer and then the BatchNorm."""
    layer_tensors = {name: t.double() for name, t in layer.state_dict().items()}
    norm_tensors = {name: t.double() for name, t in norm.state_dict().items()}
    scale = norm_tensors["weight"] / torch.sqrt(norm_tensors["running_var"] + norm.eps)
    weight = layer_tensors["weight"]
    bias = layer_tensors.get("bias", torch.zeros_like(scale)) - norm_tensors["running_mean"]
    rows = scale.reshape(-1, *[1] * (weight.ndim - 1))
    return weight * rows, norm_tensors["bias"] + bias * scale


def _fold_error(array: Array, tensor: Array, *, elementwise: bool) -> float:
    if not elementwise or not np.isfinite(array).all():
        return scaled_difference(array, tensor)
    difference = np.abs(array.astype(np.float64) - tensor)
    # A weight that is exactly zero must stay so.
    return float((difference / np.maximum(np.abs(tensor), np.finfo(np.float32).tiny)).max())


def _where(array: Array, tensor: Array) -> str:
    """The element that differs most, with both values."""
    difference = np.abs(array.astype(np.float64) - tensor)
    position = np.unravel_index(np.nan_to_num(difference, nan=np.inf).argmax(), array.shape)
    at = ", ".join(str(int(i)) for i in position)
    return f"[{at}] is {array[position]:.7g}, expected {tensor[position]:.7g}"
