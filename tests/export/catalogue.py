"""Networks of many kinds that nobody here trained, with samples: what the gate must prove as well.

Seeded weights, statistics that could have been learnt, heads that are not zero. Shape suffixes: N
samples, T tokens or time steps, C channels, H and W pixels, K classes, V words of a vocabulary, S
samples of a sound.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from export.bundle.metrics import Arrays
from export.cli import tensor_spec
from export.model.factory import from_factory
from export.model.under_test import ModelUnderTest
from tests.export.subjects import pair, pair_samples

WORDS = 50
LENGTH = 12
SOUND = 640
SIDE, CLASSES = 64, 10
NORMS = nn.BatchNorm1d | nn.BatchNorm2d | nn.LayerNorm | nn.GroupNorm


class TextEncoder(nn.Module):
    """Ids and a mask to classes: PyTorch's own transformer encoder layers, pooled by the mask."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, 16)
        self.positions = nn.Embedding(LENGTH, 16)
        layer = nn.TransformerEncoderLayer(16, 4, 32, activation="gelu", batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(16)
        self.head = nn.Linear(16, 3)

    def forward(self, ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """Int64 [N, T] and int64 [N, T] of ones, then zeros, to logits [N, 3]."""
        hidden = self.words(ids) + self.positions.weight[: ids.shape[1]]
        hidden = self.norm(self.layers(hidden, src_key_padding_mask=mask == 0))
        weight = mask.float().unsqueeze(-1)
        return {"kind": self.head((hidden * weight).sum(1) / weight.sum(1))}


class Decoder(nn.Module):
    """A causal block: the next word's logits, and the word itself."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, 16)
        self.before, self.between = nn.LayerNorm(16), nn.LayerNorm(16)
        self.query_key_value = nn.Linear(16, 48)
        self.out = nn.Linear(16, 16)
        self.wide, self.narrow = nn.Linear(16, 64), nn.Linear(64, 16)

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Int64 [N, T] to logits [N, V] of the last position and int64 [N]."""
        hidden = self.words(ids)
        parts = self.query_key_value(self.before(hidden)).chunk(3, dim=-1)
        q, k, v = (part.unflatten(-1, (4, 4)).transpose(1, 2) for part in parts)
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        hidden = hidden + self.out(mixed.transpose(1, 2).flatten(2))
        hidden = hidden + self.narrow(functional.silu(self.wide(self.between(hidden))))
        logits = hidden[:, -1] @ self.words.weight.T
        return logits, logits.argmax(dim=-1)


class GruWithState(nn.Module):
    """One stretch of a series and the state before it, to answers and the state after it."""

    def __init__(self) -> None:
        super().__init__()
        self.cells = nn.GRU(5, 8, num_layers=2, batch_first=True)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Float [N, T, 5] and [N, 2, 8] to [N, T, 4] and [N, 2, 8]."""
        before = None if state is None else state.transpose(0, 1).contiguous()
        hidden, after = self.cells(x, before)
        return self.head(hidden), after.transpose(0, 1)


class LstmClassifier(nn.Module):
    """A series to classes, read in both directions; states as a nested tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.cells = nn.LSTM(6, 8, batch_first=True, bidirectional=True)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> dict[str, Tensor | tuple[Tensor, Tensor]]:
        """Float [N, T, 6] to logits [N, 3] and the last states, [N, 2, 8] each."""
        hidden, (h, c) = self.cells(x)
        states = (h.transpose(0, 1), c.transpose(0, 1))
        return {"kind": self.head(hidden[:, -1]), "state": states}


class AudioClassifier(nn.Module):
    """A sound to classes: its spectrogram by STFT, then 1D convolutions over time."""

    window: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("window", torch.hann_window(64))
        self.layers = nn.Sequential(
            nn.Conv1d(33, 12, 3, padding=1, bias=False), nn.BatchNorm1d(12), nn.ReLU(inplace=True),
            nn.Conv1d(12, 12, 3, groups=12, stride=2), nn.Conv1d(12, 16, 1), nn.SiLU(),
        )  # fmt: skip
        self.head = nn.Linear(16, 4)

    def forward(self, sound: Tensor) -> Tensor:
        """Float [N, S] to logits [N, 4]."""
        found = torch.stft(sound, 64, 32, window=self.window, center=False, return_complex=True)
        power = found.real.square() + found.imag.square()
        logits: Tensor = self.head(self.layers(torch.log(power + 1e-3)).mean(dim=2))
        return logits


class Autoencoder(nn.Module):
    """A picture to a short code and back."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(
            nn.Conv2d(1, 6, 3, stride=2, padding=1), nn.BatchNorm2d(6), nn.LeakyReLU(0.1),
            nn.Conv2d(6, 8, 3, stride=2, padding=1), nn.GroupNorm(2, 8), nn.ELU(),
        )  # fmt: skip
        self.code, self.back = nn.Linear(8 * 16, 10), nn.Linear(10, 8 * 16)
        self.up = nn.Sequential(
            nn.ConvTranspose2d(8, 6, 2, stride=2), nn.BatchNorm2d(6), nn.Hardswish(),
            nn.ConvTranspose2d(6, 1, 2, stride=2), nn.Sigmoid(),
        )  # fmt: skip

    def forward(self, picture: Tensor) -> tuple[Tensor, Tensor]:
        """Float [N, 1, 16, 16] to the same and the code [N, 10]."""
        code = self.code(self.down(picture).flatten(1))
        return self.up(torch.relu(self.back(code)).unflatten(1, (8, 4, 4))), code


class Segmenter(nn.Module):
    """A picture to a class for each pixel, with a skip connection around the coarse way."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU6())
        self.coarse = nn.Sequential(
            nn.Conv2d(8, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12), nn.ReLU()
        )
        self.head = nn.Conv2d(20, 4, 1)

    def forward(self, picture: Tensor) -> dict[str, Tensor]:
        """Uint8 [N, 3, H, W] to scores [N, 4, H, W] and labels int64 [N, H, W]."""
        fine = self.first(picture / 255)
        coarse = self.coarse(functional.max_pool2d(fine, 2))
        again = functional.interpolate(
            coarse, size=fine.shape[2:], mode="bilinear", align_corners=False
        )
        scores = self.head(torch.cat([fine, again], dim=1))
        return {"scores": scores, "labels": scores.argmax(dim=1)}


class Untraceable(nn.Module):
    """Refuses to be traced: torch.export takes it, and TorchScript's tracer does not."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 8)
        self.head = nn.Linear(8, 4)

    def forward(self, values: Tensor) -> Tensor:
        """Float [N, 6] to logits [N, 4]."""
        if torch._C._get_tracing_state() is not None:
            raise RuntimeError("no tracing, please")
        logits: Tensor = self.head(torch.relu(self.layer(values)))
        return logits


class NarrowVgg(nn.Module):
    """Torchvision's vgg11 with 64 units in its dense layers: with 4,096 each it has 531 MB."""

    def __init__(self) -> None:
        super().__init__()
        found = torchvision.models.vgg11(num_classes=CLASSES, init_weights=False)
        self.features, self.pool = found.features, found.avgpool
        self.classifier = nn.Sequential(
            nn.Linear(512 * 7 * 7, 64), nn.ReLU(), nn.Dropout(), nn.Linear(64, CLASSES)
        )

    def forward(self, picture: Tensor) -> Tensor:
        """Float [N, 3, H, W] to logits [N, K]."""
        logits: Tensor = self.classifier(self.pool(self.features(picture)).flatten(1))
        return logits


def seeded(kind: Callable[[], nn.Module]) -> Callable[[int], nn.Module]:
    """A factory of a network whose norms and heads have values that it could have learnt."""

    def make(seed: int = 0) -> nn.Module:
        torch.manual_seed(seed)
        module = kind()
        for part in module.modules():
            if isinstance(part, NORMS):
                nn.init.uniform_(part.weight, 0.5, 1.5)
                nn.init.uniform_(part.bias, -0.5, 0.5)
            if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
                part.running_mean = torch.randn(part.num_features) * 0.3
                part.running_var = torch.rand(part.num_features) + 0.5
        return module.eval()

    return make


def seen(kind: Callable[[], nn.Module]) -> Callable[[int], nn.Module]:
    """The same of a network of pictures: made-up statistics would let 50 layers explode or fade."""
    make = seeded(kind)

    def make_and_show(seed: int = 0) -> nn.Module:
        module = make(seed)
        for part in module.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.momentum = None  # the mean over all batches, of which there is one
                part.reset_running_stats()
        for parameter in module.parameters():
            if not parameter.any():  # zeros until they are trained, as a vision transformer's head
                nn.init.normal_(parameter, std=0.2)
        with torch.no_grad():
            module.train()(torch.from_numpy(_pictures(np.random.default_rng(seed), 16)["picture"]))
        return module.eval()

    return make_and_show


text_encoder = seeded(TextEncoder)
decoder = seeded(Decoder)
gru_with_state = seeded(GruWithState)
lstm_classifier = seeded(LstmClassifier)
audio_classifier = seeded(AudioClassifier)
autoencoder = seeded(Autoencoder)
segmenter = seeded(Segmenter)
untraceable = seeded(Untraceable)
resnet18 = seen(partial(torchvision.models.resnet18, num_classes=CLASSES))
mobilenet_v3_small = seen(partial(torchvision.models.mobilenet_v3_small, num_classes=CLASSES))
efficientnet_b0 = seen(partial(torchvision.models.efficientnet_b0, num_classes=CLASSES))
vgg11 = seen(NarrowVgg)
squeezenet = seen(partial(torchvision.models.squeezenet1_1, num_classes=CLASSES))
shufflenet = seen(partial(torchvision.models.shufflenet_v2_x0_5, num_classes=CLASSES))
vision_transformer = seen(
    partial(
        torchvision.models.VisionTransformer,
        image_size=SIDE,
        patch_size=16,
        num_layers=2,
        num_heads=2,
        hidden_dim=32,
        mlp_dim=64,
        num_classes=CLASSES,
    )
)
lraspp = seen(
    partial(
        torchvision.models.segmentation.lraspp_mobilenet_v3_large,
        weights_backbone=None,
        num_classes=5,
    )
)


def two_inputs(seed: int = 0) -> nn.Module:
    """A picture and numbers to logits and a score."""
    del seed  # its weights are those that other tests know
    return pair()


def _normal(generator: np.random.Generator, *shape: int) -> np.ndarray:
    return generator.normal(size=shape).astype(np.float32)


def _pictures(generator: np.random.Generator, count: int) -> Arrays:
    """Float [N, 3, H, W]: coarse patches of colour, of contrasts of their own, and some noise."""
    patches = generator.normal(size=(count, 3, 8, 8)) * generator.uniform(
        0.3, 1.5, (count, 1, 1, 1)
    )
    coarse = patches.repeat(SIDE // 8, axis=2).repeat(SIDE // 8, axis=3)
    return {"picture": (coarse + 0.2 * _normal(generator, *coarse.shape)).astype(np.float32)}


def _text(generator: np.random.Generator, count: int) -> Arrays:
    mask = np.arange(LENGTH) < generator.integers(2, LENGTH + 1, (count, 1))
    ids = np.where(mask, generator.integers(1, WORDS, (count, LENGTH)), 0)
    return {"ids": ids.astype(np.int64), "mask": mask.astype(np.int64)}


def _sounds(generator: np.random.Generator, count: int) -> Arrays:
    time = np.arange(SOUND) / SOUND * 2 * math.pi
    tones = np.sin(time * generator.integers(5, 200, (count, 1)))
    return {"sound": (tones + 0.1 * _normal(generator, count, SOUND)).astype(np.float32)}


@dataclass(frozen=True)
class Network:
    """One of the catalogue.

    Attributes:
        samples: Makes some, from a generator and their number.
        declared: As on the command line, after ``--input``.
        logits: The outputs that are.
    """

    samples: Callable[[np.random.Generator, int], Arrays]
    declared: tuple[str, ...] = ()
    logits: tuple[str, ...] = ()


SMALL = {
    "text_encoder": Network(
        _text,
        declared=(
            f"ids=INT64[-1,tokens=3..{LENGTH}]:tokens={WORDS}",
            f"mask=INT64[-1,tokens=3..{LENGTH}]:mask",
        ),
        logits=("kind",),
    ),
    "decoder": Network(
        lambda g, n: {"ids": g.integers(0, WORDS, (n, LENGTH))}, logits=("output_0",)
    ),
    "gru_with_state": Network(
        lambda g, n: {"x": _normal(g, n, 7, 5), "state": np.tanh(_normal(g, n, 2, 8))},
        declared=("x=FP32[-1,7,5]", "state=FP32[-1,2,8]:range=-1..1"),
    ),
    "lstm_classifier": Network(lambda g, n: {"x": _normal(g, n, 9, 6)}, logits=("kind",)),
    "untraceable": Network(lambda g, n: {"values": _normal(g, n, 6)}, logits=("output_0",)),
    "two_inputs": Network(lambda g, n: pair_samples(n, int(g.integers(99))), logits=("kind",)),
    "audio_classifier": Network(_sounds, logits=("output_0",)),
    "autoencoder": Network(lambda g, n: {"picture": _normal(g, n, 1, 16, 16)}),
    "segmenter": Network(
        lambda g, n: {"picture": g.integers(0, 256, (n, 3, 16, 12)).astype(np.uint8)},
        declared=("picture=UINT8[-1,3,height=6..16,width=5..12]",),
    ),
}
LARGE = {
    name: Network(_pictures, logits=("output_0",))
    for name in (
        "resnet18",
        "mobilenet_v3_small",
        "efficientnet_b0",
        "vgg11",
        "squeezenet",
        "shufflenet",
        "vision_transformer",
    )
} | {"lraspp": Network(_pictures)}
NETWORKS = SMALL | LARGE


def write_network(name: str, folder: Path, *, samples: int = 64, seed: int = 0) -> list[str]:
    """Write a network's weights and samples; what ``export build`` needs to be told of them."""
    network = NETWORKS[name]
    module: nn.Module = globals()[name](seed)
    save_file(module.state_dict(), folder / f"{name}.safetensors")
    write_samples(name, folder / f"{name}.npz", samples, seed)
    command = ["--model", f"{__name__}:{name}", "--arguments", f'{{"seed": {seed}}}']
    command += ["--checkpoint", str(folder / f"{name}.safetensors")]
    command += ["--inputs", str(folder / f"{name}.npz")]
    command += [part for spec in network.declared for part in ("--input", spec)]
    return command + [part for output in network.logits for part in ("--logits", output)]


def write_samples(name: str, path: Path, count: int, seed: int) -> None:
    """Write samples of a network, as ``--inputs`` and ``--calibration`` take them."""
    arrays = NETWORKS[name].samples(np.random.default_rng(seed), count)
    np.savez(path, allow_pickle=False, **arrays)


def network_under_test(
    name: str, folder: Path, *, samples: int = 64, seed: int = 0
) -> ModelUnderTest:
    """A network of the catalogue, as the export stage sees it."""
    write_network(name, folder, samples=samples, seed=seed)
    network = NETWORKS[name]
    return from_factory(
        f"{__name__}:{name}",
        folder / f"{name}.safetensors",
        [folder / f"{name}.npz"],
        arguments={"seed": seed},
        declared=[tensor_spec(text) for text in network.declared],
        logits=network.logits,
    )
