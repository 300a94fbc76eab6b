"""Descriptions match what the network computes, by torch's own counts and by gradients.

Shape suffixes: N images, C channels, H and W pixels.
"""

import ast
import json
import operator
import re
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from tests.training.described import LAYERS, Calls, Joined, Recurrent
from training.__main__ import main
from training.describe import DescribeError, Description, describe
from training.describe.layout import layout, memory_formats
from training.describe.table import as_text
from training.models import ARCHITECTURES, build_model, model_names, resolved

OPERATIONS: dict[type, Callable[[int, int], int]] = {ast.Add: operator.add, ast.Mult: operator.mul}


def _value(formula: str) -> int:
    """Evaluate a written formula."""

    def worked_out(node: Any) -> int:
        if isinstance(node, ast.BinOp):
            return OPERATIONS[type(node.op)](worked_out(node.left), worked_out(node.right))
        return int(node.value)

    text = formula.replace(",", "").replace("x", "*")
    return worked_out(ast.parse(text, mode="eval").body)


def _of_registry(name: str) -> Description:
    with torch.device("meta"):
        module = build_model(name, {})
    return describe(module, ARCHITECTURES[resolved(name, {})[0]].inputs, name=name)


def _sees(description: Description, step: int = -1) -> list[tuple[Any, ...]]:
    (field,) = description.steps[step].receptive_field
    return [(axis.reach, axis.size, axis.jump) for axis in field.axes]


def test_the_cnn_is_described_as_by_hand() -> None:
    """Steps, shapes, parameters, multiply-adds and receptive fields match those counted by hand."""
    shown = _of_registry("cnn")
    first, second = shown.steps[0], shown.steps[3]
    assert (first.name, first.what) == ("features.0", "Conv2d 5x5, 1 -> 16, valid")
    assert (first.parameter_formula, first.parameters) == ("16 x (1 x 5 x 5) + 16", 416)
    assert second.multiply_add_formula == "32 x 8 x 8 x (16 x 5 x 5)"
    assert second.outputs == ((1, 32, 8, 8),)
    sizes = [_sees(shown, step)[0] for step in (0, 2, 3, 5, 7)]
    window = "window"
    assert sizes[:4] == [(window, 5, 1), (window, 6, 2), (window, 14, 2), (window, 16, 4)]
    assert sizes[4] == ("all", None, None)
    assert shown.totals.parameters == shown.totals.trainable == 80_202
    assert shown.totals.multiply_adds == 230_400 + 819_200 + 512 * 128 + 1_280
    assert shown.totals.weight_bytes == 4 * 80_202
    relus_share_nothing = 2 * (9_216 + 2_048) + 2_304 + 512 + 2 * 128 + 10
    assert shown.totals.activation_bytes == 4 * relus_share_nothing


@pytest.mark.parametrize("name", model_names())
def test_every_network_agrees_with_torchs_own_counts(name: str) -> None:
    """Parameters equal numel(); multiply-adds without batch norm equal half of torch's flops."""
    shown = _of_registry(name)
    architecture = ARCHITECTURES[resolved(name, {})[0]]
    with torch.device("meta"):
        module = build_model(name, {}).eval()
        inputs = [torch.empty(1, *shape) for shape in architecture.inputs]
        with FlopCounterMode(display=False) as counter:
            module(*inputs)
    norms = sum(step.multiply_adds for step in shown.steps if step.function == "batch_norm")
    assert 2 * (shown.totals.multiply_adds - norms) == counter.get_total_flops()
    assert sum(step.parameters for step in shown.steps) == sum(
        parameter.numel() for parameter in module.parameters()
    )
    assert shown.totals.buffers == sum(buffer.numel() for buffer in module.buffers())
    for step in shown.steps:
        assert _value(step.parameter_formula) == step.parameters
        assert _value(step.multiply_add_formula) == step.multiply_adds


@pytest.mark.parametrize("case", LAYERS, ids=lambda case: case.what)
def test_a_layer_has_its_words_and_formulas(case: Any) -> None:
    """Each kind of layer is described with its numbers, and both formulas give the right counts."""
    step = describe(case.layer, [case.sample]).steps[-1]
    assert step.what == case.what
    assert _value(step.parameter_formula) == step.parameters == case.parameters
    assert _value(step.multiply_add_formula) == step.multiply_adds == case.multiply_adds


def _measured(module: nn.Module, shape: tuple[int, int, int]) -> list[int]:
    """The greatest extent, in rows and columns, connected to one row or column of the output."""
    x_NCHW = torch.rand(1, *shape, dtype=torch.float64, requires_grad=True)
    module = module.double().eval()
    for parameter in module.parameters():
        nn.init.uniform_(parameter, 0.5, 1)  # nothing cancels out
    out_HW = module(x_NCHW).sum((0, 1))
    widest = []
    for axis in (0, 1):
        sizes = []
        for line in out_HW.unbind(axis):
            (slope_NCHW,) = torch.autograd.grad(line.sum(), x_NCHW, retain_graph=True)
            reached = slope_NCHW.sum((0, 1, 3 - axis)).nonzero()
            sizes.append(int(reached.max() - reached.min()) + 1)
        widest.append(max(sizes))
    return widest


CHAINS: dict[str, list[nn.Module]] = {
    "strided and dilated": [nn.Conv2d(1, 2, 3, 2), nn.Conv2d(2, 1, (3, 2), dilation=(2, 1))],
    "pooled": [nn.AvgPool2d(3, 2, 1), nn.Conv2d(1, 1, 3, padding="same"), nn.AvgPool2d(2)],
    "adaptive": [nn.AdaptiveAvgPool2d((5, 10)), nn.Conv2d(1, 1, 2)],
    "joined": [Joined(), nn.AvgPool2d(2)],
    "viewed": [
        Calls(lambda x: x.transpose(2, 3)[:, :, 1::2]),
        nn.Conv2d(1, 1, (3, 2)),
        Calls(lambda x: x.transpose(2, 3)),
    ],
    "depthwise": [nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 2, 1, groups=2)],
}


@pytest.mark.parametrize("chain", CHAINS)
def test_the_receptive_field_is_what_gradients_reach(chain: str) -> None:
    """On each axis, the stated size is the greatest extent of input that one output depends on."""
    module = nn.Sequential(*CHAINS[chain])
    stated = [size for _, size, _ in _sees(describe(module, [(1, 20, 20)]))]
    assert stated == _measured(module, (1, 20, 20))


@pytest.mark.parametrize(
    ("name", "reaches"),
    [
        ("mobilenet_v3_small", {"all"}),
        ("shufflenet_v2_x0_5", {"all"}),
        ("swin_v2_t", {"unknown"}),  # its windows are shifted
        ("vit_b_16", {"all"}),
    ],
)
def test_torchvisions_classifiers_have_formulas(name: str, reaches: set[str]) -> None:
    """Every step has a formula or torch's count; a logit depends on the whole image, if known."""
    with torch.device("meta"):
        module = torchvision.models.get_model(name)
    shown = describe(module, [(3, 224, 224)])
    assert not [step.name for step in shown.steps if step.multiply_add_formula == "no formula"]
    assert {reach for reach, _, _ in _sees(shown)} == reaches


def test_a_list_that_grows_after_a_call_does_not_change_the_call() -> None:
    """A list may be appended to after it was concatenated, as in DenseNet."""

    def grow(x_NCHW: torch.Tensor) -> torch.Tensor:
        features = [x_NCHW]
        for _ in range(2):
            features.append(torch.cat(features, 1).relu())
        return torch.cat(features, 1)

    shown = describe(Calls(grow), [(1, 4, 4)])
    what = [step.what for step in shown.steps if step.function == "cat"]
    assert what == [f"cat {count} along axis 1" for count in (1, 2, 3)]
    assert _sees(shown) == [("window", 1, 1)] * 2


def test_what_no_rule_knows_is_not_guessed() -> None:
    """A function without a rule makes the field unknown, unless it already was the whole input."""
    shown = describe(Calls(lambda x: torch.fft.fft2(x).real), [(1, 4, 4)])
    assert _sees(shown) == [("unknown", None, None)] * 2
    assert (shown.steps[0].multiply_add_formula, shown.steps[0].multiply_adds) == ("no formula", 0)
    assert "no formula" in as_text(shown)
    shown = describe(Calls(lambda x: x.max(3)[0].max(2)[0].roll(1)), [(1, 4, 4)])
    assert _sees(shown) == [("all", None, None)] * 2
    up = nn.Sequential(nn.AvgPool2d(2), nn.ConvTranspose2d(1, 1, 4, 2, 1), nn.Conv2d(1, 1, 2))
    assert _sees(describe(up, [(1, 8, 8)])) == [("unknown", None, None)] * 2
    uneven = nn.AdaptiveAvgPool2d((3, 4))
    assert _sees(describe(uneven, [(1, 8, 8)])) == [("unknown", None, None), ("window", 2, 2)]
    flat = Calls(lambda x: x.flatten(1) + functional.avg_pool2d(x, 3, 1, 1).flatten(1))
    assert _sees(describe(flat, [(1, 4, 4)])) == [("scattered", 3, None)] * 2


def test_several_inputs_and_outputs_are_told_apart() -> None:
    """A joined step states its field for each input, and every output names its step."""
    shown = _of_registry("pair")
    assert len(shown.inputs) == 2
    assert len(shown.outputs) == 3
    assert len(shown.steps[-1].receptive_field) == 2
    second_use = next(step for step in shown.steps if step.name == "trunk.0#2")
    assert second_use.parameters == 0
    assert second_use.shared == ("trunk.0.weight", "trunk.0.bias")


def test_functions_are_steps_and_views_take_no_memory() -> None:
    """Functions called in forward are named, numbered steps, and views write no memory."""
    shown = describe(Joined(), [(1, 8, 8)])
    assert [step.name for step in shown.steps][-3:] == ["add", "pad", "cat"]
    shown = describe(Calls(lambda x: functional.max_pool2d(x.relu_(), 2).flatten(1)), [(1, 8, 8)])
    assert [(step.name, step.activation_bytes) for step in shown.steps] == [
        ("relu", 0),
        ("max_pool2d", 64),
        ("flatten", 0),
    ]
    assert shown.steps[1].what == "max_pool2d 2x2"


def test_recurrence_embedding_frozen_and_unused_weights_are_counted() -> None:
    """Every parameter is counted in a step, frozen or not, or among the unused ones."""
    words = torch.empty(1, 12, dtype=torch.int64, device="meta")
    shown = describe(Recurrent(), [words])
    assert [step.parameters for step in shown.steps] == [800, 1_664, 0, 85]
    assert [step.trainable for step in shown.steps] == [0, 1_664, 0, 85]
    assert (shown.totals.frozen, shown.totals.unused) == (800, ("spare",))
    assert shown.steps[1].multiply_add_formula == "no formula"
    with_values = describe(Recurrent(), [torch.zeros(1, 12, dtype=torch.int64)])
    assert with_values == shown


def test_the_module_stays_as_it_is() -> None:
    """Describing a module leaves mode, weights, hooks and running statistics unchanged."""
    module = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    before = {name: value.clone() for name, value in module.state_dict().items()}
    describe(module, [torch.rand(2, 1, 5, 5)])
    describe(module, [(1, 5, 5)])
    assert module.training
    assert not module[0]._forward_hooks
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())


def test_networks_far_larger_than_memory_are_described() -> None:
    """Describing a network of 1.2e11 parameters (480 GB) takes hardly any memory."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with torch.device("meta"):
        module = nn.Sequential(nn.Linear(300_000, 300_000), nn.Linear(300_000, 100_000))
    totals = describe(module, [(300_000,)]).totals
    assert totals.parameters == 300_001 * 300_000 + 300_001 * 100_000
    assert totals.weight_bytes == 4 * totals.parameters
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB


@pytest.mark.parametrize(
    ("module", "sample", "named"),
    [
        (
            nn.Sequential(nn.Conv2d(1, 4, 5), nn.Conv2d(4, 4, 5)),
            (1, 7, 7),
            "1 got 3x3 but its kernel is 5x5",
        ),
        (nn.Sequential(nn.Conv2d(1, 4, 5)), (3, 9, 9), "0 got 3 channels but expects 1"),
        (nn.Sequential(nn.Linear(9, 4)), (8,), "0 got 8 features but expects 9"),
        (nn.Sequential(nn.MaxPool2d(3)), (1, 2, 2), "0 got 2x2 but its kernel is 3x3"),
        (nn.LazyLinear(3), (4,), "is lazy"),
        (Calls(lambda x: x if x.sum() > 0 else -x), (3,), "needs a tensor's values"),
        (nn.Bilinear(2, 2, 2), (2,), "cannot take 1 inputs"),
        (nn.ReLU(), (0,), "every size must be 1 or more"),
    ],
)
@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_what_does_not_fit_is_said_in_words(
    module: nn.Module, sample: tuple[int, ...], named: str
) -> None:
    """The error names the module, what came and what was expected."""
    with pytest.raises(DescribeError, match=named):
        describe(module, [sample])


def test_both_layouts_hold_what_torch_holds() -> None:
    """Offsets from the stated strides find each value; channels last interleaves channels."""
    shown = layout()
    assert [cell.channels_first for cell in shown.cells] == list(range(18))
    assert [cell.channels_last for cell in shown.cells][:4] == [0, 9, 1, 10]
    for cell in shown.cells:
        steps = zip(cell.channels_last_index, shown.channels_last_strides, strict=True)
        assert sum(index * stride for index, stride in steps) == cell.offset
    entry = memory_formats(_of_registry("cnn"))[0]
    x_NCHW = torch.rand(2, 16, 24, 24).to(memory_format=torch.channels_last)
    assert entry.channels_last.strides == tuple(x_NCHW.stride())
    assert entry.channels_last.sizes == (1, 24, 24, 16)


def test_the_command_prints_a_table_and_the_same_as_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The table's columns line up, and the JSON validates and contains the same."""
    path = tmp_path / "cnn.json"
    asked = ["describe", "cnn", "--arch", "n1=4", "--memory-format", "--layout"]
    assert main([*asked, "--json", str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    head = next(i for i, line in enumerate(lines) if line.startswith("step "))
    starts = [match.start() for match in re.finditer("-+", lines[head + 1])]
    assert len(starts) == 7
    for line in lines[head + 2 : head + 13]:
        assert all(line[start - 1] == " " != line[start] for start in starts[1:])
    assert "4 x (1 x 5 x 5) + 4 = 104" in lines[head + 2]
    assert main([*asked, "--json", "-"]) == 0
    printed = Description.model_validate_json(capsys.readouterr().out)
    assert printed == Description.model_validate(json.loads(path.read_text()))
    assert printed.layout is not None
    assert printed.memory_formats is not None
    assert len(printed.memory_formats) == 6


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--input-size", "1,9,9"], "features.3 got 2x2 but its kernel is 5x5"),
        (["--input-size", "1,32,32"], "head.1 got 800 features but expects 512"),
        (["--input-size", "28x28"], "--input-size 28x28"),
        (["--input-size", "1,28,28", "--input-size", "1,28,28"], "takes 1 input"),
        (["--arch", "n1=many"], "got 'many'"),
        (["--arch", "n9=1"], "n9"),
        (["--json", "/nowhere/x.json"], "/nowhere/x.json"),
    ],
)
def test_the_command_refuses_in_words(
    arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Wrong arguments end with status 1 and one line that names them."""
    assert main(["describe", "cnn", *arguments]) == 1
    error = capsys.readouterr().err
    assert named in error
    assert "Traceback" not in error
