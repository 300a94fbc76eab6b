"""A service that is told to stop answers every request that reached it."""

import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field

import psutil
import pytest

from tests.service.processes import main_process
from tests.service.wire import (
    TRANSPORTS,
    Connection,
    CutError,
    find_mistake,
    infer,
    running_services,
)

CLIENTS = 16
BEFORE_S = 0.7
ENDS_WITHIN_S = 15.0
SHOWN_EVENTS = 25
DRAIN = {"INFERENCE_DRAIN_S": "1"}
VARIANTS = {
    "loop": DRAIN | {"INFERENCE_ENGINE": "loop"},
    "thread": DRAIN | {"INFERENCE_ENGINE": "thread"},
    "ordinary": DRAIN | TRANSPORTS["ordinary"],
    "two workers": DRAIN | {"INFERENCE_WORKERS": "2"},
}


@pytest.fixture(scope="module")
def urls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A service of each variant; each variant's test stops its service."""
    with running_services(tmp_path_factory.mktemp("drain"), VARIANTS) as urls:
        yield urls


@dataclass
class Story:
    """Events of all clients, in seconds since SIGTERM (negative before it)."""

    url: str
    told_s: float = float("inf")
    give_up_s: float = float("inf")
    answers_before: int = 0
    answers_after: int = 0
    refused_s: list[float] = field(default_factory=list)
    cuts: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def note_answer(self) -> None:
        """Count a right answer."""
        with self.lock:
            if time.monotonic() < self.told_s:
                self.answers_before += 1
            else:
                self.answers_after += 1

    def note_refusal(self) -> None:
        """Note that a connection was refused."""
        with self.lock:
            self.refused_s.append(time.monotonic() - self.told_s)

    def note_cut(self, client: str, what: str) -> None:
        """Note a connection that ended in an invalid way."""
        with self.lock:
            self.cuts.append(f"{time.monotonic() - self.told_s:+.3f} s {client}: {what}")

    def describe(self) -> str:
        """The number of cuts and the sequence of events."""
        refused = ", ".join(f"{seconds:+.3f}" for seconds in sorted(self.refused_s))
        lines = [
            f"{len(self.cuts)} cuts; {self.answers_before} answers before SIGTERM and "
            f"{self.answers_after} after it; {len(self.refused_s)} of {CLIENTS} clients were "
            f"refused in the end, at: {refused or 'never'}",
            *self.cuts[:SHOWN_EVENTS],
        ]
        if len(self.cuts) > SHOWN_EVENTS:
            lines.append(f"... and {len(self.cuts) - SHOWN_EVENTS} more")
        return "\n".join(lines)


def _ask_until_refused(story: Story, number: int) -> None:
    """Send without pause; clients of even numbers keep their connections, others do not."""
    keeps = number % 2 == 0
    client, asked = f"client {number} ({'keep-alive' if keeps else 'new connections'})", 0
    while time.monotonic() < story.give_up_s:
        try:
            connection = Connection(story.url, timeout_s=5)
        except ConnectionRefusedError:
            story.note_refusal()
            return
        except OSError as error:
            story.note_cut(client, f"{error!r} while it connected")
            continue
        with connection:
            on_it = 0
            try:
                while time.monotonic() < story.give_up_s:
                    position = number + asked
                    asked, on_it = asked + 1, on_it + 1
                    connection.send(infer("cnn", 1, position))
                    answer = connection.receive()
                    if mistake := find_mistake(answer, "cnn", 1, position):
                        story.note_cut(client, f"wrong answer to request {asked}: {mistake}")
                    else:
                        story.note_answer()
                    if not keeps or answer.headers.get("connection", "").lower() == "close":
                        break
            except CutError as error:
                story.note_cut(client, f"{error} to request {on_it} of its connection")


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_service_that_stops_cuts_no_connection(variant: str, urls: dict[str, str]) -> None:
    """From SIGTERM until connections are refused, every request on any connection is answered."""
    story = Story(urls[variant])
    main = main_process(story.url)
    threads = [
        threading.Thread(target=_ask_until_refused, args=(story, number), daemon=True)
        for number in range(CLIENTS)
    ]
    for thread in threads:
        thread.start()
    time.sleep(BEFORE_S)
    story.give_up_s = time.monotonic() + ENDS_WITHIN_S
    story.told_s = time.monotonic()
    main.terminate()
    for thread in threads:
        thread.join(ENDS_WITHIN_S + 10)
    with suppress(psutil.TimeoutExpired):
        main.wait(ENDS_WITHIN_S)
    assert not story.cuts, story.describe()
    assert len(story.refused_s) == CLIENTS, story.describe()
    assert min(story.refused_s) > 0, story.describe()
    assert story.answers_before > CLIENTS, story.describe()
    assert story.answers_after > CLIENTS, story.describe()
    assert not main.is_running(), "the service still runs"
