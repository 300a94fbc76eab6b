"""A service with a fault does not start: it ends with the reason and never answers a request."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import pytest

from export.bundle.golden import Golden
from loadtest.server import REPOSITORY, SERVICE, free_port, running_service
from tests.service.answers import RAW, read_logits
from tests.service.models.faults import FAULTS
from tests.tiny import SERVED_BUNDLES

GOLDEN = Golden.load(SERVED_BUNDLES / "cnn" / "golden.npz")
ENDS_WITHIN_S = 30
AT_ONCE = 2


@dataclass(frozen=True)
class Ended:
    """Result of a start: status (None if still running), output, answers, remaining processes."""

    status: int | None
    output: str
    answered: int
    left: list[int]


def _start(settings: dict[str, str], folder: Path, port: int) -> Ended:
    """Run the service until it ends or times out, and send requests all the while."""
    command = [sys.executable, "-m", "bentoml", "serve", SERVICE, "--host", "127.0.0.1"]
    own = {"BENTOML_DO_NOT_TRACK": "True", "BENTOML_HOME": str(folder / "home")}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "--port", str(port)],
            cwd=REPOSITORY,
            env={**os.environ, **own, "INFERENCE_DRAIN_S": "0", **settings},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    answered, give_up_s = 0, time.monotonic() + ENDS_WITHIN_S
    while process.poll() is None and not answered and time.monotonic() < give_up_s:
        with suppress(httpx.TransportError):
            httpx.get(f"http://127.0.0.1:{port}/livez", timeout=0.5)
            answered += 1
        time.sleep(0.05)
    status = process.poll()
    group = [p.pid for p in psutil.process_iter() if _group(p.pid) == process.pid]
    for pid in group:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()
    left = [pid for pid in group if pid != process.pid]
    return Ended(status, (folder / "log").read_text(errors="replace"), answered, left)


def _group(pid: int) -> int | None:
    with suppress(ProcessLookupError):
        return os.getpgid(pid)
    return None


def _assert_refused(ended: Ended, *named: str) -> None:
    assert ended.answered == 0, f"it answered:\n{ended.output}"
    assert ended.status is not None, f"it did not end:\n{ended.output}"
    assert ended.status > 0, ended.output
    assert ended.left == []
    for words in named:
        assert words in ended.output
    assert "Traceback" not in ended.output, ended.output
    assert "serving " not in ended.output


@pytest.fixture(scope="module")
def starts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Future[Ended]]]:
    """All faulty starts, a few at a time, so that tests can check those that have ended."""

    def start(name: str) -> Ended:
        folder = tmp_path_factory.mktemp("start")
        bundles = shutil.copytree(SERVED_BUNDLES, folder / "bundles")
        settings = {"INFERENCE_BUNDLES": str(bundles), "INFERENCE_DEVICE": "cpu"}
        return _start(settings | (FAULTS[name].plant(bundles) or {}), folder, free_port())

    pool = ThreadPoolExecutor(AT_ONCE)
    yield {name: pool.submit(start, name) for name in FAULTS}
    pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize("name", FAULTS)
def test_a_faulty_start_ends_in_words(name: str, starts: dict[str, Future[Ended]]) -> None:
    """It ends with an error that names the fault, without a traceback or any answer."""
    _assert_refused(starts[name].result(), *FAULTS[name].named)


def test_a_port_in_use_ends_the_start_in_words(tmp_path: Path) -> None:
    """The port is named; BentoML, which opens it, prints its own traceback."""
    settings = {"INFERENCE_BUNDLES": str(SERVED_BUNDLES), "INFERENCE_DEVICE": "cpu"}
    with closing(socket.create_server(("127.0.0.1", 0))) as holder:
        port = holder.getsockname()[1]
        ended = _start(settings, tmp_path, port)
    assert ended.status == 1
    assert ended.left == []
    assert f"Could not bind 127.0.0.1:{port}" in ended.output
    assert "serving " not in ended.output


def test_nobody_is_answered_before_the_models_are_proven_and_warm(tmp_path: Path) -> None:
    """From the start on, requests fail to connect or get 503 until the first right answer.

    By then, the log reports the golden samples' result and the duration of a warm batch.
    """
    port, seen, log_file = free_port(), list[object](), tmp_path / "service.log"
    said_by_then = list[str]()

    def ask() -> None:
        image = GOLDEN.inputs["images"][0].tobytes()
        url = f"http://127.0.0.1:{port}/v2/models/cnn/infer"
        give_up_s = time.monotonic() + 2 * ENDS_WITHIN_S
        while time.monotonic() < give_up_s:
            try:
                answer = httpx.post(url, content=image, headers=RAW, timeout=ENDS_WITHIN_S)
            except httpx.TransportError as error:
                seen.append(type(error).__name__)
                continue
            said_by_then.append(log_file.read_text())
            seen.append(answer)
            if answer.status_code != 503:
                return

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    settings = {"INFERENCE_BUNDLES": str(SERVED_BUNDLES), "INFERENCE_DEVICE": "cpu"}
    with running_service(log_file, port=port, settings=settings) as url:
        asking.join(2 * ENDS_WITHIN_S)
        metrics = httpx.get(f"{url}/metrics").text
    *before, first = seen
    assert "ConnectError" in before
    assert all(isinstance(one, str) or getattr(one, "status_code", 0) == 503 for one in before)
    assert isinstance(first, httpx.Response)
    assert first.status_code == 200, first.text
    assert read_logits(first).argmax() == GOLDEN.labels()[0]
    for model in ("cnn", "mlp"):
        (line,) = [x for x in said_by_then[-1].splitlines() if f"serving {model} version" in x]
        assert "60 golden samples passed, batches of 64 take" in line
        assert f'inference_golden_check_passed{{model="{model}"}} 1.0' in metrics
