"""What the compose test counts, told apart by real servers that answer, end or do not listen."""

import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from loadtest.server import free_port
from tests.containers.load import CLIENTS, Count, load
from tests.tiny import SERVED_BUNDLES

BUNDLE = SERVED_BUNDLES / "cnn"
PIXELS = 28 * 28
WAIT_S = 0.3


@contextmanager
def _server(each: Callable[[socket.socket], None]) -> Iterator[str]:
    """Do this with each connection."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                with connection, suppress(OSError):
                    each(connection)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        listening.shutdown(socket.SHUT_RDWR)
        thread.join()


def _read_request(connection: socket.socket) -> None:
    """All of it, or an OSError if the client ends before."""
    connection.settimeout(5)
    received = b""
    while len(received.partition(b"\r\n\r\n")[2]) < PIXELS:
        more = connection.recv(4096)
        if not more:
            raise ConnectionAbortedError
        received += more


def _reset_at_the_end(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def _count(url: str) -> Count:
    with load(url, BUNDLE) as count:
        time.sleep(WAIT_S)
    return count


def test_right_answers_of_the_real_service_are_counted(service_url: str) -> None:
    """All requests of all clients are answered, and the longest pause is noticed."""
    count = _count(service_url)
    assert count.answered > CLIENTS
    assert 0 < count.longest_gap_s < 2 * WAIT_S
    assert str(count).startswith(f"{count.answered} answered, 0 wrong, 0 lost; ")


def test_a_request_that_was_read_and_got_no_answer_is_lost() -> None:
    """A server that takes the whole request and closes has lost it."""
    with _server(_read_request) as url:
        count = _count(url)
    assert count.lost_at_once
    assert not count.answered
    assert not count.unread


def test_a_request_that_nobody_read_is_not_lost() -> None:
    """A reset says that nothing was read; a port where nobody listens refuses."""
    with _server(_reset_at_the_end) as url:
        count = _count(url)
    assert count.unread
    assert not count.lost
    assert not count.lost_at_once
    refused = _count(f"http://127.0.0.1:{free_port()}")
    assert refused.refused >= CLIENTS
    assert not refused.unread


def test_a_loss_on_a_connection_that_had_answered_is_lost_however_it_ends() -> None:
    """The first answer comes, the second request is met by a reset: lost."""
    body = b'{"error": "busy"}'
    answer = b"HTTP/1.1 503 Busy\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)

    def answer_once(connection: socket.socket) -> None:
        _read_request(connection)
        connection.sendall(answer)
        connection.recv(1)
        _reset_at_the_end(connection)

    with _server(answer_once) as url:
        count = _count(url)
    assert count.lost
    assert count.statuses.keys() == {503}
    assert not count.answered


def test_a_wrong_answer_is_seen() -> None:
    """An answer of 200 that is not the bundle's is wrong, and not an answer."""
    answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}"

    def lie(connection: socket.socket) -> None:
        _read_request(connection)
        connection.sendall(answer)

    with _server(lie) as url:
        count = _count(url)
    assert count.wrong
    assert not count.answered
