"""Limits derived from the network: honest files stay within them, and 1% of a weight does not."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper
from safetensors.torch import save_file
from torch import Tensor, nn

from export.__main__ import main
from export.bundle.golden import run_batched
from export.bundle.manifest import TensorSpec
from export.bundle.session import OnnxModel
from export.bundle.store import Bundle
from export.bundle.tolerances import Tolerance, tolerance_for
from export.convert.precision import to_fp16, to_int8
from export.model.under_test import ModelUnderTest, Samples
from export.parity.judge import blind_layers, first_wrong, kills
from export.parity.limits import SERVING_SLACK, derived, with_local
from export.parity.measure import measure_row, measure_variation
from export.parity.mutants import Mutant, MutationTest, make_reduced_mutants
from export.parity.noise import SequentialSums
from export.parity.run import ParityRun
from export.parity.schema import EDGE_CASES, Layer, LocalFigures, Row
from tests.export.subjects import Answers, tiny_subject, zero_head

ALLOWED = tolerance_for("onnx", "cpu")


class _LastState(nn.Module):
    """An LSTM with a layer on its last step."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(8, 32, batch_first=True), nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.head(self.lstm(x)[0][:, -1])
        return answer


class _Spectrum(nn.Module):
    """The real part of a short-time Fourier transform, followed by a layer."""

    window: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("window", torch.hann_window(64))
        self.head = nn.Linear(33, 4)

    def forward(self, x: Tensor) -> Tensor:
        found = torch.stft(x, 64, 32, window=self.window, center=False, return_complex=True)
        answer: Tensor = self.head(found.imag.mean(dim=2))
        return answer


def _encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
    return nn.Sequential(layer, nn.Flatten(), nn.Linear(96, 4))


NETWORKS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "lstm": (_LastState, (6, 8)),
    "transformer": (_encoder, (6, 16)),
    "wide": (
        lambda: nn.Sequential(nn.Linear(784, 64), nn.GELU(), nn.LayerNorm(64), nn.Linear(64, 5)),
        (784,),
    ),
    "segmentation": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.Hardsigmoid(), nn.ConvTranspose2d(8, 3, 2, stride=2)
        ),
        (3, 8, 8),
    ),
}


def _run(network: nn.Module, shape: tuple[int, ...], samples: int = 64) -> ParityRun:
    inputs = np.random.default_rng(0).normal(size=(samples, *shape)).astype(np.float32)
    module = Answers(network).eval()
    with torch.no_grad():
        answer = module(torch.from_numpy(inputs[:2]))[0]
    return ParityRun.of(
        ModelUnderTest(
            name="network",
            module=module,
            inputs=(TensorSpec(name="x", datatype="FP32", shape=(-1, *shape)),),
            outputs=(TensorSpec(name="y", datatype="FP32", shape=(-1, *answer.shape[1:])),),
            labels=(),
            weights=Path("nowhere"),
            samples=Samples({"x": inputs}, "noise", "0" * 64),
            calibration=None,
        )
    )


def _row(run: ParityRun) -> Row:
    reference = run.reference
    predict = OnnxModel(run.translation.model.SerializeToString(), "cpu")
    answers = run_batched(predict, reference.inputs, 256)
    fp32 = reference.fp32_baseline(len(reference), 256)
    return measure_row("onnx", 256, answers, fp32, reference, None)


@pytest.mark.filterwarnings("ignore")  # the exporter's own, for an LSTM
@pytest.mark.parametrize("name", NETWORKS)
def test_an_honest_file_of_any_network_is_within_and_a_weight_is_not(name: str) -> None:
    """Answers and inner values are below the limits, and 1% of one weight is far above them."""
    torch.manual_seed(0)
    make, shape = NETWORKS[name]
    run = _run(make(), shape)
    found = _row(run).outputs["y"]
    assert found.floor_rms is not None
    assert found.floor_largest is not None
    assert found.floor_rms < 3 / 2
    assert found.floor_largest < 4 / 2
    local = run.local(run.translation.model).figures(run.translation.model)
    assert all(value.rms < 2 and value.largest < 3 for value in local.values())
    assert all(value.bound is None or value.bound < 1 for value in local.values())
    visible = [value.visible for value in local.values() if value.visible is not None]
    assert visible
    assert min(visible) > 100


def test_a_constant_of_an_operator_is_seen_at_its_own_layer() -> None:
    """A HardSigmoid's alpha off by 1% is found, which weight provenance cannot see."""
    torch.manual_seed(0)
    make, shape = NETWORKS["segmentation"]
    run = _run(make(), shape)
    model = onnx.ModelProto.FromString(run.translation.model.SerializeToString())
    node = next(node for node in model.graph.node if node.op_type == "HardSigmoid")
    alpha = next(attribute for attribute in node.attribute if attribute.name == "alpha")
    alpha.CopyFrom(helper.make_attribute("alpha", alpha.f * 1.01))
    checks = MutationTest(
        run.reference,
        run.translation.program,
        run.inside,
        ALLOWED,
        local=run.local(run.translation.model),
    )
    killed = checks.run(Mutant("alpha +1%", "alpha", model)).caught_by
    assert {"samples", "layers"} <= set(killed)


def test_a_layer_is_judged_by_its_own_operator() -> None:
    """The value that causes an error is named, not values that inherit it."""
    right = LocalFigures(rms=1.0, largest=1.0)
    wrong = LocalFigures(rms=3.1, largest=1.0)
    far = {"scaled_error": 0.5, "rms_ratio": 99.0, "max_abs_error": 1.0, "exact": False}
    words = dict.fromkeys(("value", "node", "op", "module", "source", "code"), "x")
    layers = tuple(
        Layer.model_validate(words | far | {"local": local}) for local in (right, wrong, right)
    )
    assert first_wrong(layers, ALLOWED) == 1
    assert first_wrong(layers[:1], ALLOWED) is None
    for changed in ({"largest": 4.1}, {"bound": 1.01}, {"rms": float("nan")}):
        spoilt = layers[0].model_copy(update={"local": right.model_copy(update=changed)})
        assert first_wrong((spoilt,), ALLOWED) == 0
    for visible, blind in ((1.9, 1), (2.1, 0)):
        local = right.model_copy(update={"visible": visible})
        assert len(blind_layers((layers[0].model_copy(update={"local": local}),))) == blind


def test_a_bad_baseline_does_not_widen_the_limit_of_a_product() -> None:
    """An error that no order of summation can cause exceeds the limit, however bad the floor."""
    torch.manual_seed(0)
    run = _run(nn.Linear(16, 4), (16,))
    model = run.translation.model
    check = run.local(model)
    for name, floor in check.floors.items():
        check.floors[name] = dataclasses.replace(
            floor, rms_C=floor.rms_C * 1e6, largest_C=floor.largest_C * 1e6
        )
    spoilt = onnx.ModelProto.FromString(model.SerializeToString())
    weight = next(t for t in spoilt.graph.initializer if len(t.dims) == 2)
    values = onnx.numpy_helper.to_array(weight).copy()
    values *= 1.0001
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    found = check.figures(spoilt)["y"]
    assert found.largest < 1
    assert found.bound is not None
    assert found.bound > 1


def test_a_fourier_transform_is_not_held_against_another_algorithm() -> None:
    """ONNX sums directly and PyTorch uses an FFT; only one gives the mean's imaginary 0."""
    torch.manual_seed(0)
    run = _run(_Spectrum(), (640,))
    model = run.translation.model
    found = run.local(model).figures(model)
    assert {layer.value for layer in run.inside.compare(model).layers} == {"select", "mean", "y"}
    assert found.keys() == {"mean", "y"}
    assert all(figures.largest < 4 and figures.rms < 3 for figures in found.values())


@pytest.mark.parametrize("gate", [nn.SiLU(), nn.GELU(), nn.Sigmoid()])
def test_a_gate_may_be_off_by_roundings_of_1(gate: nn.Module) -> None:
    """If a channel's inputs are far below 0, its answers are small but the gate's error is not.

    In torchvision's efficientnet_b0, such channels of honest files exceeded the limit up to 9
    times; a sigmoid with answers below 0.06, as for a rare class, did so up to 43 times.
    """
    torch.manual_seed(0)
    layer = nn.Linear(16, 8)
    nn.init.constant_(layer.bias, -6)
    run = _run(nn.Sequential(layer, gate), (16,))
    found = _row(run).outputs["y"]
    assert found.floor_rms is not None
    assert found.floor_largest is not None
    assert found.floor_rms < 3 / 2
    assert found.floor_largest < 4 / 2
    inside = run.local(run.translation.model).figures(run.translation.model)
    assert len(inside) >= 2
    assert all(figures.largest < 4 / 2 and figures.rms < 3 / 2 for figures in inside.values())


def test_a_row_is_widened_by_what_an_honest_file_shows_and_no_further() -> None:
    """The table's bound is kept if it suffices, else it is twice the measured, up to a cap."""
    torch.manual_seed(0)
    run = _run(nn.Linear(16, 4), (16,))
    row = _row(run)

    def with_error(scaled: float, allowed: Tolerance = ALLOWED) -> Tolerance:
        output = row.outputs["y"].model_copy(update={"scaled_error": scaled})
        return derived(allowed, [row.model_copy(update={"outputs": {"y": output}})], run.blocks)

    assert with_error(0.99e-6) == ALLOWED
    output = row.outputs["y"].model_copy(update={"scaled_error": 1e-4})
    edge = row.model_copy(update={"outputs": {"y": output}, "block": EDGE_CASES})
    assert derived(ALLOWED, [row, edge], run.blocks) == ALLOWED  # golden samples are not edge cases
    # Floors of a network with large rounding: each channel is off by 1e-6 of its scale.
    wide = {
        name: dataclasses.replace(floor, largest_C=np.full(4, 1e-5))
        for name, floor in run.reference.floors.items()
    }
    blocks = (dataclasses.replace(run.reference, floors=wide),)
    run.__dict__["_timed_blocks"] = (blocks, {}, 0.0)
    found = with_error(2.04e-6)
    assert found.scaled_error == pytest.approx(SERVING_SLACK * 2.04e-6) == 4.08e-6
    assert found.reason.startswith("derived: ")
    assert found.beyond_table() == []
    assert 1e-5 < (with_error(0.5).scaled_error or 0) <= 1e-3
    chosen = ALLOWED.model_copy(update={"scaled_error": 1e-9})
    assert with_error(2.04e-6, chosen) == chosen


def test_a_head_of_zeros_builds_nothing_unless_somebody_says_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It gives status 1 and the reason; with --because the bundle records it."""
    save_file(zero_head().state_dict(), tmp_path / "zero.safetensors")
    x = np.random.default_rng(0).normal(size=(40, 4, 8)).astype(np.float32)
    np.savez(tmp_path / "samples.npz", input=x)
    command = ["build", "--model", "tests.export.subjects:zero_head", "--variants", "onnx"]
    command += ["--checkpoint", str(tmp_path / "zero.safetensors")]
    command += ["--inputs", str(tmp_path / "samples.npz"), "--out", str(tmp_path / "out")]
    assert main(command) == 1
    error = capsys.readouterr().err
    assert "parity inconclusive, no bundle written" in error
    assert "hardly varies" in error
    assert not (tmp_path / "out").exists()
    command += ["--tolerance", "onnx.cpu.evidence=none", "--because", "it is a placeholder"]
    assert main(command) == 0
    row = Bundle.open(tmp_path / "out").manifest.tolerance("cpu")
    assert row.loosened is not None
    assert "it is a placeholder" in row.loosened


def test_the_error_of_a_sequential_sum_is_as_modelled() -> None:
    """Sequential float32 sums of 784 products match, with random and with equal signs."""
    graph = torch.export.export(nn.Linear(784, 64), (torch.zeros(2, 784),)).graph
    node = next(node for node in graph.nodes if "linear" in str(node.target))
    generator = np.random.default_rng(0)
    for low in (-1.0, 0.0):
        x, w = (generator.uniform(low, 1, (64, 784)).astype(np.float32) for _ in range(2))
        terms = x[:, None, :] * w[None]
        found = np.cumsum(terms, axis=2, dtype=np.float32)[..., -1]
        own = np.sqrt(np.mean(np.square(found - terms.sum(axis=2, dtype=np.float64))))
        arguments = (torch.from_numpy(x).double(), torch.from_numpy(w).double(), None)
        exact = arguments[0] @ arguments[1].T
        modelled = SequentialSums(0)(node, arguments, {}) - exact
        assert 0.5 < float(modelled.square().mean().sqrt()) / own < 2


def test_outputs_that_do_not_vary_are_measured_as_such() -> None:
    """A head of zeros gives its bias for every sample, so its outputs vary below the floor."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))
    assert measure_variation(_run(network, (16,)).reference)["y"] > 1_000
    head = network[2]
    assert isinstance(head, nn.Linear)
    nn.init.zeros_(head.weight)
    run = _run(network, (16,))
    assert measure_variation(run.reference)["y"] < 1
    layers = with_local(
        run.inside.layers(run.translation.model),
        run.local(run.translation.model).figures(run.translation.model),
    )
    assert "y" in {layer.value for layer in blind_layers(layers)}


@pytest.mark.parametrize("variant", ["onnx-fp16", "onnx-int8"])
def test_mutants_of_reduced_precision_are_killed(variant: str) -> None:
    """The rounded mean, flipped signs, swapped channels and others are planted in each file."""
    run = ParityRun.of(tiny_subject("mlp"))
    source = run.translation.model
    calibration = run.reference.first(71)
    honest = to_fp16(source) if variant == "onnx-fp16" else to_int8(source, calibration)
    allowed = tolerance_for(variant, "cpu")
    checks = MutationTest(
        run.reference, run.translation.program, run.inside, allowed, source=source
    )
    assert checks.run(Mutant("none", "nothing", honest)).caught_by == ()
    mutants = [checks.run(planted) for planted in make_reduced_mutants(honest)]
    applicable = [mutant for mutant in mutants if mutant.not_applicable is None]
    assert len(applicable) >= 7
    assert "mean rounded (.13 for .1307)" in {mutant.name for mutant in applicable}
    assert [mutant.name for mutant in applicable if not kills(mutant, allowed)] == []
