"""An open-loop client that sends each request at its due time and checks every answer."""

import asyncio
import gc
import signal
import time
from collections import deque
from dataclasses import dataclass, field
from itertools import count
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import cast

import httpx
import numpy as np
import uvloop

from tests.service.answers import parsed, read_logits
from tests.service.wire import GOLDEN, LARGEST_ERROR, infer

CONNECTIONS = 16


@dataclass
class Answered:
    """A client's results.

    Attributes:
        sent_s: When each request was due, in seconds of ``time.time``.
        took_s: Seconds from its due time to its answer.
        versions: How many answers each version gave.
        wrong: Answers that are not the model's; ``failed`` requests got none or a refusal.
    """

    sent_s: list[float] = field(default_factory=list)
    took_s: list[float] = field(default_factory=list)
    versions: dict[str, int] = field(default_factory=dict)
    wrong: int = 0
    failed: int = 0
    failures: list[str] = field(default_factory=list)


class _Connection(asyncio.Protocol):
    """Sends one request at a time; a lost connection is a failed request and is reopened."""

    def __init__(self, client: "OpenLoopClient") -> None:
        self._client = client
        self._received = b""
        self._sample, self._due_s = -1, 0.0
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._client.take(self)

    def send(self, sample: int, due_s: float) -> None:
        self._sample, self._due_s, self._received = sample, due_s, b""
        if self._transport is not None:
            self._transport.write(self._client.requests[sample])

    def data_received(self, data: bytes) -> None:
        self._received += data
        answer = parsed(self._received)
        if answer is None:
            return
        self._client.receive(answer, self._sample, self._due_s)
        self._sample = -1
        if answer.headers.get("connection") != "close":
            self._client.take(self)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._sample >= 0:
            self._client.fail(f"the connection ended: {exc!r}")
        self._client.reopen()


class OpenLoopClient:
    """Sends a model's golden samples, and compares the answers with the reference's.

    Attributes:
        requests: The bytes of each golden sample's request.
    """

    def __init__(self, url: str, model: str) -> None:
        """Prepare the requests for the service at a URL."""
        self._host, self._port = url.removeprefix("http://").split(":")
        golden = GOLDEN[model].fp32["logits"]
        self._golden, self._scale = golden, np.abs(golden).max(axis=1)
        self.requests = [infer(model, 1, start) for start in range(len(golden))]
        self.found = Answered()
        self._idle: deque[_Connection] = deque()
        self._due: deque[tuple[int, float]] = deque()
        self._is_closed_loop = False
        self._numbers = count()
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_stopping = False

    def take(self, connection: _Connection) -> None:
        """Use a free connection."""
        if self._is_closed_loop and not self._due:
            self._due.append((next(self._numbers) % len(self.requests), time.time()))
        if self._due:
            connection.send(*self._due.popleft())
        else:
            self._idle.append(connection)

    def receive(self, answer: httpx.Response, sample: int, due_s: float) -> None:
        """Check one answer."""
        found, now_s = self.found, time.time()
        if answer.status_code != 200:
            self.fail(f"{answer.status_code}: {answer.text[:200]}")
            return
        error = np.abs(read_logits(answer)[0] - self._golden[sample]).max() / self._scale[sample]
        found.wrong += not error <= LARGEST_ERROR
        version = answer.headers["x-model-version"]
        found.versions[version] = found.versions.get(version, 0) + 1
        found.sent_s.append(due_s)
        found.took_s.append(now_s - due_s)

    def fail(self, reason: str) -> None:
        """Count a request without an answer."""
        self.found.failed += 1
        self.found.failures.append(reason)

    def reopen(self) -> None:
        """Open a connection in place of one that ended."""
        if not self._is_stopping:
            task = asyncio.ensure_future(self._open())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def run(self, rate: float | None, stop: asyncio.Event) -> Answered:
        """Send requests until ``stop`` is set.

        Args:
            rate: Requests per second; None: each connection sends again at once (closed loop).
            stop: Ends the run.
        """
        self._is_closed_loop = rate is None
        for _ in range(CONNECTIONS):
            await self._open()
        start_s, sent = time.time(), 0
        while not stop.is_set():
            await asyncio.sleep(0.0005)
            if rate is None:
                continue
            due = int((time.time() - start_s) * rate)
            while sent < due:
                item = (next(self._numbers) % len(self.requests), start_s + sent / rate)
                sent += 1
                while self._idle and self._idle[0]._transport.is_closing():  # type: ignore[union-attr]
                    self._idle.popleft()
                if self._idle:
                    self._idle.popleft().send(*item)
                else:
                    self._due.append(item)
        self._is_closed_loop = False
        await asyncio.sleep(1)  # requests in flight are answered
        self.found.failed += len(self._due)
        self._is_stopping = True
        return self.found

    async def _open(self) -> None:
        loop = asyncio.get_running_loop()
        while not self._is_stopping:
            try:
                await loop.create_connection(lambda: _Connection(self), self._host, int(self._port))
            except OSError:
                await asyncio.sleep(0.05)
            else:
                return


class LoadProcess:
    """An ``OpenLoopClient`` in a process of its own, so that what the test does cannot delay it."""

    def __init__(self, url: str, model: str, rate: float | None) -> None:
        """Start sending, see ``OpenLoopClient.run``."""
        context = get_context("spawn")
        self._results, sender = context.Pipe(duplex=False)
        self._process = context.Process(target=_send, args=(url, model, rate, sender))
        self._process.start()
        sender.close()  # otherwise its end would not be noticed
        self._results.recv()  # it is sending now

    def stop(self) -> Answered:
        """Stop sending, and return the results."""
        self._process.terminate()  # by SIGTERM
        found: Answered = self._results.recv()
        self._process.join()
        return found


def _send(url: str, model: str, rate: float | None, results: Connection) -> None:
    """Send requests until SIGTERM."""

    async def run() -> Answered:
        stop = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
        client = OpenLoopClient(url, model)
        gc.freeze()
        results.send(None)
        return await client.run(rate, stop)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        results.send(runner.run(run()))
