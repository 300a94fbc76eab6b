"""The picture of the pipeline: what each stage hands on, and what it refuses."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from tests.pictures.palette import Palette

# By stage: its name, what it does, what it refuses.
STAGES = (
    (
        "training",
        ("trains on MNIST",),
        ("to resume another run", "to overwrite an", "   unfinished run"),
    ),
    (
        "export",
        ("converts; compares every", "answer, layer and weight", "with the checkpoint"),
        ("a file that computes", "   something else", "a proof that misses", "   a planted fault"),
    ),
    (
        "service",
        ("answers golden samples", "on its own device,", "at the start and every minute"),
        ("a changed file", "an unproven variant", "a device that", "   answers wrongly"),
    ),
    (
        "loadtest",
        ("loads the service; compares", "every answer with", "the reference"),
        ("one wrong answer", "a missed threshold", "a slower commit"),
    ),
)
HANDED_ON = ("checkpoint", "bundle", "HTTP")
WIDTH, GAP = 2.05, 0.95
TOP, MIDDLE, BOTTOM = 3.2, 1.55, 0.0


def draw_gate(palette: Palette) -> Figure:
    """Four boxes from left to right, and under each what it refuses."""
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    axes = figure.subplots()
    axes.set_axis_off()
    for number, (name, does, refuses) in enumerate(STAGES):
        left = number * (WIDTH + GAP)
        _draw_box(axes, left, MIDDLE + 0.1, TOP - MIDDLE, palette.card, palette.accent)
        middle = left + WIDTH / 2
        axes.text(middle, TOP - 0.14, name, ha="center", weight="bold", fontsize=12)
        axes.text(middle, 2.35, "\n".join(does), ha="center", va="center", fontsize=9)
        _draw_box(axes, left, BOTTOM, 1.2, palette.bad, palette.bad_ink)
        lines = [line if line.startswith(" ") else f"\N{BULLET} {line}" for line in refuses]
        axes.text(left + 0.1, 0.6, "\n".join(lines), va="center", fontsize=9, color=palette.bad_ink)
        _draw_arrow(axes, (middle, MIDDLE + 0.1), (middle, 1.22), palette.bad_ink)
        axes.text(middle + 0.08, 1.4, "refuses", va="center", fontsize=8.5, color=palette.bad_ink)
    for number, what in enumerate(HANDED_ON):
        start = number * (WIDTH + GAP) + WIDTH
        _draw_arrow(axes, (start, 2.45), (start + GAP, 2.45), palette.ink)
        axes.text(start + GAP / 2, 2.56, what, ha="center", fontsize=9)
    axes.set(xlim=(-0.1, 4 * WIDTH + 3 * GAP + 0.1), ylim=(-0.1, TOP + 0.25))
    return figure


def _draw_box(axes: Axes, left: float, low: float, height: float, face: str, edge: str) -> None:
    axes.add_patch(
        FancyBboxPatch(
            (left, low), WIDTH, height, boxstyle="round,pad=0,rounding_size=0.1", fc=face, ec=edge
        )
    )


def _draw_arrow(
    axes: Axes, start: tuple[float, float], end: tuple[float, float], colour: str
) -> None:
    axes.add_patch(
        FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=12, color=colour, lw=1.3)
    )
