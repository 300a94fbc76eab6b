"""Clients that ask all the while that something is done to the service, and count what came of it.

Lost is a request that was sent and got no whole answer. Not so where nobody has read it: a
connection that was never made (refused), and one that was reset before it ever answered (unread).
The kernel makes connections for whoever listens, and resets those that were not taken or not read;
a server that has read the request and ends closes without a reset.
"""

import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException, RemoteDisconnected
from pathlib import Path
from urllib.parse import urlsplit

from loadtest.generator.expectations import Expectations

CLIENTS = 8
TIMEOUT_S = 30.0
PAUSE_S = 0.02
OK = 200


@dataclass
class Count:
    """What came of the requests so far.

    Attributes:
        answered: Right answers.
        wrong: Complaints about answers of 200 that are not.
        statuses: Other answers.
        lost: What became of requests that got no answer, on a connection that had answered before.
        lost_at_once: The same, on a new connection.
        unread: New connections that were reset.
        refused: Connections that were not made.
        longest_gap_s: The longest time without any answer.
    """

    answered: int = 0
    wrong: list[str] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    lost: list[str] = field(default_factory=list)
    lost_at_once: list[str] = field(default_factory=list)
    unread: int = 0
    refused: int = 0
    longest_gap_s: float = 0.0

    def __str__(self) -> str:
        """In one line."""
        others = "".join(f", {n} x HTTP {status}" for status, n in sorted(self.statuses.items()))
        return (
            f"{self.answered} answered, {len(self.wrong)} wrong, "
            f"{len(self.lost) + len(self.lost_at_once)} lost{others}; new connections: "
            f"{self.unread} reset unread, {self.refused} refused; "
            f"longest time without an answer {self.longest_gap_s:.2f} s"
        )


class Load:
    """Clients in threads, each asking golden samples over a connection that it keeps."""

    def __init__(self, url: str, bundle: Path) -> None:
        self.count = Count()
        self._url, self._lock, self._stop = urlsplit(url), threading.Lock(), threading.Event()
        self._expectations = Expectations(bundle, 1, "infer/raw")
        self._last_s = time.monotonic()
        self._threads = [
            threading.Thread(target=self._ask, args=(i,), daemon=True) for i in range(CLIENTS)
        ]

    def start(self) -> None:
        """Begin to ask."""
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        """Stop asking, once what is under way has its answer."""
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, position: int) -> None:
        """One client."""
        connection, used = self._connect(), False
        while not self._stop.is_set():
            if connection is None:
                time.sleep(PAUSE_S)
                connection, used = self._connect(), False
                continue
            position = (position + 1) % len(self._expectations.requests)
            try:
                self._one(connection, position)
                used = True
            except (OSError, HTTPException) as error:
                self._failed(error, used=used)
                connection.close()
            if connection.sock is None:  # closed, by the service behind its answer or by us
                connection, used = self._connect(), False
        if connection is not None:
            connection.close()

    def _failed(self, error: Exception, *, used: bool) -> None:
        reset = isinstance(error, ConnectionResetError | BrokenPipeError)
        with self._lock:
            if used:
                self.count.lost.append(repr(error))
            elif reset and not isinstance(error, RemoteDisconnected):
                self.count.unread += 1
            else:
                self.count.lost_at_once.append(repr(error))

    def _connect(self) -> HTTPConnection | None:
        connection = HTTPConnection(
            str(self._url.hostname), self._url.port or 80, timeout=TIMEOUT_S
        )
        connection.auto_open = 0  # opened here alone
        with suppress(OSError):
            connection.connect()
            return connection
        with self._lock:
            self.count.refused += 1
        return None

    def _one(self, connection: HTTPConnection, position: int) -> None:
        request = self._expectations.requests[position]
        connection.request("POST", request.path, request.content, dict(request.headers))
        answer = connection.getresponse()
        body = answer.read()
        with self._lock:
            now_s = time.monotonic()
            self.count.longest_gap_s = max(self.count.longest_gap_s, now_s - self._last_s)
            self._last_s = now_s
            headers = {name.lower(): value for name, value in answer.getheaders()}
            if answer.status != OK:
                self.count.statuses[answer.status] += 1
            elif complaint := self._expectations.complaint(request, body, headers):
                self.count.wrong.append(complaint)
            else:
                self.count.answered += 1


@contextmanager
def load(url: str, bundle: Path) -> Iterator[Count]:
    """Ask for the time of the block; the count is whole behind it."""
    asking = Load(url, bundle)
    asking.start()
    try:
        yield asking.count
    finally:
        asking.end()
