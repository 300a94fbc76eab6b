"""A worker that dies breaks only its own connections."""

import os
import signal
import threading
import time
from pathlib import Path

import httpx

from export.bundle.golden import Golden
from loadtest.server import running_service
from tests.service.processes import worker_processes
from tests.tiny import SERVED_BUNDLES

GOLDEN = Golden.load(SERVED_BUNDLES / "cnn" / "golden.npz")
RAW = {"inference-header-content-length": "0"}
BACK_WITHIN_S = 20


def _workers(url: str) -> set[int]:
    return {worker.pid for worker in worker_processes(url)}


def test_a_killed_worker_is_replaced_and_the_other_goes_on(tmp_path: Path) -> None:
    """After kill -9 under load few connections break, others are answered, two workers return."""
    settings = {"INFERENCE_BUNDLES": str(SERVED_BUNDLES), "INFERENCE_WORKERS": "2"}
    # As in a container that BentoML made, where it would not replace a dead worker.
    settings |= {"BENTOML_CONTAINERIZED": "true"}
    with running_service(tmp_path / "service.log", settings=settings) as url:
        before = _workers(url)
        assert len(before) == 2
        statuses, broken, stop = list[int](), list[str](), threading.Event()
        threads = [
            threading.Thread(target=_load, args=(url, statuses, broken, stop), daemon=True)
            for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        time.sleep(0.5)
        os.kill(min(before), signal.SIGKILL)
        time.sleep(0.3)
        during = len(statuses)
        give_up_s = time.monotonic() + BACK_WITHIN_S
        while time.monotonic() < give_up_s and len(_workers(url)) < 2:
            time.sleep(0.2)
        assert len(_workers(url)) == 2
        assert min(before) not in _workers(url)
        _wait_until_told(url)
        time.sleep(0.5)
        stop.set()
        for thread in threads:
            thread.join(15)
        assert set(statuses) == {200}
        assert len(statuses) > during > 0
        assert len(broken) <= len(threads)  # at most one open connection per client


def _wait_until_told(url: str) -> None:
    """Wait until the metrics show two live processes and the capacity of two queues."""
    wanted = {
        *(f'process_start_time_seconds{{pid="{pid}"}}' for pid in _workers(url)),
        'inference_queue_limit_samples{model="cnn"} 1024.0',
        'inference_golden_check_passed{model="cnn"} 1.0',
    }
    give_up_s = time.monotonic() + BACK_WITHIN_S  # the new worker has to verify its models first
    lines: list[str] = []
    while time.monotonic() < give_up_s:
        text = httpx.get(f"{url}/metrics", timeout=10).text
        lines = [line for line in text.splitlines() if line[:1] != "#"]
        started = [line for line in lines if line.startswith("process_start_time_seconds")]
        if len(started) == 2 and all(any(w in line for line in lines) for w in wanted):
            return
        time.sleep(0.2)
    raise AssertionError("\n".join(lines))


def _load(url: str, statuses: list[int], broken: list[str], stop: threading.Event) -> None:
    """Send requests until stopped; record a broken connection and open a new one."""
    body = GOLDEN.inputs["images"][0].tobytes()
    with httpx.Client(base_url=url, timeout=10) as client:
        while not stop.is_set():
            try:
                answer = client.post("/v2/models/cnn/infer", content=body, headers=RAW)
                statuses.append(answer.status_code)
            except httpx.TransportError as error:
                broken.append(repr(error))
