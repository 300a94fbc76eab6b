"""The no-op server answers each request once, however it is split; the slow one can stall."""

import http.client
import json
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from urllib.parse import urlsplit

import pytest

from loadtest.measure.noop import noop_server
from loadtest.server import REPOSITORY
from tests.loadtest.slow_server import slow_server

BODY = b"{}"
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
READY = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
PLAIN = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n\r\n\r\nPOST "
EMPTY = b"POST / HTTP/1.1\r\n\r\n"
PROBE = b"GET /readyz HTTP/1.1\r\n\r\n"
OTHER = b"GET /predict HTTP/1.1\r\n\r\n"


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with noop_server() as found:
        yield found


def _connect(url: str) -> socket.socket:
    where = urlsplit(url)
    return socket.create_connection((str(where.hostname), int(where.port or 0)), timeout=10)


def _read(connection: socket.socket, size: int) -> bytes:
    """Read ``size`` bytes, or fewer if the connection is closed."""
    found = b""
    while len(found) < size and (more := connection.recv(size - len(found))):
        found += more
    return found


def test_one_connection_asks_again_and_again(url: str) -> None:
    """Twenty requests of any size over one connection get the same JSON."""
    where = urlsplit(url)
    with closing(http.client.HTTPConnection(str(where.hostname), where.port, timeout=10)) as client:
        client.connect()
        first = client.sock
        for size in (0, 1, 100_000, 3_000_000) * 5:
            client.request("POST", "/predict", b"x" * size)
            answer = client.getresponse()
            assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
            assert answer.read() == BODY
        assert client.sock is first


def test_requests_in_one_write_are_answered_in_order(url: str) -> None:
    """Pipelined requests of every kind each get their own answer."""
    requests = [PLAIN, PROBE, EMPTY, OTHER, PLAIN]
    missing = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"
    answers = [ANSWER, READY, ANSWER, missing, ANSWER]
    with _connect(url) as connection:
        connection.sendall(b"".join(requests) * 10)
        expected = b"".join(answers) * 10
        assert _read(connection, len(expected)) == expected


@pytest.mark.parametrize("request_bytes", [PLAIN, EMPTY])
def test_a_request_that_comes_byte_by_byte_is_answered_when_it_is_whole(
    url: str, request_bytes: bytes
) -> None:
    """There is no answer before the request's last byte, and one answer after it."""
    with _connect(url) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for i in range(len(request_bytes) - 1):
            connection.sendall(request_bytes[i : i + 1])
        connection.settimeout(0.1)
        with pytest.raises(TimeoutError):
            connection.recv(1)
        connection.settimeout(10)
        connection.sendall(request_bytes[-1:])
        assert _read(connection, len(ANSWER)) == ANSWER


@pytest.mark.parametrize("cut", [1, 2, 3, 7, 64])
def test_it_does_not_matter_where_a_stream_is_cut(url: str, cut: int) -> None:
    """Requests split into pieces of any size get the same answers."""
    stream = (EMPTY + PLAIN) * 3
    with _connect(url) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for i in range(0, len(stream), cut):
            connection.sendall(stream[i : i + cut])
        assert _read(connection, 6 * len(ANSWER)) == 6 * ANSWER


def test_requests_take_their_time_one_after_the_other() -> None:
    """Ten simultaneous requests of 20 ms on two connections take 200 ms."""
    with slow_server(service_s=0.02) as url, _connect(url) as one, _connect(url) as other:
        size = len(ANSWER)
        start_s = time.monotonic()
        for connection in (one, other):
            connection.sendall(EMPTY * 5)
        assert _read(one, size).endswith(b"{}")
        assert time.monotonic() - start_s >= 0.02
        assert _read(one, 4 * size).endswith(b"{}")
        assert _read(other, 5 * size).endswith(b"{}")
        assert time.monotonic() - start_s >= 0.2


def test_it_stalls_once_and_answers_all_that_waited_at_once() -> None:
    """Requests during the stall are answered together after it; others are answered at once."""
    stall_at_s, stall_s = 0.3, 1.2
    answered_s: list[float] = []

    def ask(url: str) -> None:
        with urllib.request.urlopen(url, b"{}") as answer:
            assert json.load(answer) == {}
        answered_s.append(time.monotonic())

    with slow_server(stall_at_s=stall_at_s, stall_s=stall_s) as url:
        time.sleep(0.4)  # the clock starts with the first request, not with the server
        first_s = time.monotonic()
        ask(url)
        assert answered_s.pop() - first_s < stall_s
        time.sleep(stall_at_s + 0.1)
        asking = [threading.Thread(target=ask, args=(url,), daemon=True) for _ in range(4)]
        for thread in asking:
            thread.start()
            time.sleep(0.2)
        for thread in asking:
            thread.join(10)
        assert len(answered_s) == 4
        assert min(answered_s) - first_s >= stall_at_s + stall_s
        assert max(answered_s) - min(answered_s) < 0.4  # they were sent over 600 ms
        again_s = time.monotonic()
        ask(url)
        assert answered_s.pop() - again_s < stall_s


def test_a_probe_starts_no_clock() -> None:
    """/readyz is answered; only the first POST starts the time until the stall."""
    with slow_server(stall_at_s=0.0, stall_s=0.4) as url:
        with urllib.request.urlopen(f"{url}/readyz") as answer:
            assert answer.status == 200
        start_s = time.monotonic()
        with urllib.request.urlopen(url, b"{}"):
            assert time.monotonic() - start_s >= 0.4


def test_the_server_ends_with_its_block() -> None:
    """After the block the port is closed; on an occupied port the server exits with an error."""
    with noop_server() as url:
        port = str(urlsplit(url).port)
        command = [sys.executable, "-m", "loadtest.measure.noop", "--port", port]
        ran = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=20)
        assert ran.returncode != 0
        assert "address already in use" in ran.stderr
    with pytest.raises(ConnectionRefusedError):
        _connect(url)
