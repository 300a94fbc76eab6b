"""Every architecture has the layers that its description states, for any numbers."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from training.models import ARCHITECTURES, VARIANTS, build_model, model_names, resolved

TINY = {"n1": 2, "n2": 4, "n3": 5}
TINY_LARGE = {"input_size": 30, "width": 1 / 8, "classes": 7}
# Channels 16, 8, 4, 2, 2 and 128 units; 30 pixels become 24, 20, 10, 5, and 2 at the end.
LARGE_CONVOLUTIONS = (147 * 16 + 16) + (400 * 8 + 8) + (72 * 4 + 4) + (36 * 2 + 2) + (18 * 2 + 2)
LARGE_DENSE = (8 * 128 + 128) + (128 * 128 + 128) + (128 * 7 + 7)
TINY_LARGE_PARAMETERS = LARGE_CONVOLUTIONS + 2 * (8 + 2) + LARGE_DENSE

# Counted by hand: weights + biases (+ 2 per BatchNorm channel, which replaces the bias).
PARAMETERS: list[tuple[str, dict[str, Any], int]] = [
    ("cnn", {}, (25 * 16 + 16) + (16 * 25 * 32 + 32) + (512 * 128 + 128) + (128 * 10 + 10)),
    ("cnn", {"n1": 2, "n2": 3, "n3": 5}, 52 + 153 + (48 * 5 + 5) + 60),
    ("cnn", {"n1": 2, "n2": 3, "n3": 5, "batch_norm": True}, 54 + 156 + (240 + 10) + 60),
    ("cnn-batch-norm", TINY, 54 + (50 * 4 + 8) + (320 + 10) + 60),
    ("cnn-average-pool", TINY, 52 + 204 + 325 + 60),
    ("cnn-strided", TINY, 52 + (4 * 2 * 2 + 2) + 204 + (4 * 4 * 4 + 4) + 325 + 60),
    ("cnn-grouped", TINY, 52 + (25 * 4 + 4) + 325 + 60),
    ("cnn-separable", TINY, 52 + (25 * 2) + (2 * 4 + 4) + 325 + 60),
    ("cnn-dilated", TINY, (9 * 2 + 2) + (9 * 2 * 4 + 4) + 325 + 60),
    ("cnn-global-average", TINY, 52 + 204 + (4 * 10 + 10)),
    ("mlp", {}, (784 * 512 + 1024) + (512 * 512 + 1024) + (512 * 10 + 10)),
    ("mlp", {"hidden": [7], "batch_norm": False}, (784 * 7 + 7) + 80),
    # The stem; a block; a block with a 1x1 convolution in its skip; the head.
    ("resnet", {"channels": 2, "blocks": 1}, 54 + (80) + (80 + 152 + 16) + 50),
    ("resnet", {"channels": 2, "blocks": 2}, 54 + (2 * 80) + (80 + 152 + 16) + (2 * 152) + 50),
    (
        *("vgg", {"a": 2, "b": 3, "c": 4}),
        (18 + 4) + (36 + 4) + (54 + 6) + 2 * (81 + 6) + (108 + 8) + (144 + 8) + 50,
    ),
    ("inception", {"width": 2}, 44 * 2 + 16 + 44 * 8 * 2 + 16 + (8 * 49 * 10 + 10)),
    ("two-input", {**TINY, "n4": 3}, 52 + 204 + 325 + 60 + (5 * 3 + 3) + (3 * 19 + 19)),
    (
        *("autoencoder", {"n1": 2, "n2": 4, "code": 3}),
        (16 * 2 + 2) + (32 * 4 + 4) + (196 * 3 + 3) + (3 * 196 + 196) + (64 * 2 + 2) + (32 + 1),
    ),
    ("conv1d", TINY, (28 * 5 * 2 + 4) + (2 * 5 * 4 + 8) + (28 * 5 + 5) + 60),
    ("conv3d", TINY, (75 * 2 + 2) + (150 * 4 + 4) + 325 + 60),
    ("conv3d", {**TINY, "copies": 6}, (75 * 2 + 2) + (150 * 4 + 4) + (2 * 320 + 5) + 60),
    ("lecture502-sequential", TINY_LARGE, TINY_LARGE_PARAMETERS),
    ("lecture502-subclass", {**TINY_LARGE, "softmax": True}, TINY_LARGE_PARAMETERS),
]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Limit PyTorch to one thread: with tensors this small, more threads only wait."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _inputs(name: str, numbers: dict[str, Any], count: int) -> list[Tensor]:
    """Noise of the registered shapes, or of the size that the numbers require."""
    size = numbers.get("input_size")
    shapes = ARCHITECTURES[resolved(name, numbers)[0]].inputs
    return [torch.randn(count, *(shape if size is None else (3, size, size))) for shape in shapes]


@pytest.mark.parametrize(("name", "numbers", "parameters"), PARAMETERS)
def test_parameters_and_shapes(name: str, numbers: dict[str, Any], parameters: int) -> None:
    """The number of parameters matches the formula, and the outputs have the task's shapes."""
    module = build_model(name, numbers)
    assert sum(p.numel() for p in module.parameters()) == parameters
    answer = module(*_inputs(name, numbers, 3))
    shapes = [tuple(tensor.shape) for tensor in (answer if isinstance(answer, tuple) else [answer])]
    expected = {
        "digit": [(3, 10)],
        "pair": [(3, 10), (3, 10), (3, 19)],
        "image": [(3, 1, 28, 28)],
        "none": [(3, 7)],
    }
    assert shapes == expected[ARCHITECTURES[resolved(name, numbers)[0]].task]


def test_every_registered_name_is_tested() -> None:
    """Every architecture and variant has a row in the table above."""
    assert {name for name, _, _ in PARAMETERS} == set(model_names())
    assert set(model_names()) == {*ARCHITECTURES, *VARIANTS}


@pytest.mark.parametrize("name", model_names())
def test_every_weight_takes_part(name: str) -> None:
    """The outputs' gradient reaches every weight tensor, so no layer is unused."""
    torch.manual_seed(0)
    numbers = next(numbers for row, numbers, _ in PARAMETERS if row == name)
    module = build_model(name, numbers)
    answer = module(*_inputs(name, numbers, 32))
    tensors = answer if isinstance(answer, tuple) else (answer,)
    # Cubes: for squares of normalised values the gradient is nearly 0 by construction.
    sum((tensor**3).sum() for tensor in tensors).backward()
    idle = [n for n, p in module.named_parameters() if p.grad is None or not p.grad.any()]
    assert not idle


def test_the_mlp_is_made_of_linear_layers_alone() -> None:
    """The MLP contains no convolution: all weights are matrices or per-unit vectors."""
    kinds = {type(module) for module in build_model("mlp", {}).modules()}
    assert not kinds & {nn.Conv1d, nn.Conv2d, nn.Conv3d}
    assert nn.Linear in kinds


@pytest.mark.parametrize(
    ("name", "numbers", "words"),
    [
        (
            "rnn",
            {},
            "unknown model 'rnn'; known: autoencoder, cnn, cnn-average-pool, cnn-batch-norm",
        ),
        ("cnn-strided", {"down": "max"}, "cnn-strided is cnn with down='strided', got down='max'"),
        ("cnn", {"down": "minimum"}, "down: Input should be 'max', 'average' or 'strided', got"),
        ("cnn-grouped", {"n1": 3}, "groups=2 must divide the channels n1=3 and n2=32"),
        ("cnn-grouped", {"groups": 5}, "groups=5 must divide the channels n1=16 and n2=32"),
        ("cnn", {"groups": 4}, "groups=4 needs convolution='grouped'"),
        ("resnet", {"blocks": 0}, "blocks: Input should be greater than or equal to 1, got 0"),
        ("conv3d", {"copies": 4}, "copies: Input should be greater than or equal to 5, got 4"),
        (
            "lecture502-subclass",
            {"input_size": 19},
            "input_size: Input should be greater than or equal",
        ),
        ("lecture502-sequential", {"width": 0}, "width: Input should be greater than 0, got 0"),
        (
            "two-input",
            {"n9": 1},
            "invalid hyperparameters of two-input .it has: n1, n2, n3, n4, dropout.: n9",
        ),
    ],
)
def test_a_bad_number_is_answered_in_words(name: str, numbers: dict[str, Any], words: str) -> None:
    """The error says which number of which network was wrong, and what is expected."""
    with pytest.raises(ValueError, match=words):
        build_model(name, numbers)


def test_a_variant_is_its_architecture_with_some_numbers() -> None:
    """Given numbers join a variant's own, which may be repeated (a saved record does so)."""
    assert resolved("cnn-strided", {"n1": 4}) == ("cnn", {"down": "strided", "n1": 4})
    assert resolved("cnn-strided", {"down": "strided"}) == ("cnn", {"down": "strided"})
    assert resolved("mlp", {"hidden": [3]}) == ("mlp", {"hidden": [3]})
