"""Measures how often the derived limits refuse an honest file or miss a fault.

    python -m tests.export.limits --seeds 20

Each network is drawn anew with each seed, exported, and its honest file held against float32's
floor (``export.parity.noise``): the multiples of honest files must stay under
``tolerances.RMS_MULTIPLE`` and ``LARGEST_MULTIPLE``. Then one weight of each layer is changed by
1%: the figure shown is how far beyond the limit it is at its own layer. The last column is the
largest error without ONNX Runtime's graph optimisations, which choose other kernels, in units of
the largest error at proof: a stand-in for another CPU's kernels, for ``limits.SERVING_SLACK``.
"""

import argparse
import contextlib
import io
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch
from torch import Tensor, nn

from export.bundle.golden import run_batched
from export.bundle.manifest import TensorSpec
from export.bundle.metrics import Arrays
from export.bundle.session import OnnxModel
from export.model.under_test import ModelUnderTest, Samples
from export.parity.measure import measure_row
from export.parity.run import ParityRun
from tests.export.subjects import Answers

SAMPLES = 300


class _Recurrent(nn.Module):
    """A linear layer on a recurrent layer's last step."""

    def __init__(self, layer: type[nn.LSTM | nn.GRU]) -> None:
        super().__init__()
        self.layer, self.head = layer(16, 64, batch_first=True), nn.Linear(64, 5)

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.head(self.layer(x)[0][:, -1])
        return answer


class _Boxes(nn.Module):
    """Four coordinates up to 640 and a score up to 1."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(32, 64), nn.ReLU())
        self.box, self.score = nn.Linear(64, 4), nn.Linear(64, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.body(x)
        return torch.cat([640 * torch.sigmoid(self.box(h)), torch.sigmoid(self.score(h))], dim=1)


def _normed(channels: int) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(channels)
    nn.init.uniform_(norm.weight, 0.5, 1.5)
    nn.init.normal_(norm.bias, 0, 0.2)
    norm.running_mean = torch.randn(channels) * 0.1
    norm.running_var = torch.rand(channels) + 0.5
    return norm


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (
        lambda: nn.Sequential(
            nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 64), nn.ReLU(), nn.Linear(64, 10)
        ),
        (784,),
    ),
    "mlp, GELU, LayerNorm": (
        lambda: nn.Sequential(
            nn.Linear(784, 256), nn.GELU(), nn.LayerNorm(256), nn.Linear(256, 10), nn.Tanh()
        ),
        (784,),
    ),
    "convolutions, BatchNorm": (
        lambda: nn.Sequential(
            *(nn.Conv2d(3, 16, 3, padding=1), _normed(16), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(16, 16, 3, padding=1, bias=False), _normed(16), nn.SiLU()),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 7)),
        ),
        (3, 16, 16),
    ),
    "segmentation": (
        lambda: nn.Sequential(
            *(nn.Conv2d(3, 8, 3, padding=1), nn.Hardsigmoid(), nn.GroupNorm(4, 8)),
            nn.ConvTranspose2d(8, 4, 2, stride=2),
        ),
        (3, 16, 16),
    ),
    "transformer": (
        lambda: nn.Sequential(
            nn.TransformerEncoderLayer(16, 4, 64, dropout=0.0, batch_first=True),
            *(nn.Flatten(), nn.Linear(128, 5)),
        ),
        (8, 16),
    ),
    "LSTM": (lambda: _Recurrent(nn.LSTM), (12, 16)),
    "GRU": (lambda: _Recurrent(nn.GRU), (12, 16)),
    "boxes and scores": (_Boxes, (32,)),
}
COLUMNS = (
    *("network", "seeds", "honest: RMS", "honest: largest", "inside: RMS", "inside: largest"),
    *("false alarms", "weights +1% at their layers", "missed", "other kernels"),
)


def drawn(name: str, seed: int) -> ParityRun:
    """Export a network with random weights."""
    make, shape = NETWORKS[name]
    torch.manual_seed(seed)
    module = Answers(make()).eval()
    inputs = np.random.default_rng(seed).normal(size=(SAMPLES, *shape)).astype(np.float32)
    with torch.no_grad():
        answer = module(torch.from_numpy(inputs[:2]))[0]
    subject = ModelUnderTest(
        name="network",
        module=module,
        inputs=(TensorSpec(name="x", datatype="FP32", shape=(-1, *shape)),),
        outputs=(TensorSpec(name="y", datatype="FP32", shape=(-1, *answer.shape[1:])),),
        labels=(),
        weights=Path("nowhere"),
        samples=Samples({"x": inputs}, "noise", "0" * 64),
        calibration=None,
    )
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        return ParityRun.of(subject)


def measured(run: ParityRun) -> tuple[list[float], list[float]]:
    """Honest figures (RMS and largest error, inner values, other kernels) and each layer's 1%."""
    reference, model = run.reference, run.translation.model
    content = model.SerializeToString()
    answers = run_batched(OnnxModel(content, "cpu"), reference.inputs, 256)
    fp32 = reference.fp32_baseline(len(reference), 256)
    found = measure_row("onnx", 256, answers, fp32, reference, None).outputs["y"]
    inside = run.local(model).figures(model).values()
    figures = [
        found.floor_rms or 0.0,
        found.floor_largest or 0.0,
        max(value.rms for value in inside),
        max(value.largest for value in inside),
        _other_kernels(content, reference.inputs, answers, fp32),
    ]
    return figures, [value.visible for value in inside if value.visible is not None]


def _other_kernels(content: bytes, inputs: Arrays, answers: Arrays, fp32: Arrays) -> float:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    (other,) = session.run(["y"], inputs)
    own = float(np.abs(answers["y"].astype(np.float64) - fp32["y"]).max())
    return float(np.abs(other.astype(np.float64) - fp32["y"]).max()) / max(own, 1e-30)


def main(argv: Sequence[str] | None = None) -> int:
    """Print a row for each network; the status is 1 if any honest file exceeded a limit."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.export.limits",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seeds", type=int, default=20, help="default: %(default)s")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    print(f"| {' | '.join(COLUMNS)} |\n|{' --- |' * len(COLUMNS)}", flush=True)  # noqa: T201
    alarms = 0
    for name in NETWORKS:
        runs = [measured(drawn(name, seed)) for seed in range(arguments.seeds)]
        worst = np.max([figures for figures, _ in runs], axis=0)
        shown = np.array([visible for _, layers in runs for visible in layers])
        wrong = sum(
            rms > 3 or largest > 4 or in_rms > 3 or in_largest > 4
            for (rms, largest, in_rms, in_largest, _), _ in runs
        )
        alarms += wrong
        cells = [name, str(len(runs)), *(f"{figure:.2f}" for figure in worst[:4]), str(wrong)]
        cells += [f"{shown.min():,.0f} to {shown.max():,.0f} x", f"{(shown < 2).sum()}"]
        print(f"| {' | '.join([*cells, f'{worst[4]:.2f} x'])} |", flush=True)  # noqa: T201
    return int(alarms > 0)


if __name__ == "__main__":
    sys.exit(main())
