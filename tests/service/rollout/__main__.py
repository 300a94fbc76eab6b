"""Measures roll-outs under verified load, and prints the tables of docs/rollout.md.

    python -m tests.service.rollout --promotions 20 --workers 1 2

The client checks each answer and runs on the same cores as the service. Its load is a share of what
both reach together when every connection sends without a pause. "In a flip" are the requests that
were due between the command and half a second after the last worker began to serve the version.
"""

import argparse
import os
import platform
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version as version_of
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import psutil

from loadtest.server import running_service
from service.rollout.status import read_status
from service.versions.state import RolloutFolder
from tests.service.processes import worker_processes
from tests.service.rollout.made_versions import (
    NAME,
    UNLUCKY,
    make_digits_version,
    make_failing,
    make_slow,
    make_version,
)
from tests.service.rollout.open_loop import LoadProcess
from tests.service.rollout.rollout_service import asked, run_command, serving
from tests.service.wire import wait_for as wait_until

MODEL = "cnn"
INJECTED = Path(__file__).with_name("injected")
RETURN_WITHIN_S = 120.0
AFTER_S, BETWEEN_S, SETTLE_S = 0.5, 2.0, 5.0


@dataclass
class Flip:
    """One promotion: when it was requested, and when the last worker served it (Unix time)."""

    asked_s: float
    live_s: float
    rss_bytes: int


@contextmanager
def _service(folder: Path, workers: int) -> Iterator[tuple[str, Path]]:
    bundles = folder / f"bundles-{workers}"
    for name in ("v1", "v2"):
        run_command("stage", MODEL, str(folder / "sources" / name), "--bundles", str(bundles))
    settings = {
        "INFERENCE_BUNDLES": str(bundles),
        "INFERENCE_DEVICE": "cpu",
        "INFERENCE_WORKERS": str(workers),
    }
    with running_service(folder / f"{workers}.log", settings=settings) as url:
        time.sleep(2)
        yield url, bundles


def _rss(workers: Sequence[psutil.Process]) -> int:
    return sum(worker.memory_info().rss for worker in workers)


def _measure_capacity(url: str, seconds: float) -> float:
    load = LoadProcess(url, MODEL, None)
    time.sleep(seconds)
    found = load.stop()
    return len(found.took_s) / seconds


def _promote(
    operator: Executor, workers: Sequence[psutil.Process], bundles: Path, version: str
) -> Flip:
    """Promote in a process that is already running, so that starting a command is not measured."""
    asked_s = time.time()
    command = ["promote", MODEL, version, "--wait", "--bundles", str(bundles)]
    operator.submit(run_command, *command).result()
    live_s = time.time()
    time.sleep(BETWEEN_S)
    return Flip(asked_s, live_s, _rss(workers))


def _row(workers: int, folder: Path, promotions: int, share: float) -> str:
    with _service(folder, workers) as (url, bundles):
        _measure_capacity(url, 2)  # warms the client and the service up
        capacity = _measure_capacity(url, 5)
        load = LoadProcess(url, MODEL, share * capacity)
        processes = worker_processes(url)
        with ProcessPoolExecutor(1, get_context("spawn")) as operator:
            operator.submit(run_command, "status", "--bundles", str(bundles)).result()
            time.sleep(SETTLE_S)
            first_s, first_rss = time.time(), _rss(processes)
            flips = [
                _promote(operator, processes, bundles, f"v{2 - i % 2}") for i in range(promotions)
            ]
        found = load.stop()
        assert read_status(RolloutFolder(bundles / MODEL))["live"]["generation"] == promotions + 1
    sent, took = np.array(found.sent_s), np.array(found.took_s)
    windows = [(sent >= flip.asked_s) & (sent < flip.live_s + AFTER_S) for flip in flips]
    in_flip = np.logical_or.reduce(windows)
    quiet = np.quantile(took[(sent >= first_s) & ~in_flip], 0.99)
    during = np.quantile(took[in_flip], 0.99)
    usual = np.median([np.quantile(took[window], 0.99) for window in windows])
    to_live = np.array([flip.live_s - flip.asked_s for flip in flips])
    middle, last = flips[len(flips) // 2].rss_bytes, flips[-1].rss_bytes
    return (
        f"| {workers} | {len(took):,} | {found.failed} | {found.wrong} | "
        f"{usual / quiet:.2f} x | {during / quiet:.2f} x | {np.median(to_live):.1f} s | "
        f"{to_live.max():.1f} s | "
        f"{(middle - first_rss) / 2**20:+.0f} MiB | {(last - middle) / 2**20:+.0f} MiB |"
    )


@dataclass(frozen=True)
class Wrong:
    """A wrong version: its role, and the number that every hundredth request contains."""

    source: Path
    command: tuple[str, ...]
    unlucky: float | None = None


def _wrong_versions(folder: Path) -> dict[str, Wrong]:
    canary = ("--share", "0.3")
    return {
        "its engine fails for one request in a hundred": Wrong(
            make_failing(folder, "failing"), ("canary", "failing", *canary), UNLUCKY
        ),
        "takes several times as long": Wrong(
            make_slow(folder, "slow"), ("canary", "slow", *canary)
        ),
        "ends its process at one request in a hundred": Wrong(
            make_version(folder, "deadly"), ("canary", "deadly", *canary), UNLUCKY
        ),
        "other weights, as a shadow": Wrong(
            make_version(folder, "other", seed=1), ("shadow", "other")
        ),
    }


def _measure_returns(folder: Path, rounds: int) -> Iterator[str]:
    """Give a service of two workers wrong versions; one row for each kind."""
    settings = {"PYTHONPATH": str(INJECTED), "INJECTED_DEADLY_VERSION": "deadly"}
    seeds = {"right": 0, "failing": 0, "slow": 0, "deadly": 0, "other": 1}
    with serving(folder, make_version(folder, "right"), **settings) as service:
        for kind, wrong in _wrong_versions(folder).items():
            service.stage(wrong.source)
            returned_s, answers, failed, bad = list[float](), 0, 0, 0
            for _ in range(rounds):
                role, version, *options = wrong.command
                service.require(role, NAME, version, *options, "--wait")
                start_s = time.monotonic()
                with asked(service, seeds, clients=4, unlucky=wrong.unlucky) as load:
                    if not wait_until(service.is_back, RETURN_WITHIN_S):
                        raise SystemExit(f"{kind}: not rolled back: {service.status()}")
                    returned_s.append(time.monotonic() - start_s)
                answers += load.answers.total()
                wrong_answers = sum("wrong answer" in mistake for mistake in load.mistakes)
                bad, failed = bad + wrong_answers, failed + len(load.mistakes) - wrong_answers
            yield (
                f"| {kind} | {np.median(returned_s):.1f} s | {max(returned_s):.1f} s | "
                f"{answers:,} | {failed} | {bad} |"
            )


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--promotions", type=int, default=20)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--load", type=float, default=0.7, help="as a share of the greatest rate")
    parser.add_argument("--rounds", type=int, default=5, help="of each wrong version")
    arguments = parser.parse_args(argv)
    print(
        f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}, "
        f"bentoml {version_of('bentoml')}, {time.strftime('%Y-%m-%d')}"
    )
    print(
        "| workers | answers | failed | wrong | p99 in a flip over between them, median | "
        "in all flips | time to live, median | longest | memory of the first half | "
        "of the second half |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        for name in ("v1", "v2"):
            make_digits_version(folder / "sources", name)
        for workers in arguments.workers:
            print(_row(workers, folder, arguments.promotions, arguments.load), flush=True)
        print(
            "\n| wrong version | until no worker has it, median | longest | answers | failed | "
            "wrong |"
        )
        print("|---|---|---|---|---|---|")
        for row in _measure_returns(folder / "wrong", arguments.rounds):
            print(row, flush=True)


if __name__ == "__main__":
    main()
