"""The sections of the report that are made of images.

Shape suffixes: N images, H and W pixels.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from torch import Tensor

from training.compare import image_pictures, pictures, words
from training.compare.html_parts import panels, paragraph, picture, stack, subheading
from training.compare.layers import FirstLayer, Response
from training.compare.result import Comparison
from training.compare.robustness import DISTORTIONS, examples
from training.data import to_pixels


class Inside(NamedTuple):
    """What is drawn of a group's first network: its first layer, if that is a picture, and more."""

    group: str
    layer: FirstLayer | None
    responses: Sequence[Response]


def curve_parts(comparison: Comparison, test_images: Tensor) -> Iterator[str]:
    """How accuracy falls as the test images, uint8 [N, 28, 28], are spoilt."""
    part = "all" if comparison.distorted_images == comparison.test_images else "evenly taken"
    yield paragraph(
        "A lecture says that convolution and pooling make a CNN bear shifts that an MLP does not. "
        f"Here the test images ({comparison.distorted_images:,}, {part}) are spoilt more and more; "
        "lines are means over seeds, bands their standard deviation, the dotted line is 90%. "
        + words.taught_sentence(comparison)
    )
    pixels = to_pixels(test_images[comparison.picture_index].unsqueeze(0))
    found = {curve.distortion: curve for curve in comparison.curves}
    cells = []
    for distortion in DISTORTIONS:
        curve = found[distortion.name]
        images = [one[0, 0].numpy() for one in examples(distortion, pixels)]
        figure = pictures.curve_figure(curve, images)
        cell = [
            subheading(curve.distortion.capitalize()),
            paragraph(f"Images are {curve.how}."),
            paragraph(words.curve_sentence(curve), "found"),
            picture(figure, f"Accuracy under {curve.distortion}"),
        ]
        cells.append(stack(cell))
        if curve.distortion == "shift":
            figure = pictures.invariance_figure(curve)
            told = paragraph(words.invariance_sentence(curve), "found")
            drawn = picture(figure, "Share of images that keep their label when shifted")
            cells.append(stack([subheading("Shift: is the label the same?"), told, drawn]))
    yield panels(cells)


def inside_parts(comparison: Comparison, inside: Sequence[Inside]) -> Iterator[str]:
    """Weights and feature maps of each group's first network."""
    index = comparison.picture_index
    yield paragraph(
        "The weights of each first layer as pictures (red adds, blue subtracts): a convolution's "
        "kernels look for an edge or a stroke anywhere; a dense layer's unit has a weight for each "
        "of the 784 pixels: one pattern at one place. "
        f"Beside them, what test image {index} becomes; "
        "dark is active. A CNN's maps still show where something is; an MLP's units have no place. "
        "Of the first seed of each group."
    )
    for one in inside:
        yield subheading(one.group)
        if one.layer is None and not one.responses:
            yield paragraph("Its first layer is no picture: neither a 2D convolution nor dense.")
        charts = []
        if one.layer is not None:
            figure = image_pictures.filters_figure(one.layer, one.group)
            charts.append(picture(figure, f"First layer of {one.group}"))
        answers = [
            picture(
                image_pictures.response_figure(response, one.group),
                f"{one.group}: answers of {response.name}",
            )
            for response in one.responses
        ]
        yield panels([*charts, stack(answers)])


def differing_parts(comparison: Comparison, test_images: Tensor) -> Iterator[str]:
    """The test images, uint8 [N, 28, 28], on which groups differ."""
    for pair in comparison.pairs:
        if not pair.differing or comparison.base not in (pair.first, pair.second):
            continue
        yield subheading(f"{pair.first} and {pair.second}")
        yield paragraph(
            f"The groups differ on {pair.differing_images:,} test images in the share of their "
            f"networks that read them rightly; here are the {len(pair.differing)} with the "
            "greatest difference. Above each: what it is labelled, and what each seed read."
        )
        yield picture(
            image_pictures.differing_figure(pair, test_images),
            f"Images on which {pair.first} and {pair.second} differ",
        )
