"""Sends prepared requests at given moments and records the timings in each answer's headers.

This client is minimal. Latency counts from the moment of sending, which is recorded too, so that
a simulation can use exactly the same arrivals. To measure services, use ``loadtest run``.
"""

import asyncio
import re
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import urlsplit

import uvloop

from loadtest.capacity.points import MS
from loadtest.errors import LoadTestError
from loadtest.generator.expectations import Expectations

TIMEOUT_S = 10.0
REUSE_S = 5.0  # the server or the proxy may have closed connections that were idle for longer
_Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]
_TIMING = re.compile(r"queue;dur=([\d.]+), compute;dur=([\d.]+)")


class ClientError(LoadTestError):
    """The service did not answer, or its answer is wrong."""


@dataclass(frozen=True)
class Timing:
    """The timing of one answered request, in milliseconds except for ``sent_s``.

    Attributes:
        sent_s: Moment of sending, in seconds from the beginning.
        latency_ms: Time from sending to the complete answer.
        queue_ms: Time in the service's queue; ``compute_ms`` is the time in its engine.
        batch_samples: Number of samples in the request's batch.
        answer_bytes: Size of the answer, including status line and headers.
    """

    sent_s: float
    latency_ms: float
    queue_ms: float
    compute_ms: float
    batch_samples: int
    answer_bytes: int


def send_in_turn(url: str, expectations: Expectations, count: int) -> list[Timing]:
    """Send requests one after the other, each once the previous one was answered.

    Raises:
        ClientError: An answer is missing or wrong.
    """
    return uvloop.run(_Client(url, expectations).in_turn(count))


def send_at(url: str, expectations: Expectations, due_s: Sequence[float]) -> list[Timing]:
    """Send requests at given moments, independently of answers.

    Args:
        url: URL of the service or the proxy.
        expectations: The requests, which are sent in rotation, and the judge of the answers.
        due_s: Moments of sending, in seconds from the beginning, ascending.

    Raises:
        ClientError: An answer is missing or wrong.
    """
    return uvloop.run(_Client(url, expectations).at(due_s))


class _Client:
    """An HTTP client that reuses its connections, with one request at a time on each."""

    def __init__(self, url: str, expectations: Expectations) -> None:
        where = urlsplit(url)
        self._host, self._port = str(where.hostname), where.port or 80
        self._expectations = expectations
        self._wires = [request.wire() for request in expectations.requests]
        self._open: list[asyncio.StreamWriter] = []
        self._idle: list[tuple[float, _Connection]] = []  # moment since which it is idle
        self._begin_s = 0.0

    async def in_turn(self, count: int) -> list[Timing]:
        self._begin_s = time.perf_counter()
        try:
            return [await self._ask(number) for number in range(count)]
        finally:
            await self._close()

    async def at(self, due_s: Sequence[float]) -> list[Timing]:
        self._begin_s = time.perf_counter()
        try:
            async with asyncio.TaskGroup() as group:
                tasks = []
                for number, at_s in enumerate(due_s):
                    await asyncio.sleep(self._begin_s + at_s - time.perf_counter())
                    tasks.append(group.create_task(self._ask(number)))
            return [task.result() for task in tasks]
        except* ClientError as errors:
            raise errors.exceptions[0] from None
        finally:
            await self._close()

    async def _ask(self, number: int) -> Timing:
        position = number % len(self._wires)
        try:
            async with asyncio.timeout(TIMEOUT_S):
                connection = await self._connect()
                sent_s = time.perf_counter()
                connection[1].write(self._wires[position])
                head = (await connection[0].readuntil(b"\r\n\r\n")).decode()
                headers = _parse(head)
                body = await connection[0].readexactly(int(headers["content-length"]))
        except (OSError, EOFError, LookupError, ValueError) as error:
            raise ClientError(f"{self._host}:{self._port} did not answer: {error!r}") from error
        latency_ms = (time.perf_counter() - sent_s) * MS
        self._idle.append((time.perf_counter(), connection))
        if (wrong := self._judge(position, head, headers, body)) is not None:
            raise ClientError(f"{self._host}:{self._port} gave a wrong answer: {wrong}")
        timing = _TIMING.search(headers.get("server-timing", ""))
        if timing is None:
            raise ClientError(
                "an answer has no server-timing header; set INFERENCE_ANSWER_HEADERS=true"
            )
        return Timing(
            sent_s=sent_s - self._begin_s,
            latency_ms=latency_ms,
            queue_ms=float(timing[1]),
            compute_ms=float(timing[2]),
            batch_samples=int(headers["x-batch-size"]),
            answer_bytes=len(head) + len(body),
        )

    def _judge(self, position: int, head: str, headers: dict[str, str], body: bytes) -> str | None:
        status = head.split(" ", 2)[1]
        if status != "200":
            return f"status {status}: {body[:200].decode(errors='replace')}"
        request = self._expectations.requests[position]
        return self._expectations.complaint(request, body, headers)

    async def _connect(self) -> _Connection:
        while self._idle:
            since_s, connection = self._idle.pop()
            if time.perf_counter() - since_s < REUSE_S:
                return connection
            connection[1].close()
        connection = await asyncio.open_connection(self._host, self._port)
        self._open.append(connection[1])
        return connection

    async def _close(self) -> None:
        for writer in self._open:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()


def _parse(head: str) -> dict[str, str]:
    """Parse an answer's headers; their names become lower case."""
    pairs = (line.partition(":") for line in head.split("\r\n")[1:] if line)
    return {name.lower(): value.strip() for name, _, value in pairs}
