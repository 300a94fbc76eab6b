"""Compares a shadow's answers with the stable version's, and keeps the worst disagreements.

Shape suffixes: N samples, K classes.
"""

import heapq
import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from export.bundle.manifest import Manifest, TensorSpec
from export.bundle.metrics import Array, Arrays, softmax
from service.models.loader import VerifiedModel
from service.versions.state import Limits, RolloutError

KEPT_SAMPLES = 16
LARGEST_KEPT_BYTES = 65_536  # of one sample's inputs


class Comparison(NamedTuple):
    """The difference between one sample's answers, whether it is too large, and a description."""

    difference: float
    is_disagreement: bool
    words: str


class AnswerComparer:
    """Compares the answers of two versions of a model.

    Versions with the same weights must agree within the sum of both tolerances, since each may
    differ from the reference by its own. Others are compared by their labels, or by
    ``Limits.max_difference``.

    Attributes:
        same_weights: Whether the two versions have the same weights.
    """

    def __init__(self, stable: VerifiedModel, candidate: VerifiedModel, limits: Limits) -> None:
        """Choose how to compare.

        Raises:
            RolloutError: The weights differ, there are no labels, and no largest difference is set.
        """
        bounds = (stable.tolerance.scaled_error, candidate.tolerance.scaled_error)
        weights = {_weights(stable.manifest), _weights(candidate.manifest)}
        self.same_weights = None not in bounds and None not in weights and len(weights) == 1
        self._bound = limits.max_difference
        if self.same_weights:
            self._bound = sum(bound for bound in bounds if bound is not None)
        outputs = candidate.manifest.outputs
        self._logits = next((spec for spec in outputs if spec.kind == "logits"), None)
        if self._bound is None and self._logits is None:
            raise RolloutError(
                f"{candidate.manifest.name} version {candidate.manifest.version} has different "
                "weights from the stable version, and no labels to compare: set the acceptable "
                "difference with --max-difference, relative to the largest output value"
            )
        self._labels = candidate.manifest.labels
        # Differences are relative to each output's scale: one sample's answer may be near zero.
        self._scales = [
            (spec, max(float(np.abs(stable.samples.fp32[spec.name]).max()), np.finfo(float).tiny))
            for spec in outputs
            if spec.kind != "probabilities" and spec.name in stable.samples.fp32
        ]

    def compare(self, expected: Arrays, answers: Arrays) -> Iterator[Comparison]:
        """Compare the answers to N samples.

        Args:
            expected: The stable version's outputs, by name, [N, ...].
            answers: The candidate's outputs, likewise.

        Yields:
            One result for each sample.
        """
        if self._bound is None and self._logits is not None:
            yield from self._compare_labels(expected[self._logits.name], answers[self._logits.name])
            return
        results = [self._differ(spec, scale, expected, answers) for spec, scale in self._scales]
        for differences in zip(*results, strict=True):
            worst = int(np.argmax(differences))
            difference = float(differences[worst])
            name = self._scales[worst][0].name
            words = f"{name} differs by {difference:.2e} of its scale; allowed {self._bound:.2e}"
            yield Comparison(difference, not difference <= (self._bound or 0), words)

    def _compare_labels(self, expected_NK: Array, answers_NK: Array) -> Iterator[Comparison]:
        differences = np.abs(softmax(expected_NK) - softmax(answers_NK)).max(axis=1)
        pairs = zip(expected_NK.argmax(axis=1), answers_NK.argmax(axis=1), strict=True)
        for (old, new), difference in zip(pairs, differences, strict=True):
            words = (
                f"{self._name(old)} became {self._name(new)}; a probability differs by "
                f"{difference:.2f}"
            )
            is_wrong = not np.isfinite(difference)
            yield Comparison(
                float("inf") if is_wrong else float(difference), bool(is_wrong or old != new), words
            )

    def _name(self, label: int) -> str:
        return self._labels[label] if label < len(self._labels) else str(label)

    def _differ(self, spec: TensorSpec, scale: float, expected: Arrays, answers: Arrays) -> Array:
        """Return the largest difference of each sample relative to the scale; NaN is infinite."""
        first, second = expected[spec.name], answers[spec.name]
        if first.shape != second.shape:
            return np.full(len(first), np.inf)
        if first.dtype.kind not in "f":  # integers are not rounded
            differs = (first != second).reshape(len(first), -1).any(axis=1)
            return np.where(differs, np.inf, 0.0)
        difference = np.abs(first.astype(np.float64) - second.astype(np.float64))
        relative: Array = difference.reshape(len(first), -1).max(axis=1) / scale
        return np.where(np.isnan(relative), np.inf, relative)


@dataclass(order=True)
class _Kept:
    """A sample of the reservoir, ordered by its difference."""

    difference: float
    number: int
    arrays: Arrays


class WorstSamples:
    """The samples on which a shadow disagreed the most, at most ``KEPT_SAMPLES``."""

    def __init__(self) -> None:
        """Start with no samples."""
        self._kept: list[_Kept] = []
        self._number = 0
        self._is_changed = False

    def add(self, difference: float, inputs: Arrays, expected: Arrays, answers: Arrays) -> None:
        """Keep one sample if it is among the worst and not too large.

        Args:
            difference: The difference between the answers.
            inputs: The sample's inputs by name, without the first axis.
            expected: The stable version's outputs, likewise.
            answers: The candidate's outputs, likewise.
        """
        if sum(array.nbytes for array in inputs.values()) > LARGEST_KEPT_BYTES:
            return
        if len(self._kept) == KEPT_SAMPLES and difference <= self._kept[0].difference:
            return
        groups = {"inputs": inputs, "stable": expected, "shadow": answers}
        arrays = {
            f"{group}/{name}": array.copy()
            for group, part in groups.items()
            for name, array in part.items()
        }
        self._number += 1
        item = _Kept(difference, self._number, arrays)
        push = heapq.heappushpop if len(self._kept) == KEPT_SAMPLES else heapq.heappush
        push(self._kept, item)
        self._is_changed = True

    def take_changes(self) -> bytes | None:
        """Return an .npz of all samples, the worst first; None if none changed since the last call.

        Its arrays are named "NUMBER/GROUP/TENSOR"; "NUMBER/difference" is a float.
        """
        if not self._is_changed:
            return None
        self._is_changed = False
        arrays: Arrays = {}
        for number, item in enumerate(sorted(self._kept, reverse=True)):
            arrays[f"{number}/difference"] = np.float64(item.difference)  # type: ignore[assignment]
            arrays |= {f"{number}/{name}": array for name, array in item.arrays.items()}
        content = io.BytesIO()
        np.savez(content, allow_pickle=False, **arrays)
        return content.getvalue()


def _weights(manifest: Manifest) -> str | None:
    """Return the SHA-256 of a bundle's weights; None if it contains none."""
    return next((entry.sha256 for entry in manifest.files if entry.role == "weights"), None)
