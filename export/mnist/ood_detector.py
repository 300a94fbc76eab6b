"""Detect out-of-distribution images, by a p-value for each image. Imports no torch.

Two features of an image are computed with the principal components of the training images: its
reconstruction error, and its Mahalanobis distance in the space of the components. The image's
strangeness is the squared Mahalanobis distance of the logarithms of both from their mean.

The p-value is conformal (Vovk, Gammerman, Shafer 2005): the share of held-out images, including the
image itself, that are at least as strange. Of images from the same distribution as the held-out
ones, at most one in a hundred has a p-value under 0.01, for any distribution. The p-value is not
the probability that the model is wrong.

Pixels are integers and components are integer multiples of 1/2048, so that float32 computes every
product and sum exactly: an image's strangeness is the same in any batch, and with any BLAS.

Shape suffixes: N images, M held-out ones, P pixels (784), C components, F the two features.
"""

from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import NamedTuple, Self
from zipfile import BadZipFile

import numpy as np

from export.bundle.manifest import BundleError
from export.bundle.metrics import Array

UNUSUAL_BELOW = 0.01
# With fewer held-out images, no p-value could be as small as UNUSUAL_BELOW.
LEAST_HELD_OUT = 99
COMPONENTS = 64
SIDE, PIXEL_MAX = 28, 255
PIXELS = SIDE * SIDE
# A component has length 1: 28 x 255 x 2048 < 2^24, up to which float32 represents all integers.
STEPS = 2048
# The sum of this many products of two pixels is less than 2^24, which float32 computes exactly.
EXACT_ROWS = 2**24 // 255**2
# Images per product: so few that BLAS starts no other thread, which would spin afterwards.
ROWS = 4
# Values below these, in squared grey levels and squared deviations, are only rounding errors.
LEAST_ERROR, LEAST_DISTANCE = 1.0, 1e-6
P_VALUE_DIGITS = 6
# Reasons: an image is faint if its pixels differ by less than FAINT, has a light ground if its rim
# is lighter than MID_GREY, and is noise if its neighbouring pixels are less similar than NOISE (1:
# equal, 0: random).
FAINT, MID_GREY, NOISE = 64, 127, 0.4


class Verdict(NamedTuple):
    """The guard's verdict on an image.

    Attributes:
        usual: The p-value is at least UNUSUAL_BELOW.
        p_value: Above 0, at most 1.
        reason: Why the image may be unusual; None if it is usual.
    """

    usual: bool
    p_value: float
    reason: str | None


@dataclass(frozen=True)
class OodDetector:
    """The detector, which is fitted to the images that a model was trained on.

    Attributes:
        mean_P: float32 [784], the mean image, integers.
        basis_PC: float32 [784, C], principal components times STEPS, integers.
        weight_C: float64 [C], one over the variance of the training images along each component.
        centre_F: float64 [2], the means of the two features.
        precision_FF: float64 [2, 2], the inverse of the features' covariance.
        strangeness_M: float64 [M], the strangeness of the held-out images, in ascending order.
    """

    mean_P: Array
    basis_PC: Array
    weight_C: Array
    centre_F: Array
    precision_FF: Array
    strangeness_M: Array

    def judge(self, images_NHW: Array, p_values_N: Array | None = None) -> list[Verdict]:
        """Return the verdict on each image.

        Args:
            images_NHW: uint8 [N, 28, 28].
            p_values_N: The images' p-values, if they were computed already.
        """
        verdicts = []
        if p_values_N is None:
            p_values_N = self.p_values(images_NHW)
        for image_HW, p_value in zip(images_NHW, p_values_N.tolist(), strict=True):
            usual = p_value >= UNUSUAL_BELOW
            reason = None if usual else self._reason(image_HW)
            verdicts.append(Verdict(usual, round(p_value, P_VALUE_DIGITS), reason))
        return verdicts

    def p_values(self, images_NHW: Array) -> Array:
        """The p-values of images uint8 [N, 28, 28]: float64 [N], above 0 and at most 1."""
        held_out = len(self.strangeness_M)
        less_strange = np.searchsorted(self.strangeness_M, self.strangeness(images_NHW))
        return np.asarray((1 + held_out - less_strange) / (1 + held_out))

    def strangeness(self, images_NHW: Array) -> Array:
        """The strangeness of images uint8 [N, 28, 28]: float64 [N], at least 0."""
        found_NF = _numbers(images_NHW, self.mean_P, self.basis_PC, self.weight_C)
        return _distance(found_NF, self.centre_F, self.precision_FF)

    def save(self, path: Path) -> None:
        """Write an .npz whose bytes depend only on the images."""
        np.savez(
            path,
            allow_pickle=False,
            mean=self.mean_P.astype(np.uint8),
            basis=self.basis_PC.astype(np.int16),
            weight=self.weight_C,
            centre=self.centre_F,
            precision=self.precision_FF,
            strangeness=self.strangeness_M,
        )

    @classmethod
    def load(cls, path: Path, content: bytes | None = None) -> Self:
        """Read a file that ``save`` wrote; nothing in it is unpickled.

        Args:
            path: The file.
            content: Its content, if it was read already.

        Raises:
            BundleError: It is not such a file, or its arrays do not fit each other.
        """
        try:
            opened = path.open("rb") if content is None else BytesIO(content)
            with opened as file, np.load(file, allow_pickle=False) as arrays:
                guard = cls(
                    arrays["mean"].astype(np.float32),
                    np.ascontiguousarray(arrays["basis"], np.float32),
                    *(arrays[name] for name in ("weight", "centre", "precision", "strangeness")),
                )
        except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
            raise BundleError(f"{path} is not a file of a guard: {error}") from error
        shapes = [array.shape for array in vars(guard).values()]
        components, held_out = guard.weight_C.size, guard.strangeness_M.size
        if shapes != [(PIXELS,), (PIXELS, components), (components,), (2,), (2, 2), (held_out,)]:
            raise BundleError(f"{path} is not a file of a guard: its arrays do not match")
        if held_out < LEAST_HELD_OUT or not (np.diff(guard.strangeness_M) >= 0).all():
            raise BundleError(f"{path} is not a file of a guard: its held-out values are invalid")
        return guard

    def _reason(self, image_HW: Array) -> str:
        """The first reason that applies to an unusual image."""
        values = image_HW.astype(np.float64)
        spread = float(np.ptp(values))
        negative = PIXEL_MAX - image_HW
        if spread == 0:
            return "blank"
        if values.max() == 1:
            return "pixels look scaled to 0..1; expected 0..255"
        if spread < FAINT:
            return f"faint: its pixels differ by {spread:.0f} of {PIXEL_MAX} at most"
        if _likeness_of_neighbours(values) < NOISE:
            return "noise"
        if np.median(_rim(values)) > MID_GREY and self._is_less_strange(negative, image_HW):
            return "inverted: light background"
        return "unlike the digits that the model was trained on"

    def _is_less_strange(self, one_HW: Array, other_HW: Array) -> bool:
        one, other = self.strangeness(np.stack([one_HW, other_HW]))
        return bool(one < other)


def fit(learned_NHW: Array, held_out_MHW: Array) -> OodDetector:
    """Fit a detector.

    Args:
        learned_NHW: The training images, uint8 [N, 28, 28].
        held_out_MHW: Other images of the same kind, uint8 [M, 28, 28]; at least LEAST_HELD_OUT.
    """
    pixels_NP = learned_NHW.reshape(-1, PIXELS)
    mean_P = np.rint(pixels_NP.mean(axis=0, dtype=np.float64)).astype(np.float32)
    variance, basis_PC = np.linalg.eigh(_covariance(pixels_NP, mean_P))
    strongest = np.argsort(-variance, kind="stable")[:COMPONENTS]
    basis_PC = basis_PC[:, strongest]
    largest = np.abs(basis_PC).argmax(axis=0)  # an eigenvector's sign is arbitrary
    basis_PC *= np.sign(basis_PC[largest, np.arange(basis_PC.shape[1])])
    basis_PC = np.ascontiguousarray(np.rint(STEPS * basis_PC), np.float32)
    weight_C = _rounded(1 / variance[strongest])
    found_NF = _numbers(learned_NHW, mean_P, basis_PC, weight_C)
    centre_F = _rounded(found_NF.mean(axis=0))
    precision_FF = _rounded(np.linalg.inv(np.cov(found_NF, rowvar=False)))
    held_out_MF = _numbers(held_out_MHW, mean_P, basis_PC, weight_C)
    strangeness_M = np.sort(_distance(held_out_MF, centre_F, precision_FF))
    return OodDetector(mean_P, basis_PC, weight_C, centre_F, precision_FF, strangeness_M)


def _numbers(images_NHW: Array, mean_P: Array, basis_PC: Array, weight_C: Array) -> Array:
    """float64 [N, 2]: the logarithms of each image's reconstruction error and distance."""
    centred_NP = images_NHW.reshape(-1, PIXELS) - mean_P
    along_NC = np.empty((len(centred_NP), len(weight_C)))
    for start in range(0, len(centred_NP), ROWS):
        along_NC[start : start + ROWS] = centred_NP[start : start + ROWS] @ basis_PC
    said_NC = np.square(along_NC / STEPS)
    whole_N = np.square(centred_NP).sum(axis=1, dtype=np.float64)
    error_N = np.maximum(whole_N - said_NC.sum(axis=1), LEAST_ERROR)
    distance_N = np.maximum((said_NC * weight_C).sum(axis=1), LEAST_DISTANCE)
    return np.asarray(np.log(np.stack([error_N, distance_N], axis=1)))


def _covariance(pixels_NP: Array, mean_P: Array) -> Array:
    """The covariance, float64 [P, P]; its sums are of integers, and so exact in any order."""
    sums_PP = np.zeros((pixels_NP.shape[1], pixels_NP.shape[1]))
    for start in range(0, len(pixels_NP), EXACT_ROWS):
        centred_NP = pixels_NP[start : start + EXACT_ROWS] - mean_P
        sums_PP += centred_NP.T @ centred_NP
    return np.asarray(sums_PP / len(pixels_NP))


def _rounded(values: Array) -> Array:
    """Round to float32: float64's last digits depend on the order of sums."""
    return values.astype(np.float32).astype(np.float64)


def _distance(found_NF: Array, centre_F: Array, precision_FF: Array) -> Array:
    """Squared Mahalanobis distances from the centre, float64 [N]; the same in any batch."""
    first, second = (found_NF - centre_F).T
    (a, b), (_, d) = precision_FF.tolist()
    return np.asarray(a * first * first + 2 * b * first * second + d * second * second)


def _rim(image_HW: Array) -> Array:
    return np.concatenate([image_HW[0], image_HW[-1], image_HW[:, 0], image_HW[:, -1]])


def _likeness_of_neighbours(image_HW: Array) -> float:
    """1 minus the mean squared difference of neighbours over that expected by chance."""
    apart = [np.square(np.diff(image_HW, axis=axis)).mean() for axis in (0, 1)]
    return float(1 - np.mean(apart) / (2 * image_HW.var()))
