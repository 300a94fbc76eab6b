"""A comparison as two files: ``comparison.json`` and ``comparison.html``."""

from pathlib import Path

from training.atomic import write_atomically
from training.checkpoint import CheckpointError, read_checkpoint
from training.compare.group_result import Group
from training.compare.layers import first_layer, responses
from training.compare.page import render
from training.compare.page_images import Inside
from training.compare.result import Comparison
from training.data import Dataset

PAGE_NAME, JSON_NAME = "comparison.html", "comparison.json"
RESPONSES = 2  # layers whose answers to an image are drawn


def write_report(comparison: Comparison, dataset: Dataset, folder: Path) -> Path:
    """Write both files into the folder, which is made if need be; returns the page's path.

    Args:
        comparison: What was measured. Its first checkpoint of each group is read again, for the
            pictures of the weights.
        dataset: The images that it speaks of.
        folder: Where to write.

    Raises:
        CheckpointError: A checkpoint is gone or is not the one that was measured.
        ValueError: The data set is another one.
    """
    if dataset.sha256 != comparison.data_sha256:
        raise ValueError(
            f"the comparison was measured on {comparison.data_name} "
            f"({comparison.data_sha256}), the images given are {dataset.name} ({dataset.sha256})"
        )
    folder.mkdir(parents=True, exist_ok=True)
    inside = [_inside(group, dataset, comparison.picture_index) for group in comparison.groups]
    page = render(comparison, dataset.test.images, inside)
    write_atomically(folder / JSON_NAME, (comparison.model_dump_json(indent=2) + "\n").encode())
    write_atomically(folder / PAGE_NAME, page.encode())
    return folder / PAGE_NAME


def _inside(group: Group, dataset: Dataset, index: int) -> Inside:
    network = group.networks[0]
    record, module = read_checkpoint(Path(network.checkpoint))
    if record.weights.sha256 != network.weights_sha256:
        raise CheckpointError(
            f"{network.checkpoint} holds other weights than were compared; compare anew"
        )
    image_HW = dataset.test.images[index]
    return Inside(group.name, first_layer(module), responses(module, image_HW, RESPONSES))
