"""The files of a roll-out: the desired state, the live state, and the report of each worker.

    bundles/NAME/rollout.json              the desired state, replaced atomically
    bundles/NAME/VERSION/                  a bundle; never changed once it is in place
    bundles/NAME/.rollout/record.json      the live state, the last refusal and the last events
    bundles/NAME/.rollout/workers/ID.json  what a worker has loaded and counted
    bundles/NAME/.rollout/workers/ID.lock  locked as long as the worker lives
    bundles/NAME/.rollout/samples/ID.npz   the worst disagreements that a worker saw

A desired state goes live in two steps. Each worker loads its versions and reports that it is
prepared; when all are, one of them records the state as live, and all begin to serve it. A process
that reads several files and then writes one must hold ``RolloutFolder.lock``; the operating system
releases the lock of a process that is killed.
"""

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from export.bundle.manifest import NAME_PATTERN, BundleError

DESIRED_NAME, STATE_FOLDER = "rollout.json", ".rollout"
SCHEMA_VERSION = 1
EVENTS_KEPT = 100


class RolloutError(ValueError):
    """A roll-out's file or command is invalid; the message says what came and what to do."""


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Candidate(_Strict):
    """A version beside the stable one, with its share of requests (canary) or copies (shadow)."""

    version: str = Field(pattern=NAME_PATTERN)
    share: float = Field(gt=0, le=1)


class Limits(_Strict):
    """How much a candidate may differ from the stable version before it is rolled back.

    Attributes:
        max_disagreement: Share of shadow answers that may disagree with the stable version's, for
            versions whose weights differ.
        max_difference: Largest difference that is not a disagreement between such answers, relative
            to the output's largest golden answer; None compares the labels of a classifier.
        max_p99_ratio: Largest ratio to the stable version's times, of both the 99th percentile of a
            canary's requests and its median time in the engine.
        watch_s: Seconds after a promotion in which a wrong golden answer, engine errors or crashing
            workers bring the previous version back.
    """

    max_disagreement: float = Field(0.02, gt=0, le=0.5)
    max_difference: float | None = Field(None, gt=0)
    max_p99_ratio: float = Field(2.0, ge=1)
    watch_s: float = Field(60, ge=0)


class DesiredState(_Strict):
    """Which versions a model should have, and in which roles.

    Attributes:
        generation: Counts the changes; each state has a larger one than those before.
        previous: The version that ``rollback`` returns to.
        allow_contract_change: Whether versions may have other tensors than the stable one.
        reason: Why this state was requested, in words.
        changed_s: When it was requested, as Unix time.
    """

    schema_version: int = SCHEMA_VERSION
    generation: int = Field(ge=1)
    stable: str = Field(pattern=NAME_PATTERN)
    previous: str | None = Field(None, pattern=NAME_PATTERN)
    canary: Candidate | None = None
    shadow: Candidate | None = None
    limits: Limits = Limits()
    allow_contract_change: bool = False
    reason: str
    changed_s: float

    @model_validator(mode="after")
    def _has_one_role_for_each_version(self) -> Self:
        if len(self.versions) < 1 + sum(c is not None for c in (self.canary, self.shadow)):
            raise ValueError(
                f"a version has two of the roles stable, canary and shadow: {self.versions}; "
                "expected one role for each"
            )
        return self

    @property
    def versions(self) -> set[str]:
        """Every version of the state: stable, canary and shadow."""
        candidates = {found.version for found in (self.canary, self.shadow) if found is not None}
        return {self.stable} | candidates

    def successor(self, reason: str, **changes: Any) -> "DesiredState":
        """Return the next generation of this state, with these changes, validated."""
        fields = self.model_dump() | {
            "generation": self.generation + 1,
            "reason": reason,
            "changed_s": time.time(),
        }
        try:
            return DesiredState.model_validate(fields | changes)
        except ValidationError as error:
            problems = "; ".join(problem["msg"] for problem in error.errors())
            raise RolloutError(problems.removeprefix("Value error, ")) from None


class Refusal(_Strict):
    """Why a generation did not go live."""

    generation: int
    reason: str


class Event(_Strict):
    """One event of a roll-out; ``at_s`` is Unix time."""

    at_s: float
    generation: int
    event: str
    reason: str


class Record(_Strict):
    """The decisions about a model's roll-outs.

    Attributes:
        live: The state that workers serve, or begin to serve when they have loaded it.
        live_s: When that state went live, as Unix time.
        refused: The last generation that did not go live.
        deaths: The number of workers that ended unexpectedly, by generation.
        verified: SHA-256 of the manifests of bundles that a child process has verified.
        events: The last events, the newest at the end.
    """

    live: DesiredState
    live_s: float
    refused: Refusal | None = None
    deaths: dict[int, int] = Field(default_factory=dict)
    verified: tuple[str, ...] = ()
    events: tuple[Event, ...] = ()

    def with_event(self, generation: int, event: str, reason: str, **changes: Any) -> "Record":
        """Return a copy with these changes and one more event."""
        new = Event(at_s=time.time(), generation=generation, event=event, reason=reason)
        events = (*self.events, new)[-EVENTS_KEPT:]
        return self.model_copy(update=changes | {"events": events})

    def is_refused(self, generation: int) -> bool:
        """Whether this generation was refused."""
        return self.refused is not None and self.refused.generation == generation


class VersionFigures(_Strict):
    """A worker's counts for one version in one generation.

    Attributes:
        requests: Answered requests.
        engine_errors: Requests that its engine could not compute but the stable version could.
        durations: Requests by their time, counted in the buckets of ``evidence.BUCKETS_S``.
        compute: Batches' times in the engine, counted likewise.
        compared: Shadow answers that were compared; ``disagreed`` of them were too different.
        skipped: Requests whose shadow copy was left out, because the engine was not idle.
        worst: The largest difference of a shadow answer; ``worst_words`` describes it.
    """

    requests: int = 0
    engine_errors: int = 0
    durations: tuple[int, ...] = ()
    compute: tuple[int, ...] = ()
    compared: int = 0
    disagreed: int = 0
    skipped: int = 0
    worst: float = 0.0
    worst_words: str = ""
    same_weights: bool = False


class WorkerReport(_Strict):
    """The state of one worker.

    Attributes:
        service: The process id of its parent, which runs ``workers`` workers.
        prepared: The newest generation that the worker has loaded.
        active: The generation that it serves.
        failed: The generation that it could not load; ``failure`` is the reason.
        figures: The counts by version since ``active`` went live in this worker.
    """

    pid: int
    service: int
    workers: int
    prepared: int = 0
    active: int = 0
    failed: int = 0
    failure: str = ""
    figures: dict[str, VersionFigures] = Field(default_factory=dict)


_Model = TypeVar("_Model", bound=BaseModel)


class RolloutFolder:
    """The folder of one model and its versions, ``bundles/NAME``."""

    def __init__(self, folder: Path) -> None:
        """Use this folder, without reading or writing anything yet."""
        self.folder, self.name = folder, folder.name
        self.desired_path = folder / DESIRED_NAME
        self.state = folder / STATE_FOLDER
        self.record_path, self.workers = self.state / "record.json", self.state / "workers"
        self.samples = self.state / "samples"

    def bundle(self, version: str) -> Path:
        """Return the path of a version's bundle."""
        return self.folder / version

    def read_desired(self) -> DesiredState:
        """Read the desired state.

        Raises:
            RolloutError: The file is missing or cannot be read.
        """
        try:
            return _read(self.desired_path, DesiredState)
        except FileNotFoundError:
            raise RolloutError(
                f"{self.desired_path} is missing; begin with: python -m service.rollout stage "
                f"{self.name} BUNDLE"
            ) from None

    def write_desired(self, state: DesiredState) -> None:
        """Replace the desired state; the caller holds the lock."""
        _replace(self.desired_path, state)

    def read_record(self) -> Record | None:
        """Read the decisions; None if no service has started yet."""
        try:
            return _read(self.record_path, Record)
        except FileNotFoundError:
            return None

    def write_record(self, record: Record) -> None:
        """Replace the decisions; the caller holds the lock."""
        _replace(self.record_path, record)

    def starting_state(self) -> DesiredState:
        """Return the state that a service starts with: the live one, else the desired one."""
        record = self.read_record()
        return self.read_desired() if record is None else record.live

    @contextmanager
    def lock(self, name: str = "lock") -> Iterator[None]:
        """Lock out other processes for the duration of a ``with`` block."""
        self.workers.mkdir(parents=True, exist_ok=True)
        with (self.state / name).open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def live_reports(self) -> dict[str, WorkerReport]:
        """Return the reports of live workers, by id."""
        found = {}
        for path in self.workers.glob("*.json"):
            if _is_locked(path.with_suffix(".lock")):
                try:
                    found[path.stem] = _read(path, WorkerReport)
                except FileNotFoundError:
                    continue
        return found

    def take_dead_reports(self) -> list[WorkerReport]:
        """Remove and return the reports of dead workers; the caller holds the lock.

        A worker that stops normally removes its own report.
        """
        dead = []
        for path in self.workers.glob("*.json"):
            if not _is_locked(path.with_suffix(".lock")):
                with suppress(FileNotFoundError, RolloutError):
                    dead.append(_read(path, WorkerReport))
                path.unlink(missing_ok=True)
                path.with_suffix(".lock").unlink(missing_ok=True)
        return dead

    def remove_samples(self, pid: int) -> None:
        """Remove the samples of earlier shadows: a worker's own, and those of dead workers."""
        live = set(self.live_reports()) - {str(pid)}
        for path in self.samples.glob("*.npz"):
            if path.stem not in live:
                path.unlink(missing_ok=True)


class ReportFile:
    """A worker's own report, with a lock that shows that the worker is alive."""

    def __init__(self, folder: RolloutFolder, report: WorkerReport) -> None:
        """Write the report, and hold its lock until ``remove`` or the end of the process."""
        folder.workers.mkdir(parents=True, exist_ok=True)
        self._path = folder.workers / f"{report.pid}.json"
        self._samples_path = folder.samples / f"{report.pid}.npz"
        self._lock = self._path.with_suffix(".lock").open("w")
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        self.report = report
        _replace(self._path, report)

    def write(self, report: WorkerReport) -> None:
        """Replace the report, unless it is unchanged."""
        if report != self.report:
            self.report = report
            _replace(self._path, report)

    def write_samples(self, content: bytes) -> None:
        """Replace this worker's samples; ``content`` is an .npz file."""
        self._samples_path.parent.mkdir(exist_ok=True)
        replace_file(self._samples_path, content)

    def remove(self) -> None:
        """Remove the report, because this worker stops normally."""
        self._path.unlink(missing_ok=True)
        self._path.with_suffix(".lock").unlink(missing_ok=True)
        self._lock.close()


def find_rollouts(bundles: Path) -> list[RolloutFolder]:
    """Return the folders directly below ``bundles`` that contain versions, sorted by name."""
    return [RolloutFolder(path.parent) for path in sorted(bundles.glob(f"[!.]*/{DESIRED_NAME}"))]


def _is_locked(path: Path) -> bool:
    """Whether a process holds the lock on a file."""
    try:
        with path.open("r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def _read(path: Path, kind: type[_Model]) -> _Model:
    """Read a JSON file of a roll-out.

    Raises:
        FileNotFoundError: There is no such file.
        RolloutError: The file has another schema version, or is not valid.
    """
    content = path.read_bytes()
    try:
        fields = json.loads(content)
        version = fields.get("schema_version", SCHEMA_VERSION) if isinstance(fields, dict) else None
        if version != SCHEMA_VERSION:
            raise RolloutError(
                f"{path} has schema version {version}, this code reads {SCHEMA_VERSION}"
            )
        return kind.model_validate(fields)
    except (ValidationError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise RolloutError(f"{path} cannot be read: {error}") from error


def replace_file(path: Path, content: bytes) -> None:
    """Write a file atomically: readers see either the old or the new content.

    Raises:
        BundleError: The file cannot be written.
    """
    staging = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with staging.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        staging.replace(path)
    except OSError as error:
        raise BundleError(f"{path} cannot be written: {error}") from error


def _replace(path: Path, content: BaseModel) -> None:
    replace_file(path, (content.model_dump_json(indent=2) + "\n").encode())
