"""Replace a file in one step: a reader sees the old content or the new, never a part of it."""

import os
from pathlib import Path


def write_atomically(path: Path, content: bytes) -> None:
    """Write ``content`` beside ``path``, flush it to the disk, and rename it to ``path``.

    The name of the temporary file contains the process id, so processes that write the same path
    at the same time do not disturb each other: the last rename wins.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
