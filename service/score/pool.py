"""Distributes parts over Ray Data's actor pool: ``connect`` and ``score_parts``.

A row of the Ray data set is a part, not a row of the input. Actors read their parts and write their
answers themselves, so no data goes through Ray's object store, and memory use does not depend on
the input's size. If an actor dies, Ray restarts it and gives it the same part again.
"""

import logging
import os
import secrets
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

# Ray reads these when it is imported or started. With them it sends no usage reports, and logs
# nothing about killed actors, which this package reports itself.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

import msgspec
import ray
import ray.data
from ray.exceptions import RayError, RayTaskError

from service.score.errors import ScoreError
from service.score.output import PartRecord
from service.score.parts import Part
from service.score.scorer import Job, PartScorer

ROOT = Path(__file__).resolve().parent.parent.parent
OBJECT_STORE_BYTES = 100 * 2**20  # holds only the parts' names and records, no data
TASKS_IN_FLIGHT = 2  # per actor, so that the next part is queued when one is finished
# An actor may die this often during one part before the run fails.
MAX_RETRIES = 20


class Cluster:
    """Ray, embedded or on a cluster.

    Attributes:
        is_remote: Whether actors may run on other machines.
        cpus: How many CPUs it has.
        gpus: How many GPUs it has.
    """

    def __init__(self, *, is_remote: bool) -> None:
        """Read the number of CPUs and GPUs from Ray."""
        resources = ray.cluster_resources()  # type: ignore[no-untyped-call]
        self.is_remote = is_remote
        self.cpus, self.gpus = (int(resources.get(name, 0)) for name in ("CPU", "GPU"))


@contextmanager
def connect(address: str | None, cpus: int) -> Iterator[Cluster]:
    """Start Ray on this machine, or connect to a cluster; shut down when the ``with`` block ends.

    Args:
        address: The cluster's address. None: start Ray here, unless this process already runs it.
        cpus: The largest number of actors that run here at the same time.

    Raises:
        ScoreError: There is no such cluster, or Ray cannot be started.
    """
    if address is None and ray.is_initialized():
        _keep_quiet()
        yield Cluster(is_remote=False)
        return
    with tempfile.TemporaryDirectory(prefix="score-", ignore_cleanup_errors=True) as folder:
        try:
            with _native_stderr_to(Path(folder) / "stderr"):
                _start(address, folder, cpus)
        except (RayError, OSError, ValueError, RuntimeError) as error:
            where = "here" if address is None else f"at {address}"
            raise ScoreError(
                f"Ray cannot be reached {where}: {error}; `ray status` shows the address for "
                "--ray-address"
            ) from error
        # Ray prints messages about dead actors on stdout, which is only for the summary.
        with (Path(folder) / "stdout").open("w") as said, redirect_stdout(said):
            try:
                _keep_quiet()
                yield Cluster(is_remote=address is not None)
            finally:
                ray.shutdown()


def score_parts(
    parts: Sequence[Part], job: Job, actors: int, *, cpus: float, gpus: float
) -> Iterator[PartRecord]:
    """Score parts on several actors; yields each part's record when the part is finished.

    Args:
        parts: The parts to score.
        job: What the actors need to score a part.
        actors: The largest number of actors.
        cpus: The number of CPUs of each actor.
        gpus: The number of GPUs of each actor.

    Raises:
        ScoreError: A part cannot be scored; the finished ones stay finished.
    """
    rows = [{"part": msgspec.json.encode(part).decode()} for part in parts]
    with warnings.catch_warnings():
        # No other argument limits retries in Ray 2.60 to 2.63.
        warnings.filterwarnings("ignore", "`ray_remote_args_fn` is deprecated")
        finished = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
            _Actor,
            batch_size=None,
            fn_constructor_kwargs={"job": job},
            compute=ray.data.ActorPoolStrategy(
                size=min(actors, len(rows)), max_tasks_in_flight_per_actor=TASKS_IN_FLIGHT
            ),
            num_cpus=cpus,
            num_gpus=gpus,
            ray_remote_args_fn=_limit_retries,
        )
    try:
        for row in finished.iter_rows():
            if row["error"]:
                raise ScoreError(row["error"])
            yield msgspec.json.decode(row["record"], type=PartRecord)
    except RayTaskError as error:
        raise ScoreError(
            f"an actor failed unexpectedly: {error}; run the same command to resume"
        ) from error
    except RayError as error:
        first_line = str(error).partition("\n")[0]
        raise ScoreError(
            f"an actor could not be kept running: {first_line}; if it ran out of memory, use "
            "fewer --actors or a smaller --batch-size; run the same command to resume"
        ) from error


class _Actor:
    """Runs in a separate process, with a scorer that is created for the first part.

    Errors are returned as a row: if the constructor raised them, Ray would restart the actor again
    and again.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        self._scorer: PartScorer | None = None

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        answers: dict[str, list[str]] = {"record": [], "error": []}
        for text in batch["part"]:
            record, error = "", ""
            try:
                self._scorer = self._scorer or PartScorer(self._job)
                part = msgspec.json.decode(text, type=Part)
                record = msgspec.json.encode(self._scorer.score(part)).decode()
            except ScoreError as problem:
                error = str(problem)
            answers["record"].append(record)
            answers["error"].append(error)
        return answers


def _limit_retries() -> dict[str, int]:
    return {"max_task_retries": MAX_RETRIES}


def _start(address: str | None, folder: str, cpus: int) -> None:
    """Connect to a cluster, or start Ray's processes here, which listen only on loopback."""
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address is not None:
        modules = [str(ROOT / name) for name in ("service", "export")]
        ray.init(address=address, runtime_env={"py_modules": modules}, **options)
        return
    # Otherwise Ray writes a token to the user's home, which changes how `ray start` works later.
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    ray.init(
        address="local",
        num_cpus=cpus,
        include_dashboard=False,
        object_store_memory=OBJECT_STORE_BYTES,
        _node_ip_address="127.0.0.1",
        _temp_dir=folder,
        **options,
    )


@contextmanager
def _native_stderr_to(path: Path) -> Iterator[None]:
    """Redirect file descriptor 2 to a file, because Ray's C++ core prints its log level there."""
    sys.stderr.flush()
    original = os.dup(2)
    with path.open("wb") as file:
        os.dup2(file.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(original, 2)
        os.close(original)


def _keep_quiet() -> None:
    """Silence Ray Data, so that only the progress bar and the summary reach the terminal."""
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Ray warns of its own defaults
        ray.data.DataContext.get_current().enable_progress_bars = False
