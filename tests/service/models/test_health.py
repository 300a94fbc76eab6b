"""A worker is ready while its answers are right, and stops without losing any request."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx

from export.bundle.golden import Golden
from loadtest.server import REPOSITORY, SERVICE, free_port
from tests.service.answers import RAW, read_logits
from tests.service.wire import wait_for
from tests.tiny import SERVED_BUNDLES

GOLDEN = Golden.load(SERVED_BUNDLES / "cnn" / "golden.npz")
URL = "/v2/models/cnn/infer"


def test_the_deep_check_asks_every_model(service_url: str) -> None:
    """Golden samples go through the real batchers, and the answer lists every model."""
    answer = httpx.get(service_url + "/healthz/deep")
    assert (answer.status_code, answer.json()) == (
        200,
        {"golden": {"cnn": "right", "mlp": "right"}},
    )


def test_a_model_that_begins_to_answer_wrongly_is_not_ready() -> None:
    """Wrong answers turn readiness off and are reported; right ones turn it on again."""
    program = f"""
import asyncio, json
from pathlib import Path
from service.observability.metrics import Metrics
from service.models.registry import ModelRegistry
from service.models.loader import load_verified_models
from service.models.health import HealthMonitor
from service.settings import Settings
from prometheus_client import REGISTRY
settings = Settings(bundles=Path({str(SERVED_BUNDLES)!r}), device="cpu")
metrics = Metrics()
models = ModelRegistry(load_verified_models(settings), settings, metrics)
readiness = HealthMonitor(models, metrics, 60)
batcher = models.get("cnn").batcher
honest = batcher._predict
def told():
    names = ("checks_total", "check_failures_total", "check_passed", "check_error_ratio")
    return [REGISTRY.get_sample_value(f"inference_golden_{{n}}", {{"model": "cnn"}}) for n in names]
async def main():
    said = [await readiness.check(), readiness.is_ready]
    figures = [told()]
    batcher._predict = lambda inputs: honest(inputs) | {{"logits": honest(inputs)["logits"] * 1.01}}
    said += [list(await readiness.check()), readiness.is_ready]
    figures += [told()]
    batcher._predict = lambda inputs: 1 / 0
    said += [(await readiness.check())["cnn"], readiness.is_ready]
    batcher._predict = honest
    said += [await readiness.check(), readiness.is_ready]
    figures += [told()]
    print(json.dumps([*said, figures]))
asyncio.run(main())
"""
    ran = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    honest, ready, wrong, off, broken, still_off, again, on, figures = json.loads(ran.stdout)
    assert (honest, ready) == ({}, True)
    assert (wrong, off) == (["cnn"], False)
    assert "division by zero" in broken[0]
    assert (still_off, again, on) == (False, {}, True)
    # Checks (including the start's), failures, whether the last one passed, its error / bound.
    assert [figure[:3] for figure in figures] == [[2, 0, 1], [3, 1, 0], [5, 2, 1]]
    assert figures[0][3] < 1 < figures[1][3]
    assert figures[2][3] == figures[0][3]


def test_a_fault_in_batches_of_either_size_is_found() -> None:
    """The check fails if only single samples or only larger batches are answered wrongly."""
    program = f"""
import asyncio, json
from pathlib import Path
from service.observability.metrics import Metrics
from service.models.registry import ModelRegistry
from service.models.loader import load_verified_models
from service.models.health import HealthMonitor
from service.settings import Settings
settings = Settings(bundles=Path({str(SERVED_BUNDLES)!r}), device="cpu")
metrics = Metrics()
models = ModelRegistry(load_verified_models(settings), settings, metrics)
health = HealthMonitor(models, metrics, 60)
batcher = models.get("cnn").batcher
honest = batcher._predict
def spoil(is_single):
    def predict(inputs):
        outputs = honest(inputs)
        if (len(inputs["images"]) == 1) == is_single:
            outputs = outputs | {{"logits": outputs["logits"] * 1.01}}
        return outputs
    return predict
async def main():
    found = []
    for predict in (spoil(True), spoil(False), honest):
        batcher._predict = predict
        found.append(list(await health.check()))
    print(json.dumps(found))
asyncio.run(main())
"""
    ran = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout) == [["cnn"], ["cnn"], []]


def test_a_fault_in_the_session_of_two_threads_is_found() -> None:
    """The check runs a batch that is large enough for the second session."""
    program = f"""
import asyncio, json
from pathlib import Path
from service.engine import engines
from service.observability.metrics import Metrics
from service.models.registry import ModelRegistry
from service.models.loader import load_verified_models
from service.models.health import HealthMonitor
from service.settings import Settings
engines.count_cores = lambda: 2
engines._shortest_s = lambda engine, batch: len(batch["images"]) / 32 * 0.0003
settings = Settings(bundles=Path({str(SERVED_BUNDLES)!r}), device="cpu", default_model="cnn")
metrics = Metrics()
models = ModelRegistry(load_verified_models(settings), settings, metrics)
health = HealthMonitor(models, metrics, 60)
engine = models.get("cnn").engine
honest = engine._double
async def main():
    found = [list(await health.check())]
    engine._double = lambda inputs: (
        (outputs := honest(inputs)) | {{"logits": outputs["logits"] * 1.01}}
    )
    found.append(list(await health.check()))
    print(json.dumps([engine.smallest_for_two, *found]))
asyncio.run(main())
"""
    ran = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout) == [32, [], ["cnn"]]


def test_told_to_stop_it_is_not_ready_first_and_loses_no_request(tmp_path: Path) -> None:
    """After SIGTERM under load, readiness gives 503 and all requests are answered rightly."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    settings = {"INFERENCE_BUNDLES": str(SERVED_BUNDLES), "INFERENCE_DRAIN_S": "1.5"}
    command = [sys.executable, "-m", "bentoml", "serve", SERVICE, "--host", "127.0.0.1"]
    environment = os.environ | settings | {"BENTOML_HOME": str(tmp_path / "home")}
    with (tmp_path / "service.log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "--port", str(port)],
            cwd=REPOSITORY,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        _until_ready(url)
        statuses, lost, stop = list[int](), list[str](), threading.Event()
        threads = [
            threading.Thread(target=_load, args=(url, statuses, lost, stop)) for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        time.sleep(0.5)
        process.send_signal(signal.SIGTERM)
        with httpx.Client(base_url=url) as client:
            assert wait_for(lambda: client.get("/readyz").status_code == 503, 1.0)
            refused = client.get("/v2/health/ready")
            assert (refused.status_code, refused.json()) == (
                503,
                {"error": "not ready: the worker is shutting down"},
            )
            during = len(statuses)
            answer = client.post(URL, content=GOLDEN.inputs["images"][0].tobytes(), headers=RAW)
            assert answer.status_code == 200
            assert answer.headers["connection"] == "close"
        stop.set()  # as a load balancer does after the 503
        for thread in threads:
            thread.join()
        process.wait(20)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    assert during > 100
    assert lost == []
    assert set(statuses) == {200}


def _until_ready(url: str) -> None:
    for _ in range(300):
        try:
            if httpx.get(url + "/readyz").status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.1)
    raise AssertionError("the service did not become ready")


def _load(url: str, statuses: list[int], lost: list[str], stop: threading.Event) -> None:
    """Send requests until stopped and check each answer; requests without an answer are lost."""
    images, labels = GOLDEN.inputs["images"], GOLDEN.labels()
    with httpx.Client(base_url=url, timeout=10) as client:
        while not stop.is_set():
            position = len(statuses) % len(images)
            try:
                answer = client.post(URL, content=images[position].tobytes(), headers=RAW)
            except httpx.TransportError as error:
                lost.append(repr(error))
                continue
            statuses.append(answer.status_code)
            if read_logits(answer).argmax() != labels[position]:
                lost.append(f"wrong answer to image {position}")
