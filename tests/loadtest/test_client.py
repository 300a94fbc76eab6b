"""The client of the paired gate counts every kind of answer, from when a request was due."""

import asyncio
import gc
import itertools
import os
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import pytest

from loadtest.generator.client import Pool, Target, closed_loop, due_times, open_loop, split
from loadtest.machine import cores, pinned
from loadtest.server import free_port

REQUEST = b"POST / HTTP/1.1\r\ncontent-length: 0\r\n\r\n"
ANSWERS = [
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nright",
    b"HTTP/1.1 429 Too Many Requests\r\nRetry-After: 3\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nwrong",
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n",
    b"",  # closes the connection
]


@contextmanager
def _server(answers: list[bytes], pause_s: float = 0) -> Iterator[str]:
    """Gives the answers in turn, each after a pause in which it does nothing else."""
    loop, port, given = asyncio.new_event_loop(), free_port(), [0]
    turn = asyncio.Lock()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await reader.readuntil(b"\r\n\r\n"):
                async with turn:
                    await asyncio.sleep(pause_s)
                answer = answers[given[0] % len(answers)]
                given[0] += 1
                if not answer:
                    break
                writer.write(answer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = loop.run_until_complete(asyncio.start_server(serve, "127.0.0.1", port))
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        loop.call_soon_threadsafe(server.close)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        for task in asyncio.all_tasks(loop):
            task.cancel()
            loop.run_until_complete(asyncio.wait([task]))
        loop.run_until_complete(asyncio.sleep(0))  # connections end a turn after they are closed
        loop.close()


def _judge(headers: Mapping[str, str], body: bytes) -> str | None:
    assert headers["content-length"] == "5"
    return None if body == b"right" else f"body {body!r}"


def test_every_kind_of_answer_is_counted() -> None:
    """A hundred requests: right, refused, wrong, of another status, and closed connections."""
    with _server(ANSWERS) as url:
        load = open_loop(Target(url, REQUEST, _judge), 200, 0.5, connections=8)
    assert load.asked == len(load.late_s) == 100
    assert len(load.accepted_s) == len(load.refused_s) == load.wrong == 20
    assert load.retry_after_s == {3}
    assert load.other["HTTP 503"] == 20
    assert sum(load.other.values()) == 40
    assert load.examples[0] == "body b'wrong'"


def test_latency_counts_from_when_a_request_was_due() -> None:
    """One connection, answers after 20 ms, asked every 10 ms: the last waits for all before it."""
    with _server(ANSWERS[:1], pause_s=0.02) as url:
        load = open_loop(Target(url, REQUEST, _judge), 100, 0.2, connections=1)
    assert len(load.accepted_s) == 20
    assert load.accepted_s[0] < 0.1
    assert load.accepted_s[-1] > 0.18  # twenty answers take 400 ms, and it was due at 190
    assert load.late_s[-1] > 0.15
    assert load.seconds > 0.35  # it could not be offered in 200 ms


def test_a_closed_loop_asks_as_fast_as_it_is_answered() -> None:
    """Answers one after the other, each after 10 ms: at most a hundred a second."""
    with _server(ANSWERS[:1], pause_s=0.01) as url:
        load = closed_loop(Target(url, REQUEST, _judge), 4, 0.5)
        assert 10 < load.answered <= 55


def test_the_time_to_connect_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers of a closed loop count within its seconds alone: not more than were possible."""
    fill = Pool.fill

    async def slowly(pool: Pool) -> None:
        await fill(pool)
        await asyncio.sleep(0.3)

    monkeypatch.setattr(Pool, "fill", slowly)
    with _server(ANSWERS[:1], pause_s=0.01) as url:
        load = closed_loop(Target(url, REQUEST, _judge), 32, 0.3, warm_up_s=1.0)
    assert 5 < load.answered <= 31  # one each 10 ms, for 300 ms


def test_waiting_for_a_connection_takes_no_core() -> None:
    """The only connection waits 500 ms for its answer; the next request waits without work."""
    with _server(ANSWERS[:1], pause_s=0.5) as url:
        gc.freeze()  # the client collects garbage first: not that of the tests before
        begun_s = time.thread_time()
        open_loop(Target(url, REQUEST, _judge), 10, 0.2, connections=1)
        used_s = time.thread_time() - begun_s
        gc.unfreeze()
    assert used_s < 0.25


def test_arrivals_are_those_of_their_seed() -> None:
    """The same for the same seed, others for others."""
    one, again, other = (list(due_times(100, 1.0, "poisson", seed)) for seed in (1, 1, 2))
    assert one == again != other


def test_a_server_that_stops_answering_is_not_waited_for_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All connections wait: after the time that answers are given, that is said."""
    monkeypatch.setattr("loadtest.generator.client.PATIENCE_S", 0.3)
    with _server(ANSWERS[:1], pause_s=30) as url, pytest.raises(TimeoutError, match="none came"):
        open_loop(Target(url, REQUEST, _judge), 100, 5, connections=2)


def test_arrivals_have_the_rate() -> None:
    """Uniform ones exactly, Poisson's about so and with distances that scatter by their mean."""
    assert len(list(due_times(100, 1.0, "uniform"))) == pytest.approx(100, abs=1)
    times = list(due_times(1000, 20.0, "poisson"))
    assert len(times) == pytest.approx(20_000, rel=0.03)
    distances = [b - a for a, b in itertools.pairwise(times)]
    mean = sum(distances) / len(distances)
    scatter = (sum((d - mean) ** 2 for d in distances) / len(distances)) ** 0.5
    assert scatter == pytest.approx(mean, rel=0.05)


def test_an_answer_is_split_when_it_is_whole() -> None:
    """Byte by byte nothing, then status, headers in small letters, and body."""
    whole = ANSWERS[0]
    assert all(split(whole[:i]) is None for i in range(len(whole)))
    answer = split(whole)
    assert answer is not None
    assert (answer.status, answer.body) == (200, b"right")
    assert answer.headers == {"content-length": "5"}
    with pytest.raises(ValueError, match="content-length"):
        split(b"HTTP/1.1 200 OK\r\nx: y\r\n\r\n")


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="no such call here")
def test_service_and_client_have_their_own_cores() -> None:
    """No core is in both sets, and afterwards all are there again."""
    before = os.sched_getaffinity(0)
    services, clients = cores()
    assert not services & clients
    with pinned(clients):
        assert os.sched_getaffinity(0) == (clients or before)
    assert os.sched_getaffinity(0) == before
