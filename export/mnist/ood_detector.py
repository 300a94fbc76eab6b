"""Does an image look like those that a model learned from? A p-value for each. Knows no torch.

Two numbers tell of an image, by the principal components of the training images: how much of it
they cannot say (the error of its reconstruction), and how far out it lies among them (its
Mahalanobis distance there). How far these two, as logarithms, are from what is usual is its
strangeness.

The p-value is conformal (Vovk, Gammerman, Shafer 2005): the share of held-out images, the image
itself counted with them, that are at least as strange. Of images that come as those came at most
one in a hundred has a p-value under 0.01, whatever they look like. It is no probability that the
model errs.

Pixels are whole numbers and components whole multiples of 1/2048, so that float32 holds every
product and sum exactly: an image is as strange in any batch, and by any BLAS.

Shape suffixes: N images, M held-out ones, P pixels (784), C components, F the two numbers.
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
# With fewer, no p-value could come under it.
LEAST_HELD_OUT = 99
COMPONENTS = 64
SIDE, PIXEL_MAX = 28, 255
PIXELS = SIDE * SIDE
# A component has length 1: 28 x 255 x 2048 < 2^24, up to which float32 holds all whole numbers.
STEPS = 2048
# So many products of two pixels add up to less than 2^24: float32 holds the sum exactly.
EXACT_ROWS = 2**24 // 255**2
# So few images at a time that BLAS asks no other thread for help, which would spin after it.
ROWS = 4
# Below these, in squared grey levels and squared deviations, lies nothing but rounding.
LEAST_ERROR, LEAST_DISTANCE = 1.0, 1e-6
P_VALUE_DIGITS = 6
# What is said of an image: it is faint if its pixels differ by less; its ground is light if its rim
# is lighter; it is noise if its neighbours are less alike (1: alike, 0: pixels drawn by lot).
FAINT, MID_GREY, NOISE = 64, 127, 0.4


class Verdict(NamedTuple):
    """What the guard says of an image.

    Attributes:
        usual: Its p-value is not under UNUSUAL_BELOW.
        p_value: Above 0, at most 1.
        reason: Why it may not be usual, in words; None if it is.
    """

    usual: bool
    p_value: float
    reason: str | None


@dataclass(frozen=True)
class OodDetector:
    """What images were like that a model learned from.

    Attributes:
        mean_P: float32 [784], whole numbers.
        basis_PC: float32 [784, C], principal components times STEPS, whole numbers.
        weight_C: float64 [C], one over the variance of the training images along them.
        centre_F: float64 [2], the two numbers' means.
        precision_FF: float64 [2, 2], the inverse of their covariance.
        strangeness_M: float64 [M], of held-out images, rising.
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
            p_values_N: Their p-values, if they were computed already.
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
        """float64 [N], above 0 and at most 1, of images uint8 [N, 28, 28]."""
        held_out = len(self.strangeness_M)
        less_strange = np.searchsorted(self.strangeness_M, self.strangeness(images_NHW))
        return np.asarray((1 + held_out - less_strange) / (1 + held_out))

    def strangeness(self, images_NHW: Array) -> Array:
        """float64 [N], 0 and more, of images uint8 [N, 28, 28]."""
        found_NF = _numbers(images_NHW, self.mean_P, self.basis_PC, self.weight_C)
        return _distance(found_NF, self.centre_F, self.precision_FF)

    def save(self, path: Path) -> None:
        """Write an .npz whose bytes depend on the images alone."""
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
        """Read what ``save`` wrote; nothing in it is unpickled.

        Args:
            path: The file.
            content: Its content, if it was read already.

        Raises:
            BundleError: Not such a file, or its arrays do not fit each other.
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
            raise BundleError(f"{path} does not hold a guard: {error}") from error
        shapes = [array.shape for array in vars(guard).values()]
        components, held_out = guard.weight_C.size, guard.strangeness_M.size
        if shapes != [(PIXELS,), (PIXELS, components), (components,), (2,), (2, 2), (held_out,)]:
            raise BundleError(f"{path} does not hold a guard: its arrays do not fit")
        if held_out < LEAST_HELD_OUT or not (np.diff(guard.strangeness_M) >= 0).all():
            raise BundleError(f"{path} does not hold a guard: its held-out images are no measure")
        return guard

    def _reason(self, image_HW: Array) -> str:
        """Why an image may be unusual; the first of these that is true."""
        values = image_HW.astype(np.float64)
        spread = float(np.ptp(values))
        negative = PIXEL_MAX - image_HW
        if spread == 0:
            return "blank"
        if values.max() == 1:
            return "pixels look scaled to 0..1 (unnormalised)"
        if spread < FAINT:
            return f"faint: its pixels differ by {spread:.0f} of {PIXEL_MAX} at most"
        if _likeness_of_neighbours(values) < NOISE:
            return "noise"
        if np.median(_rim(values)) > MID_GREY and self._is_less_strange(negative, image_HW):
            return "inverted: light ground"
        return "unlike the digits that the model learned from"

    def _is_less_strange(self, one_HW: Array, other_HW: Array) -> bool:
        one, other = self.strangeness(np.stack([one_HW, other_HW]))
        return bool(one < other)


def fit(learned_NHW: Array, held_out_MHW: Array) -> OodDetector:
    """A guard of images.

    Args:
        learned_NHW: uint8 [N, 28, 28], what a model learned from.
        held_out_MHW: uint8 [M, 28, 28], others of their kind; LEAST_HELD_OUT at least.
    """
    pixels_NP = learned_NHW.reshape(-1, PIXELS)
    mean_P = np.rint(pixels_NP.mean(axis=0, dtype=np.float64)).astype(np.float32)
    variance, basis_PC = np.linalg.eigh(_covariance(pixels_NP, mean_P))
    strongest = np.argsort(-variance, kind="stable")[:COMPONENTS]
    basis_PC = basis_PC[:, strongest]
    largest = np.abs(basis_PC).argmax(axis=0)  # an eigenvector's sign is anybody's choice
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
    """float64 [N, 2]: logarithms of an image's error of reconstruction and of its distance."""
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
    """float64 [P, P]; its sums are of whole numbers, and so exact in any order."""
    sums_PP = np.zeros((pixels_NP.shape[1], pixels_NP.shape[1]))
    for start in range(0, len(pixels_NP), EXACT_ROWS):
        centred_NP = pixels_NP[start : start + EXACT_ROWS] - mean_P
        sums_PP += centred_NP.T @ centred_NP
    return np.asarray(sums_PP / len(pixels_NP))


def _rounded(values: Array) -> Array:
    """To float32's digits: the last ones of float64 hang on the order of sums."""
    return values.astype(np.float32).astype(np.float64)


def _distance(found_NF: Array, centre_F: Array, precision_FF: Array) -> Array:
    """float64 [N], squared Mahalanobis distances from the centre; the same in any batch."""
    first, second = (found_NF - centre_F).T
    (a, b), (_, d) = precision_FF.tolist()
    return np.asarray(a * first * first + 2 * b * first * second + d * second * second)


def _rim(image_HW: Array) -> Array:
    return np.concatenate([image_HW[0], image_HW[-1], image_HW[:, 0], image_HW[:, -1]])


def _likeness_of_neighbours(image_HW: Array) -> float:
    """1 less the mean squared difference of neighbours over what chance would give."""
    apart = [np.square(np.diff(image_HW, axis=axis)).mean() for axis in (0, 1)]
    return float(1 - np.mean(apart) / (2 * image_HW.var()))
