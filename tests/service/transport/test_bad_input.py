"""Any input is answered correctly or refused with a reason, and the service keeps working."""

import contextlib
import http.client
import importlib.metadata
import json
import platform
import random
import re
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest

from export.bundle.golden import Golden
from loadtest.server import REPOSITORY
from tests.service.answers import read_logits
from tests.service.transport.bad import images, paths, predict, tensors, wire
from tests.service.transport.bad.rows import LIMIT_BYTES, Row, request
from tests.tiny import SERVED_BUNDLES

GOLDEN = {name: Golden.load(SERVED_BUNDLES / name / "golden.npz") for name in ("cnn", "mlp")}
ROWS = [
    *(*predict.ROWS, *tensors.ROWS, *images.ROWS, *paths.ROWS, *wire.ROWS),
    *predict.COSTLY,
]
TIMEOUT_S = 10
LONGEST_ERROR = 600
PARSERS_OWN = "Invalid HTTP request received."
UNKNOWN_PATHS, AT_ONCE = 10_000, 100
# Text that would reveal the machine, Python or the service's packages.
LEAKS = [
    *("Traceback", 'File "', "site-packages", ".py", "Python", "python", "object at 0x"),
    *("sys.", "Plugin", "NoneType", "instance of", "pydantic", "uvicorn", "starlette", "numpy"),
    *(str(REPOSITORY), str(Path.home()), sys.prefix, platform.python_version()),
    *(importlib.metadata.version(name) for name in ("bentoml", "uvicorn", "starlette", "pydantic")),
]


@pytest.fixture(scope="module")
def client(service_url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=service_url, timeout=30) as open_client:
        yield open_client


class Answer(NamedTuple):
    """A received response."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes


def _connected(url: str) -> socket.socket:
    host, port = url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)), timeout=TIMEOUT_S)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def _send(connection: socket.socket, row: Row) -> None:
    size = row.piece or len(row.sent)
    # The service may refuse and close before everything was sent.
    with contextlib.suppress(ConnectionError):
        for start in range(0, len(row.sent), size):
            connection.sendall(row.sent[start : start + size])


def _answer(connection: socket.socket, method: str) -> Answer:
    with http.client.HTTPResponse(connection, method=method) as answer:
        answer.begin()
        return Answer(answer.status, answer.headers, answer.read())


def _error(answer: Answer) -> str:
    """The message of a refusal, which always has the same JSON form."""
    assert answer.headers["content-type"] == "application/json"
    content = json.loads(answer.body)
    assert list(content) == ["error"]
    message = content["error"]
    assert isinstance(message, str)
    assert 0 < len(message) <= LONGEST_ERROR
    return message


def _answers_rightly(client: httpx.Client, model: str, position: int) -> bool:
    image = GOLDEN[model].inputs["images"][position]
    headers = {"inference-header-content-length": "0"}
    answer = client.post(f"/v2/models/{model}/infer", content=image.tobytes(), headers=headers)
    return bool(read_logits(answer).argmax() == GOLDEN[model].labels()[position])


@pytest.mark.parametrize("row", ROWS, ids=[row.name for row in ROWS])
def test_every_row_gets_its_answer_and_the_next_request_a_right_one(
    row: Row, service_url: str, client: httpx.Client
) -> None:
    """The status is exact, and {"error": ...} names the fault and reveals nothing else."""
    method = row.sent.split(b" ", 1)[0].decode("ascii", "replace")
    with _connected(service_url) as connection:
        _send(connection, row)
        answer = _answer(connection, method)
    body = answer.body
    assert answer.status in row.statuses, body[:500]
    if answer.status < 300:
        assert all(re.search(words, body.decode("latin-1")) for words in row.named), body[:500]
    elif method != "HEAD" and answer.status >= 400:
        message = _error(answer)
        if not (row.parser and message == PARSERS_OWN):
            assert [words for words in row.named if not re.search(words, message)] == [], message
        assert [leak for leak in LEAKS if leak in message] == [], message
    assert answer.status != 405 or answer.headers["allow"]
    assert "server" not in answer.headers
    assert _answers_rightly(client, "cnn", len(row.name) % len(GOLDEN["cnn"].inputs["images"]))


def test_the_table_is_long_and_its_names_are_unique() -> None:
    """The table has at least 170 rows, each with its own name."""
    names = [row.name for row in ROWS]
    assert len(names) >= 170
    assert [name for name in set(names) if names.count(name) > 1] == []


def test_who_announces_more_than_comes_gets_no_answer_and_holds_no_connection(
    service_url: str,
) -> None:
    """If Content-Length is too large, the connection is closed when the client stops sending."""
    with _connected(service_url) as connection:
        connection.sendall(request("POST", "/predict", b"{}").replace(b": 2", b": 9"))
        connection.shutdown(socket.SHUT_WR)
        assert b" 200 " not in connection.recv(65_536)


def test_who_sent_too_much_is_refused_and_the_connection_closed(service_url: str) -> None:
    """A complete body over the limit gets 413, and the connection closes soon after."""
    sent = request("POST", "/predict", bytes(LIMIT_BYTES + 500_000))
    received = b""
    with _connected(service_url) as connection, contextlib.suppress(ConnectionError):
        _send(connection, Row("", sent, ()))
        while part := connection.recv(65_536):
            received += part
    assert received.startswith(b"HTTP/1.1 413 ")
    assert received.count(b"HTTP/1.1 ") == 1


def _metrics(client: httpx.Client) -> list[str]:
    return client.get("/metrics").text.splitlines()


def test_ten_thousand_unknown_paths_leave_the_metrics_as_long_as_they_were(
    service_url: str, client: httpx.Client
) -> None:
    """Each path gets 404, and /metrics neither grows nor names any of them."""
    generator = random.Random(7)  # noqa: S311 - repeatable, not secret
    before = _metrics(client)
    with _connected(service_url) as connection:
        for _ in range(UNKNOWN_PATHS // AT_ONCE):
            scan = [f"/scan/{generator.randbytes(8).hex()}" for _ in range(AT_ONCE)]
            connection.sendall(b"".join(request("GET", path) for path in scan))
            received = b""
            while received.count(b'"}') < AT_ONCE:
                part = connection.recv(1 << 18)
                assert part
                received += part
            assert received.count(b"HTTP/1.1 404 ") == AT_ONCE
    after = _metrics(client)
    assert len(after) <= len(before) + 2
    assert not [line for line in after if "scan" in line]


def test_after_all_of_it_the_service_still_answers_rightly(client: httpx.Client) -> None:
    """Every golden image of both models gets its label, and the deep health check passes."""
    for model, golden in GOLDEN.items():
        body = {"images": golden.inputs["images"].tolist(), "model": model}
        labels = [
            found["label"] for found in client.post("/predict", json=body).json()["predictions"]
        ]
        assert labels == [str(label) for label in golden.labels()]
    assert client.get("/healthz/deep").status_code == 200
