"""Colours of the documentation's pictures, and how a figure is written for light and dark pages."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure


@dataclass(frozen=True)
class Palette:
    """Colours for one kind of page, as hexadecimal RGB.

    Attributes:
        ink: Text and axes.
        quiet: Secondary text and grids.
        ground: The page itself, for gaps between areas.
        card: Filled boxes.
        accent: The measured value.
        second: A second series.
        good: Caught, passed; ``good_ink`` is text on it.
        bad: Passed though faulty, refused; ``bad_ink`` is text on it.
    """

    ink: str
    quiet: str
    ground: str
    card: str
    accent: str
    second: str
    good: str
    good_ink: str
    bad: str
    bad_ink: str


PALETTES = {
    "light": Palette(
        ink="#1f2328",
        quiet="#59636e",
        ground="#ffffff",
        card="#f3f4f8",
        accent="#3346c8",
        second="#b3541e",
        good="#cfe9db",
        good_ink="#0f5132",
        bad="#f6c9c4",
        bad_ink="#8c1d18",
    ),
    "dark": Palette(
        ink="#f0f6fc",
        quiet="#9198a1",
        ground="#0d1117",
        card="#1b1f2a",
        accent="#a3b0ff",
        second="#f0a868",
        good="#1c4a36",
        good_ink="#a5ecc9",
        bad="#6a2420",
        bad_ink="#ffc9c4",
    ),
}

Draw = Callable[[Palette], Figure]


def save_both(draw: Draw, out: Path, name: str) -> list[Path]:
    """Draw a figure for each kind of page and write it as SVG, the same bytes for the same figure.

    Args:
        draw: Makes the figure in the colours that it gets.
        out: The folder.
        name: The files are ``name-light.svg`` and ``name-dark.svg``.

    Returns:
        The paths of both files.
    """
    paths = []
    for kind, palette in PALETTES.items():
        with mpl.rc_context(_settings(palette, name)):
            figure = draw(palette)
            path = out / f"{name}-{kind}.svg"
            figure.savefig(path, transparent=True, metadata={"Date": None})
        paths.append(path)
    return paths


def _settings(palette: Palette, name: str) -> dict[Any, Any]:
    """Matplotlib's settings: text as outlines, because fonts differ between readers."""
    return {
        "svg.fonttype": "path",
        "svg.hashsalt": name,
        "font.size": 10,
        "text.color": palette.ink,
        "axes.labelcolor": palette.ink,
        "axes.edgecolor": palette.quiet,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "xtick.color": palette.quiet,
        "ytick.color": palette.quiet,
        "xtick.labelcolor": palette.ink,
        "ytick.labelcolor": palette.ink,
        "legend.frameon": False,
    }
