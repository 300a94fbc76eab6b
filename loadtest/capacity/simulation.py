"""Discrete-event simulation of requests: load balancing, batching and the loss of replicas.

A replica is one core. Each batch takes all requests that arrived while the previous one ran, up to
``Points.batch_requests``; its duration is drawn at random from ``Points.batch_ms``. A request that
finds the queue full is refused, as the service does (429). A request's time outside the replica's
core is drawn from ``Points.path_ms`` and added to its latency.

Each request goes through one of several proxies, chosen at random. A proxy sees all replicas, but
only the unanswered requests that it has sent itself. ``round-robin`` chooses the next replica;
``least-loaded`` the one with the fewest unanswered requests and, of several, the longest unused
(HAProxy's ``leastconn``).
"""

import heapq
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

import numpy as np
import numpy.typing as npt

from loadtest.capacity.points import MS, Floats, Points
from loadtest.errors import LoadTestError

Policy = Literal["round-robin", "least-loaded"]
POLICIES: tuple[Policy, ...] = get_args(Policy)
ANSWERED, REFUSED, LOST = 0, 1, 2


class SimulationError(LoadTestError):
    """The requested scenario cannot be simulated."""


@dataclass(frozen=True)
class Loss:
    """Replicas that fail abruptly at one moment, as when a node or a zone is lost.

    Attributes:
        at_s: Moment of the loss.
        replicas: Number of lost replicas.
        detect_s: Time from the loss until the balancer sends nothing to them any more.
        connect_s: Time after which a request sent to them meanwhile is retried elsewhere.
    """

    at_s: float
    replicas: int
    detect_s: float
    connect_s: float


@dataclass(frozen=True)
class Outcome:
    """The outcome of each request, in the order of arrival.

    Attributes:
        arrived_s: Moment of arrival.
        latency_ms: Latency of answered requests; NaN for others.
        fate: ANSWERED, REFUSED, or LOST with its replica.
        busy_share: Share of the time until the last answer in which replicas were busy, averaged
            over all replicas that ever existed.
        batch_requests: Requests in a request's batch, averaged over the answered requests.
    """

    arrived_s: Floats
    latency_ms: Floats
    fate: npt.NDArray[np.int8]
    busy_share: float
    batch_requests: float

    def count(self, fate: int) -> int:
        """The number of requests with this fate."""
        return int(np.sum(self.fate == fate))

    def percentile_ms(self, share: float, since_s: float = 0.0, until_s: float = np.inf) -> float:
        """A latency percentile (0..100) of the answered requests that arrived in an interval.

        NaN if there are none.
        """
        inside = (self.arrived_s >= since_s) & (self.arrived_s < until_s) & (self.fate == ANSWERED)
        if not np.any(inside):
            return float("nan")
        return float(np.percentile(self.latency_ms[inside], share))


def poisson_arrivals(rate_per_s: float, duration_s: float, seed: int) -> Floats:
    """Moments of Poisson arrivals, seconds from 0, in ascending order."""
    generator = np.random.default_rng(seed)
    count = generator.poisson(rate_per_s * duration_s)
    return np.sort(generator.random(count)) * duration_s


class _Balancer(Protocol):
    """Chooses the replica of each request."""

    def choose(self) -> int: ...

    def sent(self, replica: int, count: int) -> None: ...

    def answered(self, replica: int, count: int) -> None: ...

    def add(self, replica: int) -> None: ...

    def remove(self, replica: int) -> None: ...


class _RoundRobin:
    """Chooses the next of the replicas that are not known to be lost."""

    def __init__(self, replicas: int, first: int) -> None:
        self._order = deque(range(replicas))
        self._order.rotate(-first)

    def choose(self) -> int:
        chosen = self._order[0]
        self._order.rotate(-1)
        return chosen

    def sent(self, replica: int, count: int) -> None:
        """Do nothing: this policy ignores the number of unanswered requests."""

    answered = sent

    def add(self, replica: int) -> None:
        self._order.append(replica)

    def remove(self, replica: int) -> None:
        self._order.remove(replica)


class _LeastLoaded:
    """Chooses the replica with the fewest unanswered requests, then the longest unused one.

    It keeps a heap of (unanswered, turn, replica); only a replica's newest entry is valid.
    """

    def __init__(self, replicas: int, first: int) -> None:
        self._valid = [(replica - first) % replicas for replica in range(replicas)]  # turns
        self._heap = [(0, turn, replica) for replica, turn in enumerate(self._valid)]
        heapq.heapify(self._heap)
        self._turn = replicas

    def add(self, replica: int) -> None:
        self._valid.append(0)
        self.sent(replica, 0)

    def choose(self) -> int:
        heap, valid = self._heap, self._valid
        while valid[heap[0][2]] != heap[0][1]:
            heapq.heappop(heap)
        return heap[0][2]

    def sent(self, replica: int, count: int) -> None:
        self._turn += 1
        self._valid[replica] = self._turn
        heapq.heappush(self._heap, (count, self._turn, replica))

    def answered(self, replica: int, count: int) -> None:
        if self._valid[replica] >= 0:
            self.sent(replica, count)

    def remove(self, replica: int) -> None:
        self._valid[replica] = -1


_BALANCERS: dict[Policy, Callable[[int, int], _Balancer]] = {
    "round-robin": _RoundRobin,
    "least-loaded": _LeastLoaded,
}
_DONE, _AGAIN, _LOSS, _DETECTED, _JOIN = range(5)


class _Simulation:
    """The state of one run; ``run`` is the loop over events."""

    def __init__(
        self, points: Points, arrived_s: Floats, replicas: int, policy: Policy, proxies: int
    ) -> None:
        self.arrived_s = arrived_s
        # Each begins at another replica, like proxies that were started at different times.
        self.balancers = [
            _BALANCERS[policy](replicas, proxy * replicas // proxies) for proxy in range(proxies)
        ]
        self.queues: list[deque[int]] = [deque() for _ in range(replicas)]
        self.running: list[list[int]] = [[] for _ in range(replicas)]
        self.unanswered = [[0] * replicas for _ in range(proxies)]  # counted by each proxy
        self.lost: dict[int, Loss] = {}
        self.events: list[tuple[float, int, int, int]] = []  # moment, turn, kind, which
        self.turn = 0
        self.ended_s = np.full(len(arrived_s), np.nan)
        self.fate = np.full(len(arrived_s), LOST, np.int8)
        self.busy_s, self.batches, self.seen = 0.0, 0, 0
        self.full = points.batch_requests
        self.waiting = points.max_queue_samples // points.samples_per_request
        self.batch_s = [(points.batch_ms(size) / MS).tolist() for size in range(self.full + 1)]

    def schedule(self, at_s: float, kind: int, which: int) -> None:
        self.turn += 1
        heapq.heappush(self.events, (at_s, self.turn, kind, which))

    def run(self, chances: Floats, proxy_of: npt.NDArray[np.int64], losses: Sequence[Loss]) -> None:
        """Handle arrivals and events in order of time.

        Args:
            chances: Random numbers in 0..1 that select batches' times; one per request suffices.
            proxy_of: Index of each request's proxy.
            losses: Losses of replicas.
        """
        for position, loss in enumerate(losses):
            self.schedule(loss.at_s, _LOSS, position)
        arrivals = self.arrived_s.tolist()
        self.chances, self.proxy_of = chances.tolist(), proxy_of.tolist()
        number, count, events = 0, len(arrivals), self.events
        while number < count or events:
            if number < count and (not events or arrivals[number] < events[0][0]):
                self.send(number, arrivals[number])
                number += 1
                continue
            now_s, _, kind, which = heapq.heappop(events)
            if kind == _DONE:
                self.complete(which, now_s)
            elif kind == _AGAIN:
                self.send(which, now_s)
            elif kind == _LOSS:
                self.lose(losses[which], now_s)
            elif kind == _DETECTED:
                for balancer in self.balancers:
                    balancer.remove(which)
            else:
                self.join()

    def send(self, request: int, now_s: float) -> None:
        proxy = self.proxy_of[request]
        replica = self.balancers[proxy].choose()
        queue = self.queues[replica]
        if replica not in self.lost and len(queue) >= self.waiting:
            self.fate[request] = REFUSED
            return
        self.unanswered[proxy][replica] += 1
        self.balancers[proxy].sent(replica, self.unanswered[proxy][replica])
        if replica in self.lost:
            self.schedule(now_s + self.lost[replica].connect_s, _AGAIN, request)
            return
        queue.append(request)
        if not self.running[replica]:
            self.start(replica, now_s)

    def start(self, replica: int, now_s: float) -> None:
        queue = self.queues[replica]
        size = min(len(queue), self.full)
        self.running[replica] = [queue.popleft() for _ in range(size)]
        times_s = self.batch_s[size]
        takes_s = times_s[int(self.chances[self.batches] * len(times_s))]
        self.batches += 1
        self.busy_s += takes_s
        self.schedule(now_s + takes_s, _DONE, replica)

    def complete(self, replica: int, now_s: float) -> None:
        if replica in self.lost:
            return
        self.seen += len(self.running[replica]) ** 2
        for request in self.running[replica]:
            self.ended_s[request] = now_s
            self.fate[request] = ANSWERED
            proxy = self.proxy_of[request]
            self.unanswered[proxy][replica] -= 1
            self.balancers[proxy].answered(replica, self.unanswered[proxy][replica])
        self.running[replica] = []
        if self.queues[replica]:
            self.start(replica, now_s)

    def join(self) -> None:
        """Add a replica that has become ready."""
        replica = len(self.queues)
        self.queues.append(deque())
        self.running.append([])
        for balancer, unanswered in zip(self.balancers, self.unanswered, strict=True):
            unanswered.append(0)
            balancer.add(replica)

    def lose(self, loss: Loss, now_s: float) -> None:
        """Remove the last replicas; their requests stay LOST, because nothing answers them."""
        left = [replica for replica in range(len(self.queues)) if replica not in self.lost]
        for replica in left[len(left) - loss.replicas :]:
            self.lost[replica] = loss
            self.queues[replica].clear()
            self.running[replica] = []
            self.schedule(now_s + loss.detect_s, _DETECTED, replica)


def simulate(
    points: Points,
    arrived_s: Floats,
    *,
    replicas: int,
    policy: Policy,
    seed: int,
    proxies: int = 1,
    losses: Sequence[Loss] = (),
    joins: Sequence[tuple[float, int]] = (),
) -> Outcome:
    """Run requests through replicas, until each is answered, refused or lost.

    Args:
        points: Measured times of batches and of the path to a replica.
        arrived_s: Moments of arrival in seconds, ascending.
        replicas: Number of replicas at the beginning; all are ready and idle.
        policy: How each proxy chooses a replica.
        seed: Seed of the drawn times and proxies; the same seed gives the same outcome.
        proxies: Number of proxies among which the requests are divided.
        losses: Losses of replicas; at least one replica must stay.
        joins: Pairs: the moment in seconds at which replicas become ready, and how many do.

    Raises:
        SimulationError: No replica would be left.
    """
    if sum(loss.replicas for loss in losses) >= replicas:
        raise SimulationError(
            f"the losses leave none of {replicas} replicas; at least one must remain"
        )
    generator = np.random.default_rng(seed)
    chances = generator.random(len(arrived_s))
    path_ms = generator.choice(np.array(points.path_ms), len(arrived_s))
    proxy_of = generator.integers(proxies, size=len(arrived_s))
    run = _Simulation(points, arrived_s, replicas, policy, proxies)
    for at_s, count in joins:
        for _ in range(count):
            run.schedule(at_s, _JOIN, 0)
    run.run(chances, proxy_of, losses)
    latency_ms = (run.ended_s - arrived_s) * MS + path_ms
    answered = run.fate == ANSWERED
    span_s = float(np.max(run.ended_s[answered], initial=0.0))
    return Outcome(
        arrived_s=arrived_s,
        latency_ms=latency_ms,
        fate=run.fate,
        busy_share=run.busy_s / (span_s * len(run.queues)) if span_s else 0.0,
        batch_requests=run.seen / max(1, int(np.sum(answered))),
    )
