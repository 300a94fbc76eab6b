"""Under overload, excess requests are refused at once with an explanation; the rest are right."""

import asyncio
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest

from export.bundle.golden import Golden
from export.bundle.metrics import Arrays
from loadtest.generator.recorder import Tally, decoded
from loadtest.measure.result import percentiles_ms
from loadtest.measure.run import generate
from loadtest.measure.sweep import closed_loop_rate
from loadtest.scenarios import Profile, load_scenario
from loadtest.server import running_service
from service.engine.batcher import Batcher
from service.models.loader import load_verified_models
from service.protocol.errors import OverloadedError
from service.settings import Settings
from tests.service.answers import RAW, parsed, raw_request, read_logits
from tests.service.processes import worker_processes
from tests.tiny import SERVED_BUNDLES

CNN = SERVED_BUNDLES / "cnn"
GOLDEN = Golden.load(CNN / "golden.npz")
IMAGES, LABELS = GOLDEN.inputs["images"], GOLDEN.labels()
URL = "/v2/models/cnn/infer"
BATCH = 64
PROFILE = Profile(name="overload", duration_s=2.0, warmup_s=0.5, runs=1)
BASE = {"INFERENCE_BUNDLES": str(SERVED_BUNDLES), "INFERENCE_DEVICE": "cpu"}
QUEUE = {"INFERENCE_MAX_QUEUE_SAMPLES": "8", "INFERENCE_MAX_REQUEST_SAMPLES": "8"}
SLOW_CLIENTS = 60
SLOW_CLIENT_S = 2.0
PATIENCE_S = 30.0


def _connect(url: str) -> socket.socket:
    host, port = url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)), timeout=PATIENCE_S)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def _answer(connection: socket.socket) -> httpx.Response:
    received = b""
    while (answer := parsed(received)) is None:
        part = connection.recv(65536)
        assert part, f"closed after {received!r}"
        received += part
    return answer


@contextmanager
def _held_up(url: str) -> Iterator[None]:
    """Stop the only worker for a block, so that all requests sent meanwhile arrive together."""
    (worker,) = worker_processes(url)
    worker.suspend()
    try:
        while worker.status() != psutil.STATUS_STOPPED:
            time.sleep(0.001)
        yield
    finally:
        worker.resume()


def test_a_busy_engine_with_room_for_eight_refuses_two_of_ten() -> None:
    """With the real engine blocked, exactly 8 requests wait and get answers, 2 are refused."""
    (model, _) = load_verified_models(Settings(bundles=SERVED_BUNDLES, device="cpu"))
    gate, entered = threading.Event(), threading.Event()

    def gated(inputs: Arrays) -> Arrays:
        entered.set()
        assert gate.wait(PATIENCE_S)
        return model.engine(inputs)

    async def scenario() -> list[object]:
        batcher = Batcher(gated, max_batch_samples=4, max_queue_samples=8, max_loop_samples=0)
        busy = asyncio.ensure_future(batcher.submit({"images": IMAGES[:1]}))
        while not entered.is_set():
            await asyncio.sleep(0.001)
        parts = [{"images": IMAGES[i : i + 1]} for i in range(10)]
        waiting = [asyncio.ensure_future(batcher.submit(part)) for part in parts]
        await asyncio.sleep(0)  # each request is queued or refused now
        gate.set()
        answers: list[object] = await asyncio.gather(*waiting, return_exceptions=True)
        await busy
        batcher.close()
        return answers

    *accepted, ninth, tenth = asyncio.run(scenario())
    for refused in (ninth, tenth):
        assert isinstance(refused, OverloadedError)
        assert int(refused.headers["Retry-After"]) >= 1
    for i, answer in enumerate(accepted):
        assert isinstance(answer, tuple)
        assert answer[0]["logits"].argmax() == LABELS[i]


def _burst(url: str, connections: list[socket.socket]) -> list[httpx.Response]:
    """Send a request on each open connection, so that all arrive before the worker reads."""
    for i, connection in enumerate(connections):
        connection.sendall(raw_request(IMAGES[i].tobytes()))
        assert _answer(connection).status_code == 200
    with _held_up(url):
        for i, connection in enumerate(connections):
            connection.sendall(raw_request(IMAGES[i].tobytes()))
    return [_answer(connection) for connection in connections]


def _assert_refused_or_right(answers: list[httpx.Response]) -> int:
    """Number of refusals, each with Retry-After; all other answers are right."""
    refused = 0
    for i, answer in enumerate(answers):
        if answer.status_code == 429:
            refused += 1
            assert int(answer.headers["retry-after"]) >= 1
            assert "are queued already" in answer.json()["error"]
        else:
            assert answer.status_code == 200
            assert read_logits(answer).argmax() == LABELS[i]
    return refused


def test_ten_requests_at_once_into_a_queue_of_eight(tmp_path: Path) -> None:
    """Over HTTP, exactly 2 of 10 concurrent requests get 429, ten times in a row."""
    settings = BASE | QUEUE | {"INFERENCE_ENGINE": "thread"}
    with running_service(tmp_path / "log", settings=settings) as url, ExitStack() as stack:
        connections = [stack.enter_context(_connect(url)) for _ in range(10)]
        for _ in range(10):
            assert _assert_refused_or_right(_burst(url, connections)) == 2
        refused = 'inference_refused_requests_total{kind="overloaded",status="429"} 20.0'
        assert refused in httpx.get(f"{url}/metrics").text


def test_in_the_event_loop_too_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    """Beneath ASGI, at least 8 of 10 concurrent requests are answered; the others are refused.

    A refusal there lets the waiting batch run first, so that later requests fit again.
    """
    with running_service(tmp_path / "log", settings=BASE | QUEUE) as url, ExitStack() as stack:
        connections = [stack.enter_context(_connect(url)) for _ in range(10)]
        assert 1 <= _assert_refused_or_right(_burst(url, connections)) <= 2


@pytest.mark.slow
def test_twice_what_it_can_do_is_answered_or_refused(tmp_path: Path) -> None:
    """At twice the capacity, requests of 64 images at random times are right or get 429.

    Afterwards the service is ready and answers at once.
    """
    images = np.resize(IMAGES, (BATCH, 28, 28))
    settings = BASE | {"INFERENCE_MAX_QUEUE_SAMPLES": "128", "INFERENCE_MAX_REQUEST_SAMPLES": "64"}
    with running_service(tmp_path / "log", settings=settings) as url:
        scenario, bundles = load_scenario("Overload", samples_per_request=BATCH), [CNN]
        rate = closed_loop_rate(scenario, url, bundles, processes=1)
        tallies = {}
        for factor in (1, 2):
            offered = scenario.model_copy(update={"rate_per_s": factor * rate})
            tallies[factor] = generate(offered, url, bundles, PROFILE)
        with httpx.Client(base_url=url, timeout=PATIENCE_S) as client:
            assert client.get("/readyz").status_code == 200
            after = client.post(URL, content=images.tobytes(), headers=RAW)
            assert client.get("/healthz/deep").status_code == 200
    assert (read_logits(after).argmax(axis=1) == np.resize(LABELS, BATCH)).all()
    for factor, tally in tallies.items():
        _assert_sound(tally)
        p99_ms = percentiles_ms(tally.latency_us, [99])["p99"]
        told = f"{tally.errors} of {tally.sent} refused, p99 of the others {p99_ms:.1f} ms"
        sys.stdout.write(f"{factor} x {rate:.0f}/s of {BATCH} images: {told}\n")
    assert tallies[2].errors


def _assert_sound(tally: Tally) -> None:
    assert (tally.wrong_answers, tally.stragglers) == (0, 0), tally.wrong_examples
    assert tally.errors.keys() <= {"HTTP 429"}
    answered = decoded(tally.latency_us).get_total_count()
    assert answered > 0
    assert answered + sum(tally.errors.values()) == tally.sent


def _slow_ones() -> list[tuple[bytes, bytes]]:
    """What slow clients send at once and then byte by byte: nothing, a head, a body or chunks."""
    body = IMAGES[0].tobytes()
    head = raw_request(body)[: -len(body)]
    chunked = b"POST /predict HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n310\r\n"
    return [(b"", b""), (b"", head), (head, body), (chunked, body)]


def _drip(connections: list[tuple[socket.socket, bytes]], stop: threading.Event) -> None:
    position = 0
    while not stop.wait(0.2):
        for connection, content in connections:
            with suppress(OSError):  # it was closed
                connection.send(content[position : position + 1])
        position += 1


def test_slow_clients_hold_up_nobody_and_are_closed(tmp_path: Path) -> None:
    """Sixty silent or slow clients are disconnected while other clients are answered.

    No task is left waiting for the rest of their requests when the service stops.
    """
    log, settings = tmp_path / "log", BASE | {"INFERENCE_SLOW_CLIENT_S": str(SLOW_CLIENT_S)}
    with running_service(log, settings=settings) as url, ExitStack() as stack:
        stop, dripping = threading.Event(), []
        for at_once, slowly in _slow_ones() * (SLOW_CLIENTS // 4):
            connection = stack.enter_context(_connect(url))
            connection.sendall(at_once)
            dripping.append((connection, slowly))
        stack.callback(stop.set)
        threading.Thread(target=_drip, args=(dripping, stop), daemon=True).start()
        with httpx.Client(base_url=url, timeout=PATIENCE_S) as client:
            until_s, asked = time.monotonic() + 2 * SLOW_CLIENT_S, 0
            while time.monotonic() < until_s:
                i = asked % len(IMAGES)
                answer = client.post(URL, content=IMAGES[i].tobytes(), headers=RAW)
                assert read_logits(answer).argmax() == LABELS[i]
                asked += 1
        assert asked > 50
        for connection, _ in dripping:
            with suppress(ConnectionResetError):  # a byte was in flight
                assert connection.recv(65536) == b""
    assert "Traceback" not in log.read_text()


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_byte_by_byte_is_answered_rightly(chunked: bool, service_url: str) -> None:
    """A body of known length or in one-byte chunks may come one byte per packet."""
    body = IMAGES[0].tobytes()
    head = raw_request(body)[: -len(body)]
    parts = [body[i : i + 1] for i in range(len(body))]
    if chunked:
        head = head.replace(b"content-length: 784", b"transfer-encoding: chunked")
        parts = [b"1\r\n" + part + b"\r\n" for part in parts] + [b"0\r\n\r\n"]
    with _connect(service_url) as connection:
        connection.sendall(head)
        for part in parts:
            connection.sendall(part)
        answer = _answer(connection)
    assert answer.status_code == 200
    assert read_logits(answer).argmax() == LABELS[0]


def _computed(url: str) -> float:
    for line in httpx.get(f"{url}/metrics", timeout=PATIENCE_S).text.splitlines():
        if line.startswith('inference_batch_samples_sum{model="cnn"}'):
            return float(line.rsplit(" ", 1)[1])
    return 0.0


def test_who_hung_up_while_waiting_is_not_computed(tmp_path: Path) -> None:
    """Of 20 clients that wait behind 20,000 batches and disconnect, no request runs."""
    many, gone = 20_000, 20
    settings = BASE | {
        "INFERENCE_ENGINE": "thread",
        "INFERENCE_MAX_BATCH_SAMPLES": "1",
        "INFERENCE_MAX_REQUEST_SAMPLES": str(many),
        "INFERENCE_MAX_QUEUE_SAMPLES": str(2 * many),
        "INFERENCE_MAX_BODY_BYTES": str(many * 784),
        "INFERENCE_TIMEOUT_S": "120",
    }
    with running_service(tmp_path / "log", settings=settings) as url, _connect(url) as large:
        before = _computed(url)
        large.settimeout(120)
        large.sendall(raw_request(np.resize(IMAGES, (many, 28, 28)).tobytes()))
        while _computed(url) == before:  # until the engine is busy
            time.sleep(0.01)
        victims = [_connect(url) for _ in range(gone)]
        for victim in victims:
            victim.sendall(raw_request(IMAGES[:50].tobytes()))
        time.sleep(0.3)  # they wait
        for victim in victims:
            victim.close()
        busy_still = _computed(url) < before + many
        assert _answer(large).status_code == 200
        last = httpx.post(url + URL, content=IMAGES[0].tobytes(), headers=RAW, timeout=PATIENCE_S)
        assert last.status_code == 200  # behind whatever waited
        assert busy_still
        assert _computed(url) - before == many + 1
        counted = f'inference_refused_requests_total{{kind="client_gone",status="499"}} {gone}.0'
        assert counted in httpx.get(f"{url}/metrics").text
