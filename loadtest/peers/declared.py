"""The peers: servers that say in a comment of their own file how to install, start and ask them.

The comment is Python's inline script metadata (PEP 723): its ``dependencies``, each pinned, are
what the peer's environment holds, and each of its ``[[tool.peer]]`` tables is one server, so that a
framework may be shown with several settings. A new peer is a new file; nothing lists them.

A file is ``NAME.py`` or, where the importing of it needs what only its own environment has,
``NAME/__main__.py``.
"""

import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from loadtest.errors import LoadTestError
from loadtest.generator.payloads import PeerForm

PEERS = Path(__file__).with_name("servers")
_BLOCK = re.compile(r"(?m)^# /// script$\s(?P<content>(^#(| .*)$\s)+)^# ///$")
# Names of forms that are accepted for one more release.
EARLIER = {"pixels": "tensors", "open-inference": "infer/binary"}
_PINNED = re.compile(r"[\w.-]+(\[[\w,.-]+\])?==[\w.!+-]+")


class PeerError(LoadTestError):
    """A peer's file does not say what it must, or there is no such peer."""


class Peer(BaseModel):
    """A server of the same model, in a process and an environment of its own.

    Attributes:
        file: It lies there.
        requirements: What its environment holds, pinned.
        name: In the table.
        settings: In words, for the table.
        form: How it is asked: see ``generator.payloads``.
        samples: In a request.
        path: Of its URL, where it is asked.
        command: Arguments of its environment's Python; ``{port}`` of the loopback interface,
            ``{file}``, and ``{scratch}``, a folder of its own that is removed afterwards, are
            filled in. It runs in the repository's root.
        environment: Variables, filled in alike; BUNDLE, the bundle's folder, is always set.
        documentation: Whose form it follows.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    file: Path
    requirements: tuple[str, ...]
    name: str = Field(min_length=1)
    settings: str
    form: PeerForm
    samples: int = Field(1, ge=1)
    path: str = Field(pattern="^/")
    command: tuple[str, ...] = Field(min_length=1)
    environment: dict[str, str] = {}
    documentation: str = Field(pattern="^https?://")

    @property
    def home(self) -> str:
        """The name of its environment's folder; servers of one file share it."""
        return self.file.parent.name if self.file.stem == "__main__" else self.file.stem

    @property
    def versions(self) -> str:
        """What is pinned, in words."""
        return ", ".join(text.replace("==", " ") for text in self.requirements)


def declared(folder: Path = PEERS, words: Sequence[str] = ()) -> list[Peer]:
    """The peers whose files lie in a folder.

    Args:
        folder: Of the files; those without the comment are no peers.
        words: Only peers whose names hold one of them, in any case; all without any.

    Raises:
        PeerError: A comment that is not right, or no peer is left.
    """
    files = sorted([*folder.glob("*.py"), *folder.glob("*/__main__.py")])
    peers = [peer for file in files for peer in _read(file)]
    names = [peer.name for peer in peers]
    if twice := {name for name in names if names.count(name) > 1}:
        raise PeerError(f"{folder}: several peers bear the name {', '.join(sorted(twice))}")
    lowered = [word.lower() for word in words]
    kept = [p for p in peers if not words or any(word in p.name.lower() for word in lowered)]
    if not kept:
        known = ", ".join(f'"{name}"' for name in names) or "none"
        raise PeerError(f"{folder}: no peer's name holds one of {list(words)}; there are: {known}")
    return kept


def _read(file: Path) -> list[Peer]:
    found = _BLOCK.search(file.read_text())
    if found is None:
        return []
    lines = found["content"].splitlines()
    try:
        content: dict[str, Any] = tomllib.loads("\n".join(line[2:] for line in lines))
        requirements = content["dependencies"]
        tables = content["tool"]["peer"]
        loose = [text for text in requirements if not _PINNED.fullmatch(text)]
        if loose:
            raise PeerError(f"{file}: pin the dependencies {loose} by ==")
        given = {"file": file.resolve(), "requirements": requirements}
        forms = ({"form": EARLIER.get(table["form"], table["form"])} for table in tables)
        return [
            Peer.model_validate({**table, **form, **given})
            for table, form in zip(tables, forms, strict=True)
        ]
    except (KeyError, TypeError, tomllib.TOMLDecodeError, ValidationError) as error:
        raise PeerError(f"{file}: its script comment is not a peer's: {error!r}") from error
