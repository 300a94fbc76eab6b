"""Write a run's metrics for TensorBoard, in addition to the checkpoint's record. Off by default.

TensorBoard's files hold nothing that is not in the record.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import BaseModel

TRACKERS = ("tensorboard",)
FOLDER = "tensorboard"


class TrackerError(ValueError):
    """TensorBoard's package is not installed; the message has the command that installs it."""


class Tracker:
    """Writes metrics as they become known; without a writer, it writes nothing."""

    def __init__(self, writer: Any | None = None) -> None:
        """Take a ``SummaryWriter``, or None."""
        self._writer = writer
        self._last = 0

    def epoch(self, number: int, figures: BaseModel) -> None:
        """Write the metrics of an epoch, whose number counts from 1."""
        self._last = number
        self._write({name: v for name, v in numbers(figures).items() if name != "epoch"})

    def final(self, part: str, figures: BaseModel) -> None:
        """Write the finished network's metrics on a part of the images, e.g. "test"."""
        self._write(numbers(figures, f"{part}/"))

    def _write(self, values: dict[str, float]) -> None:
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(name, value, self._last)


@contextmanager
def tracker(name: str | None, folder: Path, config: BaseModel) -> Iterator[Tracker]:
    """Open a tracker that writes to the checkpoint's folder, or one that writes nothing.

    Args:
        name: One of ``TRACKERS``, or None to write nothing.
        folder: The checkpoint's folder.
        config: The run's config, which is written as text.

    Raises:
        TrackerError: TensorBoard's package is not installed.
    """
    if name is None:
        yield Tracker()
        return
    try:
        # Not at the top: TensorBoard is an optional extra, and the import takes a second.
        from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415
    except ImportError as error:
        raise TrackerError(
            f"--track {name} needs the package {name} ({error}): "
            "pip install -c constraints.txt -e '.[track]'"
        ) from error
    with SummaryWriter(log_dir=str(folder / FOLDER)) as writer:
        writer.add_text("config", f"```json\n{config.model_dump_json(indent=2)}\n```")
        yield Tracker(writer)


def numbers(figures: BaseModel, prefix: str = "") -> dict[str, float]:
    """The scalar metrics by name, e.g. {"accuracy": 0.99, "first/loss": 0.1}, without lists."""
    found: dict[str, float] = {}
    for name in type(figures).model_fields:
        value = getattr(figures, name)
        if isinstance(value, BaseModel):
            found |= numbers(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found[prefix + name] = float(value)
    return found
