"""Properties of each family of networks beyond its shapes."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from training.config import TrainConfig
from training.data import standardise, to_pixels
from training.models import VARIANTS, build_model
from training.models.conv3d import shifted_copies
from training.models.inception import InceptionBlock
from training.models.lecture502 import Lecture502Config, copy_weights, same_padding, sizes
from training.models.resnet import Block

CNN_NAMES = ["cnn", *VARIANTS]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Limit PyTorch to one thread: with tensors this small, more threads only wait."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _seeded(name: str, numbers: dict[str, Any]) -> nn.Module:
    """A network in evaluation mode whose BatchNorm statistics look trained."""
    torch.manual_seed(0)
    module = build_model(name, numbers)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.uniform_(part.bias, -0.5, 0.5)
            part.running_mean = torch.randn(part.num_features) * 0.1
            part.running_var = torch.rand(part.num_features) + 0.5
    return module.eval()


@pytest.mark.parametrize("norm", [False, True])
def test_a_record_without_the_newer_numbers_gives_the_classic_network(norm: bool) -> None:
    """Names, initial values and outputs are bit-equal to those of the classic network."""
    numbers = {"n1": 2, "n2": 3, "n3": 5, "dropout": 0.3, "batch_norm": norm}
    config = TrainConfig.model_validate({"model": "cnn", "architecture": numbers})
    torch.manual_seed(0)
    module = build_model("cnn", config.architecture)
    torch.manual_seed(0)
    norms: list[list[nn.Module]] = [[nn.BatchNorm2d(2)], [nn.BatchNorm2d(3)], [nn.BatchNorm1d(5)]]
    first, second, third = norms if norm else ([], [], [])
    classic = nn.ModuleDict(
        {
            "features": nn.Sequential(
                *(nn.Conv2d(1, 2, 5, bias=not norm), *first, nn.ReLU(), nn.MaxPool2d(2)),
                *(nn.Conv2d(2, 3, 5, bias=not norm), *second, nn.ReLU(), nn.MaxPool2d(2)),
            ),
            "head": nn.Sequential(
                *(nn.Flatten(), nn.Linear(48, 5, bias=not norm), *third, nn.ReLU()),
                *(nn.Dropout(0.3), nn.Linear(5, 10)),
            ),
        }
    )
    found = module.state_dict()
    assert list(found) == list(classic.state_dict())
    assert all(torch.equal(found[name], tensor) for name, tensor in classic.state_dict().items())
    x_NCHW = torch.randn(4, 1, 28, 28)
    module, classic = module.eval(), classic.eval()
    assert torch.equal(module(x_NCHW), classic["head"](classic["features"](x_NCHW)))


@pytest.mark.parametrize("name", CNN_NAMES)
def test_every_cnn_keeps_the_figures_sizes(name: str) -> None:
    """In every variant, 28 pixels become 24, 12, 8 and 4."""
    features = build_model(name, {}).get_submodule("features")
    x_NCHW = torch.randn(1, 1, 28, 28)
    seen = []
    for layer in features.children():
        x_NCHW = layer(x_NCHW)
        seen.append(x_NCHW.shape[2:])
    assert list(dict.fromkeys(seen)) == [(24, 24), (12, 12), (8, 8), (4, 4)]


@pytest.mark.parametrize("name", [name for name in CNN_NAMES if name != "cnn"])
def test_a_variant_differs_from_the_classic_cnn(name: str) -> None:
    """Every variant has other layers than the classic network."""
    assert str(build_model(name, {})) != str(build_model("cnn", {}))


def test_groups_and_depthwise_kernels_see_their_own_channels_alone() -> None:
    """A changed input channel affects only its group, or only its own channel if depthwise."""
    grouped = build_model("cnn-grouped", {"n1": 4, "n2": 8}).get_submodule("features.3")
    depthwise = build_model("cnn-separable", {"n1": 4, "n2": 8}).get_submodule("features.3")
    x_NCHW = torch.zeros(1, 4, 12, 12)
    other_NCHW = x_NCHW.clone()
    other_NCHW[:, 0] = 1
    for layer, reached in ((grouped, range(4)), (depthwise, range(1))):
        changed = (layer(other_NCHW) != layer(x_NCHW)).any(dim=(0, 2, 3))
        assert changed.nonzero().flatten().tolist() == list(reached)


def test_the_large_networks_two_forms_compute_the_same() -> None:
    """On 3x502x502, outputs are equal after weights are copied either way, and differ before."""
    numbers = {"width": 1 / 16, "classes": 10}
    sequential, subclass = (
        _seeded("lecture502-sequential", numbers),
        _seeded("lecture502-subclass", numbers),
    )
    with torch.no_grad():
        for parameter in subclass.parameters():
            parameter.mul_(1.5)
        x_NCHW = torch.randn(1, 3, 502, 502)
        before = sequential(x_NCHW)
        assert not torch.equal(before, subclass(x_NCHW))
        copy_weights(sequential, subclass)
        assert torch.equal(before, subclass(x_NCHW))
        for parameter in subclass.parameters():
            parameter.mul_(1.5)
        copy_weights(subclass, sequential)
        assert torch.equal(sequential(x_NCHW), subclass(x_NCHW))
    assert not set(sequential.state_dict()) & set(subclass.state_dict())


def test_the_large_network_is_the_figures() -> None:
    """Sizes, channels, units and parameters match the figure, without running the network."""
    assert sizes(502) == (246, 123, 61)
    convolutions = 3 * 49 * 128 + 128 * 25 * 64 + 64 * 9 * 32 + 32 * 9 * 16 + 16 * 9 * 16
    dense = 16 * 61 * 61 * 1024 + 1024 * 1024 + 1024 * 1000
    biases_and_norms = (128 + 64 + 32 + 16 + 16) + (1024 + 1024 + 1000) + 2 * (64 + 16)
    for name in ("lecture502-sequential", "lecture502-subclass"):
        with torch.device("meta"):
            module = build_model(name, {})
        found = sum(p.numel() for p in module.parameters())
        assert found == convolutions + dense + biases_and_norms


def test_what_does_not_fit_is_not_copied() -> None:
    """A copy to other numbers or another network is refused with the first mismatch."""
    small = build_model("lecture502-sequential", {"input_size": 24, "width": 1 / 16})
    wide = build_model("lecture502-subclass", {"input_size": 24, "width": 1 / 8})
    with pytest.raises(ValueError, match=r"layer 0, Conv2d.* to wide, Conv2d.*the same numbers"):
        copy_weights(small, wide)
    with pytest.raises(ValueError, match="10 layers with weights cannot be copied to 4"):
        copy_weights(small, build_model("cnn", {}))


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "padding"),
    [
        (246, 3, 2, (0, 1)),
        (7, 3, 2, (1, 1)),
        (246, 3, 1, (1, 1)),
        (10, 2, 3, (0, 1)),
        (9, 2, 3, (0, 0)),
    ],
)
def test_same_padding_is_keras(
    size: int, kernel: int, stride: int, padding: tuple[int, int]
) -> None:
    """The output size is ceil(size / stride), and odd padding goes to the end."""
    assert same_padding(size, kernel, stride) == padding
    assert (size + sum(padding) - kernel) // stride + 1 == -(-size // stride)


@pytest.mark.parametrize("name", ["lecture502-sequential", "lecture502-subclass"])
def test_an_even_size_is_padded_below_and_to_the_right(name: str) -> None:
    """For 502 pixels, the first kernel of the stride-2 convolution starts at the first pixel."""
    pads = [
        m for m in build_model(name, {"width": 1 / 64}).modules() if isinstance(m, nn.ZeroPad2d)
    ]
    assert [pad.padding for pad in pads] == [(0, 1, 0, 1)]  # left, right, top, bottom


def test_softmax_is_the_large_networks_last_layer_if_asked_for() -> None:
    """With the option, the outputs are the softmax of the outputs without it."""
    x_NCHW = torch.randn(2, 3, 24, 24)
    for name in ("lecture502-sequential", "lecture502-subclass"):
        numbers = {"input_size": 24, "width": 1 / 16}
        logits_NK = _seeded(name, numbers)(x_NCHW)
        assert not torch.allclose(logits_NK.sum(dim=1), torch.ones(2))
        found_NK = _seeded(name, {**numbers, "softmax": True})(x_NCHW)
        assert torch.equal(found_NK, torch.softmax(logits_NK, dim=1))


def test_width_scales_every_layer_but_the_classes() -> None:
    """Channels and units are rounded and never become zero."""
    config = Lecture502Config(width=1 / 100)
    assert [config.channels(n) for n in (16, 128, 1024)] == [1, 1, 10]


def test_the_pairs_sum_does_not_ask_which_image_came_first() -> None:
    """Swapped images swap the digits' outputs and leave the sum bit-equal; both share one trunk."""
    pair = _seeded("two-input", {})
    first, second = torch.randn(2, 5, 1, 28, 28)
    a, b, both = pair(first, second)
    swapped_b, swapped_a, swapped = pair(second, first)
    assert torch.equal(a, swapped_a)
    assert torch.equal(b, swapped_b)
    assert torch.equal(both, swapped)
    assert not torch.equal(both, pair(first, first)[2])


def test_a_block_that_learnt_nothing_passes_its_input_on() -> None:
    """With the inner path at zero, the block's output is its skip connection."""
    block = Block(3, 3, stride=1).eval()
    nn.init.zeros_(block.second_norm.weight)
    x_NCHW = torch.rand(2, 3, 7, 7)
    assert torch.equal(block(x_NCHW), x_NCHW)


def test_branches_see_one_three_and_five_pixels_and_five_with_holes() -> None:
    """A single bright pixel reveals each branch's kernel, in the branches' order."""
    fork = InceptionBlock(1, width=1).eval()
    for part in fork.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.ones_(part.weight)
    x_NCHW = torch.zeros(1, 1, 9, 9)
    x_NCHW[..., 4, 4] = 1
    seen_CHW = fork(x_NCHW)[0] > 0
    spans = [int(channel.any(dim=0).nonzero().flatten().diff().sum()) for channel in seen_CHW]
    assert [int(channel.sum()) for channel in seen_CHW] == [1, 9, 25, 9]
    assert spans == [0, 2, 4, 4]


def test_an_autoencoder_learns_a_few_images() -> None:
    """After 45 steps on eight images, its error is less than half that of their mean image."""
    torch.manual_seed(0)
    module = build_model("autoencoder", {"n1": 4, "n2": 8, "code": 8})
    x_NCHW = standardise(to_pixels(_bars()))
    optimizer = torch.optim.Adam(module.parameters(), lr=0.02)
    for _ in range(45):
        optimizer.zero_grad()
        loss = functional.mse_loss(module(x_NCHW), x_NCHW)
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < float(x_NCHW.var(dim=0, correction=0).mean()) / 2


def _bars() -> Tensor:
    """Eight images with one white bar each, uint8 [8, 28, 28]."""
    images_NHW = torch.zeros(8, 28, 28, dtype=torch.uint8)
    for position in range(8):
        images_NHW[position, :, 3 * position : 3 * position + 4] = 255
    return images_NHW


def test_rows_are_the_steps() -> None:
    """A pixel in row 10 is feature 3 of step 10, and the first kernel spans five steps."""
    convolution = build_model("conv1d", {}).get_submodule("features.0")
    x_NFL = torch.zeros(1, 28, 28)
    seen = []
    network = build_model("conv1d", {}).eval()
    network.get_submodule("features").register_forward_pre_hook(
        lambda _, args: seen.append(args[0])
    )
    image_NCHW = torch.zeros(1, 1, 28, 28)
    image_NCHW[0, 0, 10, 3] = 1
    network(image_NCHW)
    assert seen[0][0].nonzero().tolist() == [[3, 10]]
    changed_L = (convolution(seen[0]) != convolution(x_NFL)).any(dim=(0, 1))
    assert changed_L.nonzero().flatten().tolist() == [8, 9, 10, 11, 12]


def test_the_volumes_copies_move_right_over_paper() -> None:
    """Each copy is shifted one more pixel to the right; the middle one is the image."""
    images_NHW = torch.randint(0, 256, (2, 28, 28), dtype=torch.uint8)
    x_NCHW = standardise(to_pixels(images_NHW))
    copies_NCDHW = shifted_copies(x_NCHW, 5)
    assert torch.equal(copies_NCDHW[:, :, 2], x_NCHW)
    for depth in range(4):
        before, after = copies_NCDHW[:, :, depth], copies_NCDHW[:, :, depth + 1]
        assert torch.equal(after[..., 1:], before[..., :-1])
    paper = standardise(torch.zeros(()))
    assert torch.allclose(copies_NCDHW[:, :, 4, :, :2], paper)
    assert torch.allclose(copies_NCDHW[:, :, 0, :, -2:], paper)
