"""Reconstruction error of an autoencoder on images.

Errors are measured on ink, 0..1 per pixel (0 = paper, 1 = ink), after the output is clipped to
that range, as in the exported model. They are not errors of the standardised pixels that the
network is trained on, except for ``loss``.

Shape suffixes: N images, C channels (1), H and W 28 pixels.
"""

import math

import torch
from pydantic import BaseModel
from torch import Tensor, nn
from torch.nn import functional

from training.data import CLASSES, LabelledImages, standardise, to_ink, to_pixels
from training.evaluation.prediction import predict

WORST_KEPT = 40


class WorstImage(BaseModel, frozen=True):
    """An image with a large error; ``index`` counts within the evaluated set."""

    index: int
    digit: int
    mse: float


class ImageEvaluation(BaseModel, frozen=True):
    """Metrics on one set of images.

    Attributes:
        images_name: Name of the set of images.
        images: Number of images.
        mse: Mean squared error of ink over all pixels of all images, ink squared.
        psnr_db: Peak signal-to-noise ratio, 10 log10(1 / mse) dB, the peak being full ink; None
            if the error is zero.
        mse_per_digit: The mean squared error of each digit's images; None for a digit without any.
        loss: Mean squared error of the standardised pixels, which training minimises.
        worst: The images with the largest errors, the largest first, at most 40.
    """

    images_name: str
    images: int
    mse: float
    psnr_db: float | None
    mse_per_digit: list[float | None]
    loss: float
    worst: list[WorstImage]

    def summary(self) -> str:
        """The metrics as two lines for a terminal."""
        psnr = "infinite" if self.psnr_db is None else f"{self.psnr_db:.2f} dB"
        per_digit = "  ".join(
            f"{digit}: {'none' if mse is None else format(1000 * mse, '.2f')}"
            for digit, mse in enumerate(self.mse_per_digit)
        )
        return (
            f"on {self.images_name}: mean squared error of ink {self.mse:.5f}, PSNR {psnr}\n"
            f"  per digit, thousandths: {per_digit}"
        )


def evaluate_images(model: nn.Module, data: LabelledImages, images_name: str) -> ImageEvaluation:
    """Compute all metrics of ``ImageEvaluation`` for a module on labelled images.

    Args:
        model: A module from standardised images, float [N, 1, 28, 28], to their reconstructions.
        data: uint8 images and their digits.
        images_name: Name of the images in tables.
    """
    (answer_NCHW,) = predict(model, data.images)
    pixels_NCHW, labels = to_pixels(data.images.cpu()), data.labels.cpu()
    errors = (to_ink(answer_NCHW) - pixels_NCHW).double().square().mean(dim=(1, 2, 3))
    worst = errors.argsort(descending=True, stable=True)[:WORST_KEPT]
    mse = float(errors.mean())
    return ImageEvaluation(
        images_name=images_name,
        images=len(data),
        mse=mse,
        psnr_db=-10 * math.log10(mse) if mse > 0 else None,
        mse_per_digit=[_mean_of(errors, labels == digit) for digit in range(CLASSES)],
        loss=float(functional.mse_loss(answer_NCHW, standardise(pixels_NCHW))),
        worst=[
            WorstImage(index=i, digit=int(labels[i]), mse=float(errors[i])) for i in worst.tolist()
        ],
    )


def _mean_of(errors_N: Tensor, chosen_N: Tensor) -> float | None:
    return float(errors_N[chosen_N].mean()) if bool(torch.any(chosen_N)) else None
