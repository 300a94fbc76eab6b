"""A progress bar on stderr that names the current step."""

import sys
from typing import Self

from tqdm import tqdm


class Progress:
    """Counts steps; shows nothing if stderr is not a terminal."""

    def __init__(self, *, shown: bool = False) -> None:
        """Start with no expected steps.

        Args:
            shown: If False, never show the bar.
        """
        self._bar = tqdm(
            total=0,
            file=sys.stderr,
            leave=False,
            disable=None if shown else True,
            bar_format="{desc} |{bar}| {n_fmt}/{total_fmt} [{elapsed}]",
        )

    def expect(self, steps: int) -> None:
        """Add to the number of expected steps."""
        self._bar.total += steps
        self._bar.refresh()

    def step(self, name: str) -> None:
        """Start a step; all earlier steps are done."""
        self._bar.set_description_str(f"{name:28}")
        self._bar.update()

    def __enter__(self) -> Self:
        """Return the progress bar itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Remove the bar."""
        self._bar.close()
