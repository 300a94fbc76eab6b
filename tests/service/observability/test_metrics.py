"""Metrics count every request, and no client can multiply their series."""

import re
import socket
import time
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from export.bundle.golden import Golden
from loadtest.server import running_service
from service.core.messages import describe_failure
from service.engine.batcher import EngineError
from service.protocol.errors import DeadlineError, ErrorKind, OverloadedError
from tests.service.wire import wait_for
from tests.tiny import SERVED_BUNDLES

INFER = "/v2/models/cnn/infer"
RAW = {"inference-header-content-length": "0"}
PNG = {"content-type": "image/png"}
DIGIT = (Path(__file__).parents[1] / "digit.png").read_bytes()
IMAGE = Golden.load(SERVED_BUNDLES / "cnn" / "golden.npz").inputs["images"][0]
Figures = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def _figures(url: str) -> Figures:
    text = httpx.get(url + "/metrics").text
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def _grown(before: Figures, after: Figures, name: str, **labels: str) -> float:
    key = (name, tuple(sorted(labels.items())))
    return after[key] - before[key]  # KeyError if missing: a series exists before it is counted


def test_paths_that_nobody_serves_are_refused_in_one_shape_and_leave_no_metrics(
    service_url: str,
) -> None:
    """A scan of many paths gets JSON errors, and /metrics does not grow."""
    with httpx.Client(base_url=service_url) as client:
        before = len(client.get("/metrics").text.splitlines())
        for i in range(300):
            answer = client.get(f"/admin/{i}")
            assert (answer.status_code, answer.headers["content-type"]) == (404, "application/json")
            assert answer.json() == {"error": f"Not Found: GET /admin/{i}"}
        assert client.post("/livez").json() == {
            "error": "Method Not Allowed: POST /livez; allowed: GET, HEAD"
        }
        assert len(client.get("/metrics").text.splitlines()) <= before + 2


@pytest.fixture(scope="module")
def ordinary_url(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The real service without its fast path."""
    settings = {"INFERENCE_BUNDLES": str(SERVED_BUNDLES), "INFERENCE_FAST_PATH": "false"}
    log = tmp_path_factory.mktemp("ordinary") / "service.log"
    with running_service(log, settings=settings) as url:
        yield url


@pytest.fixture(params=["short", "ordinary"])
def url(request: pytest.FixtureRequest) -> str:
    """The URL of a service on either transport."""
    name = "service_url" if request.param == "short" else "ordinary_url"
    found: str = request.getfixturevalue(name)
    return found


@pytest.mark.parametrize(
    ("endpoint", "path", "sent"),
    [
        ("infer", INFER, {"content": IMAGE.tobytes() * 3, "headers": RAW}),
        ("predict", "/predict", {"json": {"images": [IMAGE.tolist()] * 3, "model": "cnn"}}),
        ("predict_image", "/predict/image?model=cnn", {"content": DIGIT, "headers": PNG}),
    ],
)
def test_an_answer_is_counted_and_timed_whole(
    endpoint: str, path: str, sent: dict[str, Any], url: str
) -> None:
    """It counts once, with its images; its duration is between the engine's and the client's."""
    before = _figures(url)
    begun_s = time.perf_counter()
    assert httpx.post(url + path, **sent).status_code == 200
    seconds = time.perf_counter() - begun_s
    after = _figures(url)
    images = 1 if endpoint == "predict_image" else 3
    asked = {"model": "cnn", "endpoint": endpoint}
    assert _grown(before, after, "inference_requests_total", **asked) == 1
    assert _grown(before, after, "inference_samples_total", **asked) == images
    assert _grown(before, after, "inference_request_duration_seconds_count", **asked) == 1
    took_s = _grown(before, after, "inference_request_duration_seconds_sum", **asked)
    queued_s, computed_s = (
        _grown(before, after, f"inference_{name}_seconds_sum", model="cnn")
        for name in ("queue", "compute")
    )
    assert 0 < queued_s + computed_s < took_s < seconds
    assert _grown(before, after, "inference_batch_samples_sum", model="cnn") == images
    assert after["inference_queued_samples", (("model", "cnn"),)] == 0


# A request head that never ends.
ENDLESS = b"GET / HTTP/1.1\r\n" + b"x: yyyyyyyyyyyyyyyyyyyyyyyyyyyyy\r\n" * 3000


def _exchange(url: str, sent: bytes) -> None:
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(sent)
        while connection.recv(65536):
            pass


@pytest.mark.parametrize(
    ("kind", "method", "path", "sent"),
    [
        (ErrorKind.INVALID_INPUT, "POST", INFER, {"content": b"x", "headers": RAW}),
        (ErrorKind.INVALID_INPUT, "POST", "/predict", {"content": b"x"}),
        (ErrorKind.UNKNOWN_MODEL, "POST", "/v2/models/rnn/infer", {"content": b"x"}),
        (ErrorKind.UNKNOWN_PATH, "GET", "/admin", {}),
        (ErrorKind.UNKNOWN_PATH, "GET", "/v2/health/unheard-of", {}),
        (ErrorKind.WRONG_METHOD, "GET", INFER, {}),
        (ErrorKind.WRONG_METHOD, "POST", "/metrics", {}),
        (ErrorKind.TOO_LARGE, "POST", INFER, {"content": bytes(9_000_000), "headers": RAW}),
        (ErrorKind.UNSUPPORTED_MEDIA, "POST", "/predict/image", {"json": {"image": "x"}}),
    ],
)
def test_a_refusal_is_counted_by_its_kind(
    kind: ErrorKind, method: str, path: str, sent: dict[str, Any], url: str
) -> None:
    """It counts once, with the client's status, under no other kind."""
    before = _figures(url)
    assert httpx.request(method, url + path, **sent).status_code == kind.status
    _assert_alone(kind, before, _figures(url))


@pytest.mark.parametrize(
    ("kind", "sent"),
    [
        (ErrorKind.NOT_HTTP, b"\x16\x03\x01 what is this\r\n\r\n"),
        (ErrorKind.HEAD_TOO_LARGE, ENDLESS),
    ],
)
def test_what_never_became_a_request_is_counted_too(kind: ErrorKind, sent: bytes, url: str) -> None:
    """Bytes that are not HTTP and a head that never ends are counted."""
    before = _figures(url)
    _exchange(url, sent)
    _assert_alone(kind, before, _figures(url))


def test_what_took_too_long_is_counted_once(tmp_path: Path) -> None:
    """Whether the batcher or BentoML gives up, the result is 504 and a line in the log."""
    images = 20_000
    settings = {
        "INFERENCE_BUNDLES": str(SERVED_BUNDLES),
        "INFERENCE_ENGINE": "thread",
        "INFERENCE_MAX_BATCH_SAMPLES": "1",
        "INFERENCE_MAX_REQUEST_SAMPLES": str(images),
        "INFERENCE_MAX_QUEUE_SAMPLES": str(images),
        "INFERENCE_MAX_BODY_BYTES": str(images * 784),
        "INFERENCE_TIMEOUT_S": "0.2",
        "INFERENCE_ACCESS_LOG_SHARE": "1",
    }
    log = tmp_path / "service.log"
    with running_service(log, settings=settings) as url:
        for number in (1, 2):
            body, headers = bytes(images * 784), RAW | {"x-request-id": f"late{number}"}
            before = _figures(url)
            assert httpx.post(url + INFER, content=body, headers=headers).status_code == 504
            _assert_alone(ErrorKind.DEADLINE, before, _figures(url))
            line = re.compile(rf'"POST {INFER}" 504 \d+\.\d{{3}} ms late{number}')
            assert wait_for(partial(_is_logged, log, line), within_s=10)


def _is_logged(log: Path, line: re.Pattern[str]) -> bool:
    return line.search(log.read_text()) is not None


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (EngineError(RuntimeError("out of memory")), ErrorKind.ENGINE),
        (KeyError("a bug"), ErrorKind.INTERNAL),
        (OverloadedError("full"), ErrorKind.OVERLOADED),
        (DeadlineError("late"), ErrorKind.DEADLINE),
    ],
)
def test_a_fault_of_the_runtime_is_told_from_one_of_ours(error: Exception, kind: ErrorKind) -> None:
    """Errors of the runtime, of this code and of load have different kinds."""
    assert describe_failure(error, "infer of cnn", b"id").kind is kind


def test_health_and_metrics_are_no_errors(url: str) -> None:
    """Requests for health and metrics do not change the service's figures."""
    before = _figures(url)
    for path in ("/livez", "/readyz", "/v2/health/ready", "/metrics", "/models", "/healthz/deep"):
        assert httpx.get(url + path).status_code == 200
    _assert_alone(None, before, _figures(url))


def _assert_alone(expected: ErrorKind | None, before: Figures, after: Figures) -> None:
    for kind in ErrorKind:
        labels = {"kind": kind.label, "status": str(kind.status)}
        grown = _grown(before, after, "inference_refused_requests_total", **labels)
        assert grown == (kind is expected), kind
