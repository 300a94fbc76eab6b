"""What is exported of a trained network: raw pixels in, answers that need no further work out.

Of a classifier these are logits and probabilities, of a pair network those of each of its three
answers, of a network that gives its input back the image's ink. Pre- and post-processing are
folded into the graph, so that no consumer keeps a copy of the pixel statistics or of the softmax,
and none can be wrong in its own way.

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
    """A classifier with its pixel scaling in front and a softmax behind it.

    Standardisation and network compute in the classifier's own dtype: ``.double()`` gives the
    same function in float64, the reference that the exports are measured against.
    """

    def __init__(self, classifier: nn.Module) -> None:
        """Wrap a module from standardised images [N, 1, 28, 28] to logits [N, 10].

        The module is put into evaluation mode: dropout and batch statistics never get exported.
        """
        super().__init__()
        self.classifier = classifier
        self.eval()

    def forward(self, images_NHW: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 [N, 28, 28], 0 = paper, 255 = ink, to (logits, probabilities), float [N, 10]."""
        logits_NK = self.classifier(_standardised(images_NHW, self.classifier))
        return logits_NK, torch.softmax(logits_NK, dim=1)


class ServablePair(nn.Module):
    """A pair network with its pixel scaling in front and a softmax behind each answer."""

    def __init__(self, network: nn.Module) -> None:
        """Wrap a module from two standardised images to the logits of three answers."""
        super().__init__()
        self.network = network
        self.eval()

    def forward(self, first_NHW: Tensor, second_NHW: Tensor) -> tuple[Tensor, ...]:
        """Two images a sample to what is read in them.

        Args:
            first_NHW: uint8 [N, 28, 28], 0 = paper, 255 = ink.
            second_NHW: The same.

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
    """A network that gives its input back, as ink: pixel scaling in front, its inverse behind."""

    def __init__(self, network: nn.Module) -> None:
        """Wrap a module from standardised images [N, 1, 28, 28] to the same."""
        super().__init__()
        self.network = network
        self.eval()

    def forward(self, images_NHW: Tensor) -> tuple[Tensor]:
        """uint8 [N, 28, 28], 0 = paper, 255 = ink, to ink in 0..1, float [N, 28, 28]."""
        answer_NCHW = self.network(_standardised(images_NHW, self.network))
        return (to_ink(answer_NCHW).squeeze(1),)


def _standardised(images_NHW: Tensor, network: nn.Module) -> Tensor:
    """Images as the network learnt from them: [N, 1, 28, 28], in its own dtype."""
    dtype = next(network.parameters()).dtype
    return standardise(images_NHW.unsqueeze(1).to(dtype) / 255)
