"""TorchScript files of any format version compute the same as the module."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from export.convert.torchscript import _trace_and_save


class _Scaled(nn.Module):
    """Divides integers, which formats before version 4 rounded down."""

    def forward(self, x: Tensor) -> Tensor:
        return x / 255


@pytest.mark.filterwarnings("ignore:.torch.jit.load. is deprecated")
@pytest.mark.parametrize("file", ["traced.ts", "frozen.ts"])
def test_whole_numbers_are_divided_without_rounding(file: str, tmp_path: Path) -> None:
    """The file keeps its format version, which determines the meaning of its operators."""
    pixels = torch.tensor([[0, 1, 51, 255]], dtype=torch.uint8)
    module = _Scaled().eval()
    _trace_and_save(module, (pixels,), tmp_path / "traced.ts", tmp_path / "frozen.ts")
    found = torch.jit.load(tmp_path / file)(pixels)
    assert torch.equal(found, module(pixels))
