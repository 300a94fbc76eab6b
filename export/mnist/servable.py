"""Wrap trained networks for export: the input is raw pixels, the outputs need no post-processing.

A classifier has logits and probabilities, a pair network has both for each of its three outputs,
and an autoencoder has the image's ink. Pre- and post-processing are part of the graph, so that
consumers need no copy of the pixel statistics or the softmax, which could differ from the original.

Shape suffixes: N images, C channels (1), H and W 28 pixels, K classes.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from export.bundle.manifest import TensorSpec
from training.data import CLASSES, IMAGE_SHAPE, standardise, to_ink
from training.evaluation.two_input import ANSWERS, SUMS

LOGITS: Literal["logits"] = "logits"
PROBABILITIES: Literal["probabilities"] = "probabilities"

INPUTS = (TensorSpec(name="images", datatype="UINT8", shape=(-1, *IMAGE_SHAPE)),)
OUTPUTS = (
    TensorSpec(name="logits", datatype="FP32", shape=(-1, CLASSES), kind="logits"),
    TensorSpec(name="probabilities", datatype="FP32", shape=(-1, CLASSES), kind="probabilities"),
)
PAIR_INPUTS = tuple(
    TensorSpec(name=name, datatype="UINT8", shape=(-1, *IMAGE_SHAPE))
    for name in ("first_images", "second_images")
)
PAIR_OUTPUTS = tuple(
    TensorSpec(name=f"{answer}_{kind}", datatype="FP32", shape=(-1, count), kind=kind)
    for answer, count in zip(ANSWERS, (CLASSES, CLASSES, SUMS), strict=True)
    for kind in (LOGITS, PROBABILITIES)
)
INK_OUTPUTS = (TensorSpec(name="ink", datatype="FP32", shape=(-1, *IMAGE_SHAPE)),)


class ServableModel(nn.Module):
    """A classifier with pixel scaling before it and a softmax after it.

    Standardisation and network compute in the classifier's own dtype: ``.double()`` gives the same
    function in float64, which is the reference for the exports.
    """

    def __init__(self, classifier: nn.Module) -> None:
        """Wrap a module from standardised images [N, 1, 28, 28] to logits [N, 10].

        The module is put into evaluation mode: dropout and batch statistics are not exported.
        """
        super().__init__()
        self.classifier = classifier
        self.eval()

    def forward(self, images_NHW: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 [N, 28, 28], 0 = paper, 255 = ink, to (logits, probabilities), float [N, 10]."""
        logits_NK = self.classifier(_standardised(images_NHW, self.classifier))
        return logits_NK, torch.softmax(logits_NK, dim=1)


class ServablePair(nn.Module):
    """A pair network with pixel scaling before it and a softmax after each output."""

    def __init__(self, network: nn.Module) -> None:
        """Wrap a module from two standardised images to three outputs of logits."""
        super().__init__()
        self.network = network
        self.eval()

    def forward(self, first_NHW: Tensor, second_NHW: Tensor) -> tuple[Tensor, ...]:
        """Map two images per sample to the digits in them and their sum.

        Args:
            first_NHW: uint8 [N, 28, 28], 0 = paper, 255 = ink.
            second_NHW: uint8 [N, 28, 28], likewise.

        Returns:
            Logits and probabilities, float, of the first digit [N, 10], of the second [N, 10] and
            of their sum [N, 19]: six tensors, in the order of ``PAIR_OUTPUTS``.
        """
        answers = self.network(
            _standardised(first_NHW, self.network), _standardised(second_NHW, self.network)
        )
        return tuple(
            tensor
            for logits_NK in answers
            for tensor in (logits_NK, torch.softmax(logits_NK, dim=1))
        )


class ServableAutoencoder(nn.Module):
    """An autoencoder with pixel scaling before it and the inverse, which gives ink, after it."""

    def __init__(self, network: nn.Module) -> None:
        """Wrap a module that maps standardised images [N, 1, 28, 28] to images of that kind."""
        super().__init__()
        self.network = network
        self.eval()

    def forward(self, images_NHW: Tensor) -> tuple[Tensor]:
        """Map uint8 [N, 28, 28], 0 = paper, 255 = ink, to ink in 0..1, float [N, 28, 28]."""
        answer_NCHW = self.network(_standardised(images_NHW, self.network))
        return (to_ink(answer_NCHW).squeeze(1),)


def _standardised(images_NHW: Tensor, network: nn.Module) -> Tensor:
    """Images standardised as in training: [N, 1, 28, 28], in the network's own dtype."""
    dtype = next(network.parameters()).dtype
    return standardise(images_NHW.unsqueeze(1).to(dtype) / 255)
