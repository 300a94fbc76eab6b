"""The files of a roll-out: which versions are wanted, which are live, and what each worker reports.

    bundles/NAME/rollout.json              the desired state, replaced atomically
    bundles/NAME/VERSION/                  a bundle; never changed once it is there
    bundles/NAME/.rollout/record.json      the live state, the last refusal and the last events
    bundles/NAME/.rollout/workers/ID.json  what a worker has loaded and counted
    bundles/NAME/.rollout/workers/ID.lock  locked as long as the worker lives
    bundles/NAME/.rollout/samples/ID.npz   the worst disagreements that a worker saw

A desired state goes live in two steps. Each worker loads its versions and reports that it is
prepared; when all are, one of them records the state as live, and all begin to serve it. Whoever
reads several files and then writes one holds ``RolloutFolder.lock``; the system releases the lock
of a process that is killed.
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
    """A roll-out's files or a command cannot be used; says what came and what to do."""


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Candidate(_Strict):
    """A version beside the stable one: of a canary the share of requests, of a shadow of copies."""

    version: str = Field(pattern=NAME_PATTERN)
    share: float = Field(gt=0, le=1)


class Limits(_Strict):
    """What a candidate may differ by before it is taken back.

    Attributes:
        max_disagreement: Share of shadow answers that may disagree with the stable version's, for
            versions whose weights differ.
        max_difference: Largest difference of such answers that is no disagreement, relative to the
            largest golden answer of their channel; None compares the labels of a classifier.
        max_p99_ratio: The canary's 99th percentile of a request's time, and its median time in the
            engine, over the stable version's.
        watch_s: Seconds after a promotion in which a wrong golden answer, engine errors or dying
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
        allow_contract_change: Versions may have other tensors than the stable one.
        reason: Why this state was asked for, in words.
        changed_s: When, as Unix time.
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
                f"a version has two of the roles stable, canary and shadow: {self.versions}"
            )
        return self

    @property
    def versions(self) -> set[str]:
        """Every version that is loaded."""
        candidates = {found.version for found in (self.canary, self.shadow) if found is not None}
        return {self.stable} | candidates

    def successor(self, reason: str, **changes: Any) -> "DesiredState":
        """Return the next generation with these changes, validated."""
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
    """One thing that happened; ``at_s`` is Unix time."""

    at_s: float
    generation: int
    event: str
    reason: str


class Record(_Strict):
    """What was decided of a model's roll-outs.

    Attributes:
        live: The state that workers serve, or begin to serve when they have loaded it.
        live_s: Since when, as Unix time.
        refused: The last generation that did not go live.
        deaths: Workers that ended unexpectedly, by generation.
        verified: SHA-256 of the manifests whose bundles a process of its own verified.
        events: The last ones, the newest at the end.
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
    """What a worker counted of one version in one generation.

    Attributes:
        requests: Answered requests.
        engine_errors: Requests that its engine could not compute, and the stable version could.
        durations: Requests by their time, counted in the buckets of ``evidence.BUCKETS_S``.
        compute: Batches' times in the engine, counted likewise.
        compared: Shadow answers that were compared; ``disagreed`` of them were too different.
        skipped: Requests whose shadow copy was left out, because the engine was not idle.
        worst: The largest difference of a shadow answer, and ``worst_words`` what differed.
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
    """What one worker does.

    Attributes:
        service: The process that started it; ``workers`` is how many that one runs.
        prepared: The newest generation that it has loaded.
        active: The generation that it serves.
        failed: The generation that it could not load, and ``failure`` why.
        figures: By version, counted since ``active`` began.
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
        """Take the folder; nothing is read or written."""
        self.folder, self.name = folder, folder.name
        self.desired_path = folder / DESIRED_NAME
        self.state = folder / STATE_FOLDER
        self.record_path, self.workers = self.state / "record.json", self.state / "workers"
        self.samples = self.state / "samples"

    def bundle(self, version: str) -> Path:
        """Return where a version's bundle lies."""
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
        """Read what was decided; None before the first service started."""
        try:
            return _read(self.record_path, Record)
        except FileNotFoundError:
            return None

    def write_record(self, record: Record) -> None:
        """Replace what was decided; the caller holds the lock."""
        _replace(self.record_path, record)

    def starting_state(self) -> DesiredState:
        """Return the state that a service begins with: the live one, or the desired one."""
        record = self.read_record()
        return self.read_desired() if record is None else record.live

    @contextmanager
    def lock(self, name: str = "lock") -> Iterator[None]:
        """Keep other processes out, for the time of a block."""
        self.workers.mkdir(parents=True, exist_ok=True)
        with (self.state / name).open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def live_reports(self) -> dict[str, WorkerReport]:
        """Return the reports of the workers that live, by id."""
        found = {}
        for path in self.workers.glob("*.json"):
            if _is_locked(path.with_suffix(".lock")):
                try:
                    found[path.stem] = _read(path, WorkerReport)
                except FileNotFoundError:
                    continue
        return found

    def take_dead_reports(self) -> list[WorkerReport]:
        """Remove the reports of workers that ended without removing them; the caller has the lock.

        A worker that stops as it should removes its report itself.
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
    """A worker's own report: its lock says that the worker lives."""

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
        """Replace the report, unless it is the same."""
        if report != self.report:
            self.report = report
            _replace(self._path, report)

    def write_samples(self, content: bytes) -> None:
        """Replace the samples of this worker, an .npz."""
        self._samples_path.parent.mkdir(exist_ok=True)
        replace_file(self._samples_path, content)

    def remove(self) -> None:
        """Remove the report: this worker stops as it should."""
        self._path.unlink(missing_ok=True)
        self._path.with_suffix(".lock").unlink(missing_ok=True)
        self._lock.close()


def find_rollouts(bundles: Path) -> list[RolloutFolder]:
    """Return the folders directly below this one that hold versions, by name."""
    return [RolloutFolder(path.parent) for path in sorted(bundles.glob(f"[!.]*/{DESIRED_NAME}"))]


def _is_locked(path: Path) -> bool:
    """Whether a process holds the lock."""
    try:
        with path.open("r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def _read(path: Path, kind: type[_Model]) -> _Model:
    """Read a file of this room.

    Raises:
        FileNotFoundError: There is none.
        RolloutError: It is of another schema, or not such a file.
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
    """Write a file as a whole: readers see the old content or the new one.

    Raises:
        BundleError: It cannot be written.
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
