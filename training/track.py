"""Figures for a viewer of somebody else's, beside the checkpoint's own record. Off by default.

The record is what counts: a viewer's files hold nothing that is not in it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from pydantic import BaseModel

TRACKERS = ("tensorboard",)
FOLDER = "tensorboard"


class TrackerError(ValueError):
    """The viewer asked for cannot be written for; says what to install."""


class Tracker(Protocol):
    """Takes figures as they come."""

    def epoch(self, number: int, figures: BaseModel) -> None:
        """The figures of an epoch, counted from 1."""

    def final(self, part: str, figures: BaseModel) -> None:
        """The finished network's figures on a part of the images, e.g. "test"."""


class _Nothing:
    def epoch(self, number: int, figures: BaseModel) -> None:
        pass

    def final(self, part: str, figures: BaseModel) -> None:
        pass


class _TensorBoard:
    def __init__(self, writer: Any) -> None:
        self._writer = writer
        self._last = 0

    def epoch(self, number: int, figures: BaseModel) -> None:
        self._last = number
        for name, value in numbers(figures).items():
            if name != "epoch":
                self._writer.add_scalar(name, value, number)

    def final(self, part: str, figures: BaseModel) -> None:
        for name, value in numbers(figures).items():
            self._writer.add_scalar(f"{part}/{name}", value, self._last)


@contextmanager
def tracker(name: str | None, folder: Path, config: BaseModel) -> Iterator[Tracker]:
    """A viewer's files in the checkpoint's folder, or nothing.

    Args:
        name: One of ``TRACKERS``; None: nothing is written.
        folder: The checkpoint's.
        config: The run's, written as text.

    Raises:
        TrackerError: The viewer's package is not installed.
    """
    if name is None:
        yield _Nothing()
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
        yield _TensorBoard(writer)


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
