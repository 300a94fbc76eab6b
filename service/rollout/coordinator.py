"""Follows the desired states of this worker's models: loads versions, reports, and goes live.

The files are polled ten times a second. Loading, verifying and locking run in a separate thread, so
that the event loop keeps answering requests.
"""

import asyncio
import ctypes
import hashlib
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from export.bundle.manifest import BundleError
from export.bundle.store import MANIFEST_NAME
from service.models.loader import load_version
from service.models.registry import ModelRegistry, ModelVersions, ServedModel
from service.observability.metrics import Metrics
from service.rollout.observer import VersionObserver
from service.settings import ROOT, Settings
from service.versions.decisions import (
    Decision,
    Fault,
    decide,
    find_contract_changes,
    is_pending,
    is_watched,
)
from service.versions.state import (
    DesiredState,
    Record,
    ReportFile,
    RolloutError,
    RolloutFolder,
    WorkerReport,
    find_rollouts,
)

logger = logging.getLogger("bentoml.service")

POLL_S = 0.1
# Seconds between reports and decisions while there is a candidate or a recent promotion.
CONSULT_S = 1.0
FIND_S = 1.0  # between searches for new roll-outs of served models
VERIFY_TIMEOUT_S = 600
TRIM_AFTER_S = 1.0  # requests that began with an old version have been answered by then
TURN_S = 0.0002  # the switch interval of Python's threads during a load

_Result = TypeVar("_Result")
_RunInThread = Callable[..., Coroutine[Any, Any, Any]]


@dataclass(frozen=True)
class _Loaded:
    """A desired state and its loaded versions."""

    state: DesiredState
    versions: ModelVersions
    observer: VersionObserver


class RolloutCoordinator:
    """Manages all roll-outs of this worker, in its event loop."""

    def __init__(
        self,
        models: ModelRegistry,
        settings: Settings,
        metrics: Metrics,
        on_change: Callable[[], None],
    ) -> None:
        """Start without roll-outs; ``on_change`` is called after versions were replaced."""
        self._models, self._settings, self._metrics = models, settings, metrics
        self._route = on_change
        self._rollouts: dict[str, ModelRollout] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="rollout")
        self._task: asyncio.Task[None] | None = None
        self._trimming: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start to follow the desired states; called in the event loop."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    def report_fault(self, model: ServedModel, failures: list[str]) -> None:
        """Take back a version that failed its golden samples, if it is a candidate or new."""
        rollout = self._rollouts.get(model.manifest.name)
        if rollout is not None:
            rollout.faults.append(Fault(model.manifest.version, "; ".join(failures)))

    def close(self) -> None:
        """Stop following, and remove this worker's reports, since it ends normally."""
        for task in (self._task, self._trimming):
            if task is not None:
                task.cancel()
        self._thread.shutdown(wait=False, cancel_futures=True)
        for rollout in self._rollouts.values():
            rollout.close()

    async def _run(self) -> None:
        next_find_s = 0.0
        while True:
            if time.monotonic() >= next_find_s:
                self._find()
                next_find_s = time.monotonic() + FIND_S
            for rollout in self._rollouts.values():
                try:
                    await rollout.follow(self._run_in_thread)
                except (RolloutError, BundleError) as error:
                    logger.error(
                        "the roll-out of %s cannot be followed at present: %s", rollout.name, error
                    )
                    await asyncio.sleep(CONSULT_S)
                except Exception:  # an error such as a full disk must not end the loop
                    logger.exception(
                        "the roll-out of %s cannot be followed at present", rollout.name
                    )
                    await asyncio.sleep(CONSULT_S)
            await asyncio.sleep(POLL_S)

    def _change(self) -> None:
        """Route requests to the new versions, and later return the old versions' memory."""
        self._route()
        self._trimming = asyncio.get_running_loop().create_task(self._trim())

    async def _trim(self) -> None:
        await asyncio.sleep(TRIM_AFTER_S)
        await self._run_in_thread(return_memory)

    async def _run_in_thread(self, call: Callable[..., _Result], *arguments: Any) -> _Result:
        return await asyncio.get_running_loop().run_in_executor(self._thread, call, *arguments)

    def _find(self) -> None:
        """Find new roll-outs of served models, and start to follow them."""
        served = {model.manifest.name for model in self._models.all()}
        for folder in find_rollouts(self._settings.bundles):
            if folder.name in self._rollouts or folder.name not in served:
                continue
            if not os.access(folder.folder, os.W_OK):
                logger.warning(
                    "%s is not writable: %s stays at version %s until the service restarts",
                    folder.folder,
                    folder.name,
                    self._models.get(folder.name).manifest.version,
                )
                continue
            self._rollouts[folder.name] = ModelRollout(
                folder, self._models, self._settings, self._metrics, self._change
            )


class ModelRollout:
    """The roll-outs of one model in this worker.

    Attributes:
        name: The model's name.
        faults: The faults found in its versions since the last decision.
    """

    def __init__(
        self,
        folder: RolloutFolder,
        models: ModelRegistry,
        settings: Settings,
        metrics: Metrics,
        on_change: Callable[[], None],
    ) -> None:
        """Write a first report, which shows that this worker is running."""
        self.name, self._folder = folder.name, folder
        self._models, self._settings, self._metrics = models, settings, metrics
        self._on_change = on_change
        report = WorkerReport(pid=os.getpid(), service=os.getppid(), workers=settings.workers)
        self._file = ReportFile(folder, report)
        self._report = report
        self._active: _Loaded | None = None
        self._prepared: _Loaded | None = None
        self._plan: Decision | None = None
        self._seen: tuple[object, ...] = ()
        self._next_s = 0.0
        self.faults: list[Fault] = []

    def close(self) -> None:
        """Remove this worker's report; before that, take back the versions with new faults.

        A worker exits because of such a fault, possibly before ``follow`` is called again.
        """
        try:
            if self.faults:
                self._consult()
        except (RolloutError, BundleError) as error:
            logger.error("%s: its faults cannot be reported: %s", self.name, error)
        self._file.remove()

    async def follow(self, run_in_thread: _RunInThread) -> None:
        """Report, decide, load and go live, as far as each is due; called in the event loop."""
        if not self._is_due():
            return
        self._update_report()
        await run_in_thread(self._consult)
        if self._go_live():
            await run_in_thread(self._consult)
        # Load the live state first: a newly started worker has to serve what the others serve.
        for state in self._states_to_load():
            await run_in_thread(self._load, state)
            await run_in_thread(self._consult)
            if self._go_live():
                await run_in_thread(self._consult)

    def _is_due(self) -> bool:
        """Whether a file changed, something is pending, or it is time to report and judge."""
        seen = tuple(_stamp(path) for path in (self._folder.desired_path, self._folder.record_path))
        is_changed, self._seen = seen != self._seen, seen
        if is_changed or self._plan is None or self.faults:
            return True
        desired, record = self._plan.desired, self._plan.record
        if is_pending(desired, record) or record.live.generation != self._report.active:
            return True
        if not (record.live.canary or record.live.shadow or is_watched(record, time.time())):
            return False
        is_due = time.monotonic() >= self._next_s
        if is_due:
            self._next_s = time.monotonic() + CONSULT_S
        return is_due

    def _update_report(self) -> None:
        if self._active is None:
            return
        observer = self._active.observer
        self._report = self._report.model_copy(update={"figures": observer.snapshot()})
        if content := observer.samples.take_changes():
            self._file.write_samples(content)

    def _consult(self) -> None:
        """Under the lock, write this worker's report; decide what goes live or is rolled back."""
        folder = self._folder
        faults = list(self.faults)
        with folder.lock():
            self._file.write(self._report)
            desired = folder.read_desired()
            record = folder.read_record()
            if record is None:
                record = Record(live=desired, live_s=time.time())
                folder.write_record(record)
            reports = list(folder.live_reports().values())
            dead = folder.take_dead_reports()
            plan = decide(desired, record, reports, dead, faults, time.time())
            if plan.record != record:
                folder.write_record(plan.record)
            if plan.desired != desired:
                folder.write_desired(plan.desired)
        del self.faults[: len(faults)]
        for role in plan.taken_back:
            self._metrics.record_return(self.name, role)
            logger.error("%s: %s", self.name, plan.desired.reason)
        self._plan = plan
        self._seen = ()  # the files may have changed between stat and lock

    def _states_to_load(self) -> list[DesiredState]:
        if self._plan is None:
            return []
        desired, record = self._plan.desired, self._plan.record
        wanted = []
        if record.live.generation != self._report.active:
            wanted.append(record.live)
        if is_pending(desired, record):
            wanted.append(desired)
        done = {self._report.failed, self._report.prepared}
        return [state for state in wanted if state.generation not in done]

    def _load(self, state: DesiredState) -> None:
        """Load the versions of a state, and report that they are prepared or why loading failed.

        The switch interval of Python's threads is 5 ms by default, longer than most requests take,
        so it is shortened during the load.
        """
        usual_s = sys.getswitchinterval()
        sys.setswitchinterval(TURN_S)
        try:
            self._prepared = self._prepare(state)
            changes: dict[str, Any] = {"prepared": state.generation}
        except Exception as error:  # noqa: BLE001 - whatever it is, stable goes on serving
            reason = str(error) or repr(error)
            logger.error(
                "%s: generation %d cannot be loaded: %s", self.name, state.generation, reason
            )
            changes = {"failed": state.generation, "failure": reason}
        finally:
            sys.setswitchinterval(usual_s)
        self._report = self._report.model_copy(update=changes)

    def _prepare(self, state: DesiredState) -> _Loaded:
        current = self._models.versions(self.name)
        stable = self._obtain(state, state.stable, [current.stable, current.canary])
        canary = shadow = None
        if state.canary is not None:
            canary = self._obtain(state, state.canary.version, [current.canary, current.stable])
        if state.shadow is not None:
            shadow = self._obtain(state, state.shadow.version, [current.shadow], is_shadow=True)
        observer = VersionObserver(state, stable, shadow, self._metrics)
        share = state.canary.share if state.canary else 0.0
        return _Loaded(state, ModelVersions(stable, canary, share, shadow, observer), observer)

    def _obtain(
        self,
        state: DesiredState,
        version: str,
        loaded: list[ServedModel | None],
        *,
        is_shadow: bool = False,
    ) -> ServedModel:
        """Return a version that is already loaded for such a role, or load it.

        Raises:
            BundleError: The bundle is damaged, not proven, or its verifier process failed or died.
            RolloutError: The version has other tensors than the stable version.
        """
        for model in loaded:
            if model is not None and model.manifest.version == version:
                return model
        folder = self._folder.bundle(version)
        self._verify_in_child(version)
        verified = load_version(folder, self._settings, self.name)
        stable = self._models.get(self.name).manifest
        changes = find_contract_changes(stable, verified.manifest)
        if changes and not state.allow_contract_change:
            raise RolloutError(
                f"version {version} has a different contract from version {stable.version}: "
                f"{'; '.join(changes)}; allow it with --allow-contract-change"
            )
        return self._models.prepare(verified, is_shadow=is_shadow)

    def _verify_in_child(self, version: str) -> None:
        """Verify a bundle once for all workers, in a child process, whose crash ends no worker.

        Raises:
            BundleError: The verifier process failed, died, or took too long.
        """
        folder = self._folder.bundle(version)
        manifest = folder / MANIFEST_NAME
        if not manifest.is_file():
            raise BundleError(
                f"{folder} is not a bundle: add the version with: python -m service.rollout stage "
                f"{self.name} BUNDLE"
            )
        digest = hashlib.sha256(manifest.read_bytes()).hexdigest()
        with self._folder.lock("verify.lock"):
            record = self._folder.read_record()
            if record is not None and digest in record.verified:
                return
            _run_loader(folder)
            with self._folder.lock():
                record = self._folder.read_record()
                if record is not None:
                    verified = (*record.verified, digest)
                    self._folder.write_record(record.model_copy(update={"verified": verified}))

    def _go_live(self) -> bool:
        """Serve the live state if it is loaded, by replacing one reference; return True if so."""
        loaded, plan = self._prepared, self._plan
        if loaded is None or plan is None or loaded.state != plan.record.live:
            return False
        if self._report.active == loaded.state.generation:
            return False
        state = loaded.state
        if state.shadow is not None:
            self._folder.remove_samples(os.getpid())
        self._metrics.set_rollout(self.name, state.generation, state.versions)
        self._models.replace(self.name, loaded.versions)
        self._active, self._prepared = loaded, None
        self._on_change()
        self._report = self._report.model_copy(update={"active": state.generation, "figures": {}})
        logger.info(
            "%s: generation %d is live: stable %s%s%s (%s)",
            self.name,
            state.generation,
            state.stable,
            f", canary {state.canary.version} ({state.canary.share:g})" if state.canary else "",
            f", shadow {state.shadow.version}" if state.shadow else "",
            state.reason,
        )
        return True


def return_memory() -> None:
    """Return free memory to the operating system, because glibc keeps what threads have freed.

    Without this call each promotion of a small CNN adds 2.7 MiB (glibc 2.36, CPython 3.11).
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _run_loader(folder: Path) -> None:
    command = [sys.executable, "-m", "service.rollout.verifier", str(folder.resolve())]
    try:
        ran = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=VERIFY_TIMEOUT_S
        )
    except subprocess.TimeoutExpired:
        raise BundleError(f"{folder} was not verified within {VERIFY_TIMEOUT_S} s") from None
    if ran.returncode < 0:
        name = signal.Signals(-ran.returncode).name
        raise BundleError(f"{folder}: the process that verified it was killed by {name}")
    if ran.returncode != 0:
        raise BundleError(ran.stdout or f"{folder} cannot be verified: {ran.stderr[-500:]}")


def _stamp(path: Path) -> object:
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_mtime_ns, found.st_ino
