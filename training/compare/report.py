"""Write a comparison as two files, ``comparison.json`` and ``comparison.html``.

``report.html.jinja`` has the page's text and style, ``sentences`` turns results into sentences,
and ``charts`` draws the charts.
"""

import base64
import io
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.figure import Figure

from training.atomic import write_atomically
from training.checkpoint import CheckpointError, read_checkpoint
from training.compare import charts, sentences
from training.compare.layers import FirstLayer, Response, first_layer, responses
from training.compare.robustness import DISTORTIONS
from training.compare.schema import Comparison, Group
from training.compare.sentences import over_seeds, p_text, percent, points, points_interval, times
from training.data import Dataset, to_pixels

PAGE_NAME, JSON_NAME = "comparison.html", "comparison.json"
RESPONSES = 2  # layers whose outputs for an image are drawn
PICTURE_DPI = 120


class Inside(NamedTuple):
    """What is drawn of a group's first network: its first layer, if possible, and responses."""

    name: str
    layer: FirstLayer | None
    responses: Sequence[Response]


def write_report(comparison: Comparison, dataset: Dataset, folder: Path) -> Path:
    """Write both files into the folder, creating it if needed, and return the page's path.

    Args:
        comparison: The comparison. The first checkpoint of each group is read again, to draw its
            weights.
        dataset: The images that the comparison was measured on.
        folder: The folder to write to.

    Raises:
        CheckpointError: A checkpoint is missing or is not the one that was measured.
        ValueError: The comparison was measured on another data set.
    """
    if dataset.sha256 != comparison.data_sha256:
        raise ValueError(
            f"the comparison was measured on {comparison.data_name} "
            f"({comparison.data_sha256}), but the images given are {dataset.name} "
            f"({dataset.sha256}); give the images that it was measured on"
        )
    folder.mkdir(parents=True, exist_ok=True)
    page = _page(comparison, dataset)
    write_atomically(folder / JSON_NAME, (comparison.model_dump_json(indent=2) + "\n").encode())
    write_atomically(folder / PAGE_NAME, page.encode())
    return folder / PAGE_NAME


def _page(comparison: Comparison, dataset: Dataset) -> str:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["png"] = _png
    index = comparison.picture_index
    shown = to_pixels(dataset.test.images[index].unsqueeze(0))
    return environment.get_template("report.html.jinja").render(
        comparison=comparison,
        rows=_rows(comparison),
        batches=[f"time, batch {time.batch}" for time in comparison.groups[0].cost.times],
        inside=[_inside(group, dataset, index) for group in comparison.groups],
        examples={
            distortion.name: [
                distortion.at(shown, level)[0][0, 0].numpy() for level in distortion.levels
            ]
            for distortion in DISTORTIONS
        },
        test_images=dataset.test.images,
        charts=charts,
        sentences=sentences,
    )


def _png(figure: Figure) -> str:
    """Encode a figure as a PNG in base64."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=PICTURE_DPI, metadata={"Software": None})
    return base64.b64encode(buffer.getvalue()).decode()


def _inside(group: Group, dataset: Dataset, index: int) -> Inside:
    network = group.networks[0]
    record, module = read_checkpoint(Path(network.checkpoint))
    if record.weights.sha256 != network.weights_sha256:
        raise CheckpointError(
            f"the weights of {network.checkpoint} are not those that were compared; compare again"
        )
    image_HW = dataset.test.images[index]
    return Inside(group.name, first_layer(module), responses(module, image_HW, RESPONSES))


def _rows(comparison: Comparison) -> dict[str, list[Any]]:
    """The cells of the page's tables, row by row."""
    groups = comparison.groups
    return {
        "costs": list(_cost_rows(comparison)),
        "accuracy": [
            [
                group.name,
                str(group.size),
                over_seeds(group.accuracy),
                f"{percent(group.accuracy.low)} to {percent(group.accuracy.high)}",
                f"{percent(group.networks[0].interval.low)} to "
                f"{percent(group.networks[0].interval.high)}",
            ]
            for group in groups
        ],
        "pairs": [
            [
                f"{pair.first}, seed {one.first_seed} | {pair.second}, seed {one.second_seed}",
                f"{one.only_first:,}",
                f"{one.only_second:,}",
                p_text(one.p_value),
            ]
            for pair in comparison.pairs
            for one in pair.pairs
        ],
        "scores": [row for group in groups for row in _score_rows(group)],
        "checkpoints": [
            f"{network.checkpoint} (seed {network.seed})"
            for group in groups
            for network in group.networks
        ],
        "times": [
            [
                group.name,
                str(time.batch),
                f"{time.us_per_image:,.0f}",
                times(time.ratio),
                f"{time.interval.low:.2f} to {time.interval.high:.2f}",
            ]
            for group in groups
            for time in group.cost.times
        ],
    }


def _cost_rows(comparison: Comparison) -> Iterator[list[str]]:
    for one in comparison.alternatives:
        group, is_base = comparison.group(one.name), one.name == comparison.base
        counts = (
            (group.cost.parameters, one.parameters_ratio),
            (group.cost.multiply_adds, one.multiply_adds_ratio),
        )
        yield [
            one.name,
            over_seeds(group.accuracy),
            "base" if is_base else f"{points(one.difference)} ({points_interval(one.interval)})",
            "" if one.p_holm is None else p_text(one.p_holm),
            *(f"{n:,}" if is_base else f"{n:,} ({times(ratio)})" for n, ratio in counts),
            *(times(time.ratio) for time in group.cost.times),
        ]


def _score_rows(group: Group) -> Iterator[list[str]]:
    """Mean loss, Brier score and calibration error over seeds, before and after scaling."""
    found = [network.calibration for network in group.networks]
    for name, when in (("as trained", "before"), ("temperature-scaled", "after")):
        loss = [getattr(one, f"loss_{when}") for one in found]
        brier = [getattr(one, f"brier_{when}") for one in found]
        known = [value for value in brier if value is not None]
        yield [
            f"{group.name}, {name}",
            f"{statistics.fmean(loss):.4f}",
            f"{statistics.fmean(known):.4f}" if known else "not measured",
            percent(getattr(group, f"error_{when}").mean),
        ]
