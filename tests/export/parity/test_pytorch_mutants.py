"""TorchScript and .pt2 files of a changed module are refused as exports of the original."""

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from export.convert.onnx_export import model_bytes
from export.convert.pt2 import export_program, save_pt2
from export.convert.torchscript import TracingError, exported_torchscript
from export.parity.candidates import QUICK_RUNS, Setting, Workers
from export.parity.judge import judge
from export.parity.run import ParityRun
from tests.export.catalogue import NETWORKS, network_under_test

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.LayerNorm, nn.GroupNorm)


def _weights(module: nn.Module) -> list[nn.Parameter]:
    """Weights with at least two axes: those of products, not of norms and biases."""
    return [parameter for parameter in module.parameters() if parameter.ndim > 1]


def one_weight_larger(module: nn.Module) -> bool:
    """Enlarge the third quartile of the last layer's weights by 1%."""
    values = _weights(module)[-1].view(-1)
    values[values.abs().argsort()[len(values) * 3 // 4]] *= 1.01
    return True


def one_sign_flipped(module: nn.Module) -> bool:
    """Flip the sign of the third quartile of the first layer's weights."""
    values = _weights(module)[0].view(-1)
    values[values.abs().argsort()[len(values) * 3 // 4]] *= -1
    return True


def a_channel_dead(module: nn.Module) -> bool:
    """Silence the first output of the first layer."""
    _weights(module)[0][0] = 0
    return True


def two_channels_swapped(module: nn.Module) -> bool:
    """Swap the first two outputs of the last layer, without their biases."""
    weight = _weights(module)[-1]
    weight[[0, 1]] = weight[[1, 0]].clone()
    return len(weight) > 1


def rounded_to_float16(module: nn.Module) -> bool:
    """Round all parameters to float16."""
    for parameter in module.parameters():
        parameter.copy_(parameter.half().float())
    return True


def a_bias_dropped(module: nn.Module) -> bool:
    """Drop the last bias that is not zero."""
    named = [p for name, p in module.named_parameters() if "bias" in name and p.any()]
    if named:
        named[-1].zero_()
    return bool(named)


def another_epsilon(module: nn.Module) -> bool:
    """Multiply the first norm's epsilon by ten."""
    norms = [part for part in module.modules() if isinstance(part, NORMS)]
    for part in norms[:1]:
        part.eps *= 10
    return bool(norms)


def another_statistic(module: nn.Module) -> bool:
    """Enlarge a trained running variance by 1%."""
    buffers = [b for name, b in module.named_buffers() if name.endswith("running_var")]
    for buffer in buffers[:1]:
        buffer.mul_(1.01)
    return bool(buffers)


MUTATIONS: list[Callable[[nn.Module], bool]] = [
    one_weight_larger,
    one_sign_flipped,
    a_channel_dead,
    two_channels_swapped,
    rounded_to_float16,
    a_bias_dropped,
    another_epsilon,
    another_statistic,
]


def _write(proof: ParityRun, module: nn.Module, folder: Path) -> dict[str, Path]:
    """Write the module's files in PyTorch's formats; tracing it may fail."""
    subject = dataclasses.replace(proof.subject, module=module)
    folder.mkdir()
    paths = {v: folder / f"model.{v}" for v in ("torchscript", "torchscript-frozen", "pt2")}
    save_pt2(export_program(subject), paths["pt2"])
    try:
        with (
            Workers() as workers,
            exported_torchscript(
                subject, paths["torchscript"], paths["torchscript-frozen"], workers.torch
            ),
        ):
            pass
    except TracingError:
        return {"pt2": paths["pt2"]}
    return paths


@pytest.mark.parametrize(
    ("name", "mutations"),
    [
        pytest.param("two_inputs", MUTATIONS[:1], id="two_inputs, one mutant"),
        *(pytest.param(name, MUTATIONS, marks=pytest.mark.slow, id=name) for name in NETWORKS),
    ],
)
@pytest.mark.filterwarnings("ignore")  # the exporter's own, for an LSTM
def test_each_mutant_is_refused_in_each_format_of_pytorch(
    name: str, mutations: list[Callable[[nn.Module], bool]], tmp_path: Path
) -> None:
    """Mutants are refused, and the unchanged module's files are not."""
    proof = ParityRun.of(network_under_test(name, tmp_path, samples=32))
    source = tmp_path / "model.onnx"
    source.write_bytes(model_bytes(proof.translation.model))
    with Workers() as workers:

        def refused(mutate: Callable[[nn.Module], bool] | None) -> set[str] | None:
            module = copy.deepcopy(proof.subject.module)
            with torch.no_grad():
                if mutate is not None and not mutate(module):
                    return None
            folder = tmp_path / (mutate.__name__ if mutate else "honest")
            variants = _write(proof, module, folder)
            figures = proof.measure(
                {"onnx": source, **variants}, Setting(runs=QUICK_RUNS), workers=workers, again=True
            )
            by_variant = judge(figures, figures.tolerances).by_variant
            assert set(variants) <= set(by_variant)
            return {variant for variant in variants if by_variant[variant]}

        assert refused(None) == set()
        found = {mutate.__name__: refused(mutate) for mutate in mutations}
    applied = {name: variants for name, variants in found.items() if variants is not None}
    formats = 1 if name == "untraceable" else 3
    assert {name: len(variants) for name, variants in applied.items()} == dict.fromkeys(
        applied, formats
    )
    assert len(applied) >= min(5, len(mutations))
