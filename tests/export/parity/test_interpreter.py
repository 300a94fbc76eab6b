"""The fp64 reference is float64 throughout, or it is refused with the operator's name."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from export.model.signature import Positional
from export.parity.interpreter import NarrowOperatorError, fp64_predict


class _Casts(nn.Module):
    """Casts that ``module.double()`` cannot undo."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        product: Tensor = self.linear(x)
        return product.float().to(torch.float32)


class _Factories(nn.Module):
    """Tensors created inside, with and without a dtype, and a quotient of integers."""

    def forward(self, x: Tensor, pixels: Tensor) -> Tensor:
        steps = torch.arange(3, dtype=torch.float32) / 7
        return x * torch.full((3,), 0.1) + steps + pixels / 255 + torch.tensor(0.3)


class _Spectrum(nn.Module):
    """A short-time Fourier transform with a window buffer and complex values."""

    window: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("window", torch.hann_window(8))

    def forward(self, x: Tensor) -> Tensor:
        return torch.stft(x, 8, 4, window=self.window, return_complex=True).abs()


class _Blocks(nn.Module):
    """Operators in nested blocks, and an in-place change."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            scale = (x / 3).float()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            product = x @ x.T[:, :3]
        return torch.relu_(product + scale)


class _Branches(nn.Module):
    """Selects one of two blocks by the values."""

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = torch.cond(
            x.sum() > 0, lambda x: (x / 3).float(), lambda x: (x / 7).float(), (x,)
        )
        return found


@torch.library.custom_op("tests_export::narrow", mutates_args=())
def narrow(x: Tensor) -> Tensor:
    """Round the result to float32, whatever the input's dtype."""
    return (x * 2).to(torch.float32)


@narrow.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x, dtype=torch.float32)


class _Narrow(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        rounded: Tensor = narrow(x)
        return rounded + 1


def _export(module: nn.Module, *inputs: Tensor) -> torch.export.ExportedProgram:
    return torch.export.export(Positional(module), inputs)


def _fp64(module: nn.Module, *inputs: Tensor) -> np.ndarray:
    program = _export(module, *inputs)
    arrays = {f"input_{i}": tensor.numpy() for i, tensor in enumerate(inputs)}
    return fp64_predict(program, ["y"])(arrays)["y"]


def test_casts_inside_do_not_spoil_the_reference() -> None:
    """float() and to(float32) inside do not change the float64 values."""
    torch.manual_seed(0)
    module, x = _Casts(), torch.randn(4, 3)
    found = _fp64(module, x)
    weight, bias = (p.detach().double().numpy() for p in module.linear.parameters())
    expected = x.double().numpy() @ weight.T + bias
    assert found.dtype == np.float64
    assert np.abs(found - expected).max() < 1e-15
    rounded = module.double()(x.double()).detach().numpy()  # the former reference
    assert np.abs(rounded - expected).max() > 1e-9


def test_tensors_made_inside_are_float64() -> None:
    """Arange, full, tensor and an integer's quotient are not rounded to float32."""
    x, pixels = torch.ones(2, 3), torch.tensor([[1, 2, 3], [4, 5, 6]], dtype=torch.uint8)
    found = _fp64(_Factories(), x, pixels)
    # The exporter stores the constant 0.3 in float32; it is data and stays unchanged.
    expected = 0.1 + np.arange(3) / 7 + pixels.numpy() / 255 + np.float64(np.float32(0.3))
    assert np.abs(found - expected).max() < 1e-15


def test_a_spectrum_is_computed_in_double_precision() -> None:
    """Complex values are complex128, and the window is converted to float64."""
    x = torch.randn(2, 32)
    module = _Spectrum()
    window = module.window.double()
    expected = torch.stft(x.double(), 8, 4, window=window, return_complex=True).abs()
    assert np.abs(_fp64(module, x) - expected.numpy()).max() < 1e-13


def test_blocks_hide_no_operator() -> None:
    """Within no_grad and autocast everything is float64, too, and in-place changes are kept."""
    x = torch.randn(3, 3)
    wide = x.double()
    expected = torch.relu(wide @ wide.T + wide / 3).numpy()
    assert np.abs(_fp64(_Blocks(), x) - expected).max() < 1e-14


@pytest.mark.parametrize(("sign", "divisor"), [(1, 3), (-1, 7)])
def test_a_branch_is_taken_in_float64(sign: int, divisor: int) -> None:
    """Both blocks of a condition are interpreted, depending on the values."""
    x = sign * torch.ones(2, 3)
    expected = np.full((2, 3), np.float64(sign) / divisor)
    assert np.abs(_fp64(_Branches(), x) - expected).max() < 1e-15


def test_an_operator_that_stays_narrow_is_refused_by_name() -> None:
    """A partly float32 reference is refused, and the default dtype is restored."""
    with pytest.raises(NarrowOperatorError, match=r"tests_export\.narrow.*expected operators"):
        _fp64(_Narrow(), torch.randn(2, 3))
    assert torch.get_default_dtype() == torch.float32
