"""Small networks of kinds that exporters repack, each with inputs and as an ONNX file.

Shape suffixes: N samples, T steps, C channels, L length, H and W pixels, D features.
"""

import copy
import warnings
from collections.abc import Callable

import onnx
import torch
from torch import Tensor, nn
from torch.nn import functional

from export.convert.onnx_export import OnnxExport


class Recurrent(nn.Module):
    """An LSTM, a GRU or an RNN and a classifier of its last step."""

    def __init__(self, kind: str, layers: int = 1, *, bidirectional: bool = False) -> None:
        super().__init__()
        layer = getattr(nn, kind)
        self.layers = layer(3, 4, layers, batch_first=True, bidirectional=bidirectional)
        self.head = nn.Linear(8 if bidirectional else 4, 3)

    def forward(self, x_NTD: Tensor) -> Tensor:
        """Inputs to outputs; the names give the axes."""
        logits: Tensor = self.head(self.layers(x_NTD)[0][:, -1])
        return logits


class Encoder(nn.Module):
    """A transformer layer over ids with a mask; the embedding is the output's weight too."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, ids_NT: Tensor, padding_NT: Tensor) -> Tensor:
        """Inputs to outputs; the names give the axes."""
        hidden = self.layer(self.embedding(ids_NT), src_key_padding_mask=padding_NT)
        logits: Tensor = self.head(hidden.mean(1))
        return logits


class Normalised(nn.Module):
    """Convolutions with group, instance and layer norms, none of them folded."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1),
            nn.GroupNorm(2, 4),
            nn.LeakyReLU(0.2),
            nn.Conv2d(4, 6, 3, stride=2, groups=2),
            nn.InstanceNorm2d(6, affine=True),
            nn.ELU(0.7),
            nn.MaxPool2d(2, ceil_mode=True),
        )
        self.norm = nn.LayerNorm(24, eps=1e-6)
        self.head = nn.Linear(24, 3)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Inputs to outputs; the names give the axes."""
        return torch.softmax(self.head(self.norm(self.features(x_NCHW).flatten(1))), 1)


class Mobile(nn.Module):
    """As a MobileNet: folded BatchNorms, depthwise convolutions, hard activations."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *(nn.Conv2d(1, 4, 3, 2, 1, bias=False), nn.BatchNorm2d(4, eps=1e-3), nn.Hardswish()),
            *(nn.Conv2d(4, 4, 3, 1, 1, groups=4), nn.BatchNorm2d(4), nn.ReLU6()),
        )
        self.squeeze = nn.Conv2d(4, 4, 1)
        self.head = nn.Linear(4, 3)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Inputs to outputs; the names give the axes."""
        x_NCHW = self.features((x_NCHW - 0.1307) / 0.3081)
        gate = functional.hardsigmoid(self.squeeze(functional.adaptive_avg_pool2d(x_NCHW, 1)))
        logits: Tensor = self.head((x_NCHW * gate).mean((2, 3)))
        return logits


class Audio(nn.Module):
    """A 1D convolution and its transpose, a window, BatchNorms behind all kinds of layers."""

    def __init__(self) -> None:
        super().__init__()
        self.window: Tensor
        self.register_buffer("window", torch.hann_window(16, periodic=False) + 0.01)
        self.down, self.down_norm = nn.Conv1d(2, 4, 5, 2, 2), nn.BatchNorm1d(4)
        self.slope = nn.PReLU(4)
        self.up, self.up_norm = nn.ConvTranspose1d(4, 4, 4, 2, 1, groups=2), nn.BatchNorm1d(4)
        self.linear, self.linear_norm = nn.Linear(16, 4), nn.BatchNorm1d(4)
        self.lone_norm = nn.BatchNorm1d(4)

    def forward(self, x_NCL: Tensor) -> Tensor:
        """Inputs to outputs; the names give the axes."""
        hidden = self.slope(self.down_norm(self.down(x_NCL * self.window)))
        hidden = self.up_norm(self.up(hidden))
        hidden = self.linear_norm(self.linear(hidden.mean(1)))
        result: Tensor = self.lone_norm(torch.relu(hidden))
        return result


class Computed(nn.Module):
    """Weights that the forward pass computes: the exporter does so in advance."""

    def __init__(self) -> None:
        super().__init__()
        self.raw, self.other = nn.Parameter(torch.randn(4, 4)), nn.Parameter(torch.rand(4, 4))
        self.joined = nn.Linear(4, 12)
        self.scale = nn.Parameter(torch.rand(1) + 1)

    def forward(self, x_ND: Tensor) -> Tensor:
        """Inputs to outputs; the names give the axes."""
        weight, bias = self.joined.weight.chunk(3)[1], self.joined.bias.chunk(3)[1]
        hidden = functional.linear(x_ND, weight / 2, bias) @ (self.raw.exp() @ self.other)
        return hidden * self.scale + torch.arange(4)


def _noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


PADDING = torch.arange(6) >= torch.tensor([6, 3, 4, 5])[:, None]
NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[Tensor, ...]]] = {
    "lstm": (lambda: Recurrent("LSTM"), (_noise(4, 5, 3),)),
    "lstm of 2 layers and directions": (
        lambda: Recurrent("LSTM", 2, bidirectional=True),
        (_noise(4, 5, 3),),
    ),
    "gru": (lambda: Recurrent("GRU", 3), (_noise(4, 5, 3),)),
    "rnn": (lambda: Recurrent("RNN"), (_noise(4, 5, 3),)),
    "encoder": (Encoder, (torch.arange(24).reshape(4, 6) % 11, PADDING)),
    "normalised": (Normalised, (_noise(4, 1, 9, 9),)),
    "mobile": (Mobile, (_noise(4, 1, 9, 9),)),
    "audio": (Audio, (_noise(4, 2, 16),)),
    "computed": (Computed, (_noise(4, 4),)),
}


def make_network(name: str) -> nn.Module:
    """A network whose norms and biases have values that training could have given them."""
    torch.manual_seed(0)
    module = NETWORKS[name][0]().eval()
    with torch.no_grad():
        for part in module.modules():
            if "Norm" in type(part).__name__ and not list(part.children()):
                part.get_parameter("weight").uniform_(0.5, 1.5)
                part.get_parameter("bias").normal_()
            if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
                part.get_buffer("running_mean").normal_()
                part.get_buffer("running_var").uniform_(0.5, 2)
        for parameter in module.parameters():
            if not parameter.any():
                parameter.normal_()
    return module


def export_network(module: nn.Module, *inputs: Tensor, optimize: bool = True) -> OnnxExport:
    """A module as ``export.convert.onnx_export`` makes it, its batch free."""
    batch = torch.export.Dim("batch", min=1)
    axes = tuple({0: batch} for _ in inputs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of recurrent layers, of two inputs with one batch axis
        program = torch.export.export(module, inputs, dynamic_shapes=axes)
        translated = torch.onnx.export(
            program,
            inputs,
            dynamo=True,
            opset_version=20,
            verbose=False,
            optimize=optimize,
            dynamic_shapes=axes,
            external_data=False,
        )
    assert translated is not None
    assert translated.exported_program is not None
    return OnnxExport(translated.model_proto, translated.exported_program)


def exported(name: str, *, optimize: bool = True) -> OnnxExport:
    """A network of this file as an ONNX file."""
    return export_network(make_network(name), *NETWORKS[name][1], optimize=optimize)


def copied(model: onnx.ModelProto) -> onnx.ModelProto:
    """Another model of the same content."""
    return copy.deepcopy(model)
