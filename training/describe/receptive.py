"""How far an output sees: the part of one input axis that a position of a tensor depends on.

An ``Axis`` follows one axis of one input through a network. Its windows are exact, and those far
from the border, where no padding cuts them off. Every operation along an axis is told as the
positions that one output position reads (``sources``) and as a period: what output o + period
reads is what o reads, moved by ``moved`` positions. A convolution of stride s has period 1 and
moves by s; a transposed one has period s and moves by 1; resizing from a to b has period b and
moves by a. Windows may differ within a period, which is why several are kept.

For plain convolutions and poolings this is the recurrence of Araujo, Norris and Sim, "Computing
Receptive Fields of Convolutional Neural Networks" (Distill, 2019, doi 10.23915/distill.00021):
size + (kernel - 1) x dilation x jump, jump x stride.
"""

from collections.abc import Callable, Collection, Iterable
from enum import Enum
from fractions import Fraction
from math import gcd, lcm
from typing import NamedTuple

Window = tuple[int, int]  # first and last position of the input that is seen

MOST_WINDOWS = 10_000  # a longer period is not followed: the field is unknown then


class Reach(Enum):
    """How much is known of what a position sees."""

    WINDOW = "window"  # windows of the stated size, one jump apart
    SCATTERED = "scattered"  # windows still, but no longer one jump apart (flattened, say)
    ALL = "all"
    UNKNOWN = "unknown"


class Axis(NamedTuple):
    """What positions of a tensor see along one axis of one input.

    Attributes:
        reach: What is known.
        dims: The tensor's dimensions along which the window moves; empty if it stays.
        windows: For each position of a period; None for one that sees nothing.
        shift: By how much the windows move from one period to the next, in input positions.
    """

    reach: Reach
    dims: frozenset[int] = frozenset()
    windows: tuple[Window | None, ...] = ((0, 0),)
    shift: int = 0

    @property
    def size(self) -> int | None:
        """The widest window, in input positions; None if not a window (all, or unknown)."""
        if self.reach in (Reach.ALL, Reach.UNKNOWN):
            return None
        return max((last - first + 1 for first, last in filter(None, self.windows)), default=0)

    @property
    def jump(self) -> Fraction | None:
        """By how much the window moves from one position to the next, in input positions."""
        if self.reach is not Reach.WINDOW or not self.dims:
            return None
        return Fraction(abs(self.shift), len(self.windows))

    def at(self, position: int) -> Window | None:
        """The window of a position, which may lie outside the tensor (as padding does)."""
        periods, phase = divmod(position, len(self.windows))
        window = self.windows[phase]
        return window and (window[0] + periods * self.shift, window[1] + periods * self.shift)

    def through(
        self, dim: int, sources: Callable[[int], Iterable[int]], moved: int = 1, period: int = 1
    ) -> "Axis":
        """After an operation along ``dim``; see the module's docstring for its arguments."""
        if self.reach in (Reach.ALL, Reach.UNKNOWN) or dim not in self.dims:
            return self
        length = period * (len(self.windows) // gcd(len(self.windows), moved))
        if self.reach is Reach.SCATTERED or length > MOST_WINDOWS:
            return UNKNOWN
        windows = tuple(_hull(self.at(source) for source in sources(o)) for o in range(length))
        shift = self.shift * moved * (length // period) // len(self.windows)
        return self._replace(windows=windows, shift=shift)

    def reduced(self, dims: Collection[int]) -> "Axis":
        """After an operation whose every output reads all positions along ``dims``."""
        if self.reach in (Reach.ALL, Reach.UNKNOWN) or not self.dims & set(dims):
            return self
        return ALL if self.dims <= set(dims) else UNKNOWN

    def renumbered(self, number: Callable[[int], int]) -> "Axis":
        """The same with the tensor's dimensions numbered anew."""
        return self._replace(dims=frozenset(map(number, self.dims)))

    def scattered(self, dims: Iterable[int]) -> "Axis":
        """Windows of the same size that move along ``dims`` in no regular way."""
        if self.size is None:
            return self
        return Axis(Reach.SCATTERED, frozenset(dims), ((0, max(self.size - 1, 0)),))

    def fixed(self, position: int) -> "Axis":
        """What is left when one position is picked out."""
        if self.reach is Reach.WINDOW:
            return Axis(Reach.WINDOW, windows=(self.at(position),))
        return self.scattered(())

    def joined(self, other: "Axis") -> "Axis":
        """Where two paths meet: what either of them sees."""
        for reach, both in ((Reach.ALL, ALL), (Reach.UNKNOWN, UNKNOWN)):
            if reach in (self.reach, other.reach):
                return both
        if not (self.regular and other.regular and self.dims == other.dims):
            wider = max(self, other, key=lambda axis: axis.size or 0)
            return wider.scattered(self.dims | other.dims)
        length = lcm(len(self.windows), len(other.windows))
        if self.jump != other.jump or length > MOST_WINDOWS:
            return UNKNOWN
        windows = tuple(_hull((self.at(o), other.at(o))) for o in range(length))
        shift = self.shift * (length // len(self.windows))
        return Axis(Reach.WINDOW, self.dims, windows, shift)

    @property
    def regular(self) -> bool:
        """Whether its windows lie one jump apart."""
        return self.reach is Reach.WINDOW


ALL = Axis(Reach.ALL)
UNKNOWN = Axis(Reach.UNKNOWN)

# What a tensor sees: for each input that it depends on, by its number, that input's axes but the
# batch's. A tensor that depends on no input (a weight, say) has an empty field.
Field = dict[int, tuple[Axis, ...]]


def whole_input(number: int, ndim: int) -> Field:
    """The field of an input itself: each position sees itself.

    Args:
        number: Which input it is.
        ndim: Its number of dimensions, the batch's included.
    """
    return {number: tuple(Axis(Reach.WINDOW, frozenset({dim}), shift=1) for dim in range(1, ndim))}


def changed(field: Field, change: Callable[[Axis], Axis]) -> Field:
    """The field with each of its axes changed."""
    return {number: tuple(map(change, axes)) for number, axes in field.items()}


def join(fields: Iterable[Field]) -> Field:
    """What at least one of the fields sees."""
    joined: Field = {}
    for field in fields:
        for number, axes in field.items():
            known = joined.get(number, axes)
            joined[number] = tuple(a.joined(b) for a, b in zip(known, axes, strict=True))
    return joined


def _hull(windows: Iterable[Window | None]) -> Window | None:
    seen = [window for window in windows if window is not None]
    if not seen:
        return None
    return min(first for first, _ in seen), max(last for _, last in seen)
