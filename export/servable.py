"""The module that is exported for digits: raw pixels in, logits and probabilities out.

Pre- and post-processing are folded into the graph, so that no consumer keeps a copy of the pixel
statistics or of the softmax, and none can be wrong in its own way.

Shape suffixes: N images, C channels (1), H and W 28 pixels, K classes.
"""

import torch
from torch import Tensor, nn

from export.manifest import TensorSpec
from training.data import CLASSES, IMAGE_SHAPE, standardise

INPUTS = (TensorSpec(name="images", datatype="UINT8", shape=(-1, *IMAGE_SHAPE)),)
OUTPUTS = (
    TensorSpec(name="logits", datatype="FP32", shape=(-1, CLASSES), kind="logits"),
    TensorSpec(name="probabilities", datatype="FP32", shape=(-1, CLASSES), kind="probabilities"),
)


class ServableModel(nn.Module):
    """A classifier with its pixel scaling in front and a softmax behind it.

    Standardisation and network compute in the classifier's own dtype: ``.double()`` gives the
    same function in float64, the truth that the exports are measured against.
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
        dtype = next(self.classifier.parameters()).dtype
        x_NCHW = standardise(images_NHW.unsqueeze(1).to(dtype) / 255)
        logits_NK = self.classifier(x_NCHW)
        return logits_NK, torch.softmax(logits_NK, dim=1)
