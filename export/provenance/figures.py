"""What tracing a file's numbers gives: counts, the largest error, and problems. Knows no torch."""

from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from export.bundle.metrics import Array, Figures


class WeightFigures(Figures):
    """Where a file's numbers come from, asked of the file itself.

    Attributes:
        equal: Tensors that hold the checkpoint's numbers bit by bit, moved or stacked perhaps.
        folded: Tensors that were computed from the checkpoint's: a fold, a sum, a constant part.
        converted: Tensors that were rounded to another type.
        constants: How many float numbers are the code's own, and known from it.
        consumed: How many float numbers the file's nodes take.
        untraced: How many of those are traced to nothing: only samples prove them.
        settings: Attributes and integer inputs of nodes that the program's arguments confirm.
        settings_untraced: Those that no rule covers: only samples prove them.
        calibrated: Steps of activations, which calibration chose: only samples prove them.
        error: Largest difference to what the checkpoint says, in the unit of the precision: of
            float tensors over the value itself (of biases, differences of large numbers, over the
            size of their terms), of int8 in steps of the quantization.
        worst: Where that is, with both values.
        problems: What is not the checkpoint's, in words.
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
        """Of the float numbers that nodes take; None in files of old, which did not count them."""
        return 1 - self.untraced / self.consumed if self.consumed else None

    def summary(self) -> str:
        """How far the file is proven without samples, in a line."""
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
    """Collects what came of each tensor.

    Attributes:
        counts: By the name of a field of ``WeightFigures``.
        error: The largest so far, in units; ``worst`` says where.
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
        """The sum of all."""
        problems = tuple(dict.fromkeys(self.problems))
        return WeightFigures(**self.counts, error=self.error, worst=self.worst, problems=problems)


def is_float(array: Array) -> bool:
    """Are its numbers floating-point ones? Only they have a rounding error, and are weights."""
    return bool(np.issubdtype(array.dtype, np.floating))


def same_bits(found: Array, expected: Array) -> bool:
    """Are two arrays equal, NaN beside NaN among it?"""
    return bool(np.array_equal(found, expected, equal_nan=is_float(found)))


def largest_error(found: Array, expected: Array, unit: Array) -> float:
    """The largest difference in units; infinite if a value is not finite on one side alone."""
    return float(_differences(found, expected, unit).max()) if found.size else 0.0


def where(found: Array, expected: Array, unit: Array | float = 1.0) -> str:
    """The element that differs most, measured in its unit, with both values."""
    position = np.unravel_index(_differences(found, expected, unit).argmax(), found.shape)
    at = ", ".join(str(int(i)) for i in position)
    return f"[{at}] is {found[position]:.7g}, expected {expected[position]:.7g}"


def _differences(found: Array, expected: Array, unit: Array | float) -> Array:
    with np.errstate(invalid="ignore", divide="ignore"):
        difference = np.abs(found.astype(np.float64) - expected) / unit
    difference = np.where(np.isfinite(difference), difference, np.inf)
    return np.where(found == expected, 0.0, difference)
