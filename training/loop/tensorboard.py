"""Figures for TensorBoard, beside the checkpoint's own record. Off by default.

The record is what counts: TensorBoard's files hold nothing that is not in it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import BaseModel

TRACKERS = ("tensorboard",)
FOLDER = "tensorboard"


class TrackerError(ValueError):
    """TensorBoard's package is not installed; the message has the line that installs it."""


class Tracker:
    """Writes figures as they come; nothing without a writer."""

    def __init__(self, writer: Any | None = None) -> None:
        """Take a ``SummaryWriter``, or None."""
        self._writer = writer
        self._last = 0

    def epoch(self, number: int, figures: BaseModel) -> None:
        """Write the figures of an epoch, counted from 1."""
        self._last = number
        self._write({name: v for name, v in numbers(figures).items() if name != "epoch"})

    def final(self, part: str, figures: BaseModel) -> None:
        """Write the finished network's figures on a part of the images, e.g. "test"."""
        self._write(numbers(figures, f"{part}/"))

    def _write(self, values: dict[str, float]) -> None:
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(name, value, self._last)


@contextmanager
def tracker(name: str | None, folder: Path, config: BaseModel) -> Iterator[Tracker]:
    """A tracker that writes to the checkpoint's folder, or to nowhere.

    Args:
        name: One of ``TRACKERS``; None: nothing is written.
        folder: The checkpoint's.
        config: The run's, written as text.

    Raises:
        TrackerError: The viewer's package is not installed.
    """
    if name is None:
        yield Tracker()
        return
    try:
        # Not at the top: it is an extra, and takes a second.
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
    """The single numbers among figures, e.g. {"accuracy": 0.99, "first/loss": 0.1}; no lists."""
    found: dict[str, float] = {}
    for name in type(figures).model_fields:
        value = getattr(figures, name)
        if isinstance(value, BaseModel):
            found |= numbers(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found[prefix + name] = float(value)
    return found
