"""The result of tracing a file's numbers: counts, largest error, problems. Imports no torch."""

from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from export.bundle.metrics import Array, Figures


class WeightFigures(Figures):
    """Where the numbers in a file come from, determined without running it.

    Attributes:
        equal: Number of tensors that are bit-equal to the checkpoint's, possibly moved or stacked.
        folded: Number of tensors computed from the checkpoint's: a fold, a sum, a constant part.
        converted: Number of tensors that were rounded to another type.
        constants: How many float numbers are constants of the code.
        consumed: How many float numbers the file's nodes take.
        untraced: How many of those cannot be traced: only samples prove them.
        settings: Attributes and integer inputs of nodes that the program's arguments confirm.
        settings_untraced: Those that no rule covers: only samples prove them.
        calibrated: Steps of activations, which calibration chose: only samples prove them.
        error: Largest difference to the checkpoint, in a unit that depends on the precision: for
            float tensors relative to the value (for biases, which are differences of large numbers,
            relative to their terms), for int8 in quantization steps.
        worst: The place of that error, with both values.
        problems: Descriptions of what differs from the checkpoint.
    """

    equal: int = 0
    folded: int = 0
    converted: int = 0
    constants: int = 0
    consumed: int = 0
    untraced: int = 0
    settings: int = 0
    settings_untraced: int = 0
    calibrated: int = 0
    error: float
    worst: str
    problems: tuple[str, ...]

    @property
    def traced_share(self) -> float | None:
        """Share of the consumed float numbers that are traced; None in files without counts."""
        return 1 - self.untraced / self.consumed if self.consumed else None

    def summary(self) -> str:
        """Describe in one line how much of the file is proven without samples."""
        if self.traced_share is None:
            return "not counted"
        counts = {
            "numbers": self.untraced,
            "attributes and integer inputs": self.settings_untraced,
            "steps of activations": self.calibrated,
        }
        rest = ", ".join(f"{count:,} {what}" for what, count in counts.items() if count)
        traced = f"{self.traced_share:.2%} of {self.consumed:,} numbers traced"
        return f"{traced}; proven on samples only: {rest}" if rest else traced


@dataclass
class Outcome:
    """Collects the result of each tensor.

    Attributes:
        counts: Counts by the name of a field of ``WeightFigures``.
        error: The largest error so far, in units; ``worst`` is its place.
    """

    counts: Counter[str] = field(default_factory=Counter)
    error: float = 0.0
    worst: str = ""
    problems: list[str] = field(default_factory=list)

    def note(self, name: str, found: Array, expected: Array, unit: Array) -> None:
        """Keep an error if it is the largest so far."""
        error = largest_error(found, expected, unit)
        if not self.worst or error > self.error:
            self.error, self.worst = error, f"{name}{where(found, expected, unit)}"

    def figures(self) -> WeightFigures:
        """The collected figures."""
        problems = tuple(dict.fromkeys(self.problems))
        return WeightFigures(**self.counts, error=self.error, worst=self.worst, problems=problems)


def is_float(array: Array) -> bool:
    """Whether an array is floating-point: only such numbers are weights with rounding errors."""
    return bool(np.issubdtype(array.dtype, np.floating))


def same_bits(found: Array, expected: Array) -> bool:
    """Whether two arrays are equal, where NaN equals NaN."""
    return bool(np.array_equal(found, expected, equal_nan=is_float(found)))


def largest_error(found: Array, expected: Array, unit: Array) -> float:
    """The largest difference in units; infinite if only one of two values is finite."""
    return float(_differences(found, expected, unit).max()) if found.size else 0.0


def where(found: Array, expected: Array, unit: Array | float = 1.0) -> str:
    """Describe the element that differs most in its unit, with both values."""
    position = np.unravel_index(_differences(found, expected, unit).argmax(), found.shape)
    at = ", ".join(str(int(i)) for i in position)
    return f"[{at}] is {found[position]:.7g}, expected {expected[position]:.7g}"


def _differences(found: Array, expected: Array, unit: Array | float) -> Array:
    with np.errstate(invalid="ignore", divide="ignore"):
        difference = np.abs(found.astype(np.float64) - expected) / unit
    difference = np.where(np.isfinite(difference), difference, np.inf)
    return np.where(found == expected, 0.0, difference)
