"""A bar on stderr that names the step which is under way."""

import sys
from typing import Self

from tqdm import tqdm


class Progress:
    """Counts steps; shows nothing where stderr is no terminal."""

    def __init__(self, *, shown: bool = False) -> None:
        """Expect no steps yet.

        Args:
            shown: False: never show anything.
        """
        self._bar = tqdm(
            total=0,
            file=sys.stderr,
            leave=False,
            disable=None if shown else True,
            bar_format="{desc} |{bar}| {n_fmt}/{total_fmt} [{elapsed}]",
        )

    def expect(self, steps: int) -> None:
        """So many further steps will come."""
        self._bar.total += steps
        self._bar.refresh()

    def step(self, name: str) -> None:
        """A step begins; those before it are done."""
        self._bar.set_description_str(f"{name:28}")
        self._bar.update()

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Take the bar away."""
        self._bar.close()
