"""Locust users; the file also works alone, with locust's web page and distributed mode.

    locust -f loadtest/locustfile.py --host http://localhost:3000 --bundle artifacts/bundles/cnn

Every answer is verified. With ``--result FILE`` the counts are written at the end. Several
processes (``--processes``, or ``--master`` and ``--worker`` on several machines) send their counts
to the master, which merges them.
"""

import gc
import json
import logging
import os
import random
import sys
import time
from argparse import SUPPRESS, Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

# Locust loads this file by its path, without the folder that `loadtest` lies in.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import gevent
from gevent.pool import Pool
from locust import FastHttpUser, events, task
from locust.argument_parser import LocustArgumentParser
from locust.env import Environment
from locust.exception import StopUser
from locust.runners import LocalRunner, MasterRunner, Runner, WorkerRunner

from loadtest.errors import LoadTestError
from loadtest.generator.arrivals import Due, drawn, replayed
from loadtest.generator.clients import hang_up, send_slowly
from loadtest.generator.clock import waiter
from loadtest.generator.expectations import Expectations
from loadtest.generator.payloads import Request
from loadtest.generator.recorder import Recorder, Tally, merged
from loadtest.scenarios import (
    API_KEY_VARIABLE,
    ENDPOINTS,
    REQUEST_TIMEOUT_S,
    Scenario,
    load_scenario,
    scenario_names,
)

logger = logging.getLogger(__name__)
HTTP_OK = 200
MOST_IN_FLIGHT = 1024  # of one process
TALLY = "tally"
GC_EVERY_OBJECTS = 50_000


class _Run:
    """The state that all users of this process share; set before the first one starts."""

    scenario: Scenario
    expectations: Expectations
    recorder: Recorder
    tallies: ClassVar[dict[str, Tally]] = {}
    processes: ClassVar[set[str]] = set()  # the workers that sent requests, by client id
    users: ClassVar[int] = 0  # number of users that this process started
    dispatchers: ClassVar[int] = 0  # number of users of an open loop in this process
    dispatching: ClassVar[int] = 0  # number of these that have not finished
    ending: ClassVar[bool] = False  # every window is over, and locust is stopping
    master: ClassVar[MasterRunner | None] = None


@events.init_command_line_parser.add_listener
def _add_arguments(parser: LocustArgumentParser) -> None:
    # Not in a group: locust's web page shows the parser's own arguments alone.
    parser.add_argument(
        "--bundle",
        nargs="+",
        default=["artifacts/bundles/cnn"],
        help="bundles of the served models to load",
    )
    parser.add_argument("--scenario", choices=scenario_names(), default="Concurrency")
    parser.add_argument("--changes", default="{}", help="JSON that overrides the scenario")
    parser.add_argument("--warmup", type=float, default=1.0, help="seconds before measuring")
    parser.add_argument(
        "--window", type=float, default=0.0, help="measured seconds; 0: until stopped"
    )
    parser.add_argument(
        "--request-timeout",
        type=float,
        default=REQUEST_TIMEOUT_S,
        help="seconds until a missing answer counts as an error",
    )
    parser.add_argument(
        "--endpoint", choices=ENDPOINTS, default=None, help="default: the scenario's"
    )
    parser.add_argument("--path", default=None, help="URL path, for a server of another kind")
    parser.add_argument("--form", default=None, help="request form, for a server of another kind")
    parser.add_argument("--ceiling", action="store_true", help="accept every answer of status 200")
    parser.add_argument("--result", default="", help="write the counts to this JSON file")
    # The master sends its workers the number of users that share the rate of an open loop.
    parser.add_argument("--all-users", type=int, default=0, include_in_web_ui=False, help=SUPPRESS)


def _options(environment: Environment) -> Namespace:
    if environment.parsed_options is None:
        raise RuntimeError("locust has no parsed options; start it from the command line")
    options: Namespace = environment.parsed_options
    return options


@events.report_to_master.add_listener
def _report(client_id: str, data: dict[str, Any]) -> None:
    """Send a worker's counts to the master once its window is over."""
    if hasattr(_Run, "recorder") and _Run.recorder.is_over:
        data[TALLY] = _Run.recorder.tally().model_dump_json()


@events.worker_report.add_listener
def _collect(client_id: str, data: dict[str, Any]) -> None:
    _Run.processes.add(client_id)
    if TALLY in data:
        _Run.tallies[client_id] = Tally.model_validate_json(data[TALLY])
        if _Run.master and _Run.tallies.keys() >= _Run.processes:
            _end(_Run.master)


def _end(runner: Runner) -> None:
    """Stop the load once every window is over: requests after it would count for nothing.

    Locust waits for requests in flight, and workers report again when their last one has ended.
    """
    if not _Run.ending:
        _Run.ending = True
        gevent.spawn(runner.quit)  # it waits for all users, one of which may have called this


@events.test_start.add_listener
def _prepare(environment: Environment, **_: Any) -> None:
    options = _options(environment)
    _Run.tallies, _Run.processes = {}, set()
    _Run.dispatchers = _Run.dispatching = 0
    _Run.ending = False
    changes = {"endpoint": options.endpoint, **json.loads(options.changes)}
    _Run.scenario = scenario = load_scenario(options.scenario, **changes)
    if isinstance(environment.runner, MasterRunner):
        options.all_users = environment.runner.target_user_count
        _Run.master = environment.runner
        _Run.processes = {client.id for client in environment.runner.clients.ready}
        return  # its workers send
    bundles = options.bundle if isinstance(options.bundle, list) else options.bundle.split()
    try:
        _Run.expectations = Expectations(
            [Path(bundle) for bundle in bundles],
            scenario.samples_per_request,
            options.form or scenario.endpoint,
            options.path,
        )
        _Run.expectations.prepare_trace(scenario)
    except LoadTestError as error:
        logger.error("%s", error)
        environment.process_exit_code = 2
        if environment.runner is not None:
            environment.runner.quit()
        return
    # Garbage collections over all live objects would be measured as latencies of the service.
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_EVERY_OBJECTS, 50, 100)
    _Run.recorder = Recorder(options.warmup, options.window or float("inf"))
    for number in range(scenario.slow_clients):
        gevent.spawn(_be_slow, str(environment.host), number)


def _be_slow(url: str, number: int) -> None:
    """Run one slow client until the load ends."""
    requests = _Run.expectations.requests
    request = requests[number % len(requests)]
    while not _Run.recorder.is_over:
        _Run.recorder.slow(send_slowly(url, request, _Run.scenario.slow_byte_ms / 1000))


@events.test_stopping.add_listener
def _close_window(**_: Any) -> None:
    if hasattr(_Run, "recorder"):
        _Run.recorder.stop()


@events.quitting.add_listener
def _finish(environment: Environment, **_: Any) -> None:
    options, runner = _options(environment), environment.runner
    if isinstance(runner, LocalRunner) and hasattr(_Run, "recorder"):
        _Run.tallies = {"": _Run.recorder.tally()}
    if isinstance(runner, WorkerRunner) or not _Run.tallies:
        return
    total = merged(list(_Run.tallies.values()), len(_Run.processes))
    if total.lost_processes:
        logger.error("%d generator processes ended without reporting", total.lost_processes)
        environment.process_exit_code = 2
    if options.result:
        Path(options.result).write_text(total.model_dump_json() + "\n")
    if total.wrong_answers:
        example = total.wrong_examples[0].complaint
        logger.error("%d WRONG ANSWERS, for example: %s", total.wrong_answers, example)
        environment.process_exit_code = 1


def error_kind(response: Any) -> str:
    """Why a request has no answer: its HTTP status, or the connection's exception."""
    if response.status_code:
        return f"HTTP {response.status_code}"
    return type(response.error).__name__ if response.error else "no answer"


class ModelUser(FastHttpUser):
    """Sends prepared golden samples and checks each answer.

    In a closed loop it sends the next request when the last one is answered. In an open loop the
    users share the rate, and each sends its requests when they are due, whether or not earlier ones
    are answered; latencies are measured from the due time. While the service stalls, further
    requests become due and wait as independent clients would (no coordinated omission).
    """

    concurrency = MOST_IN_FLIGHT

    def __init__(self, environment: Environment) -> None:
        """Set the time-outs from the command line before the HTTP client is created."""
        self.options = _options(environment)
        self.network_timeout = self.connection_timeout = self.options.request_timeout
        super().__init__(environment)
        key = os.environ.get(API_KEY_VARIABLE)
        self._further = {"x-api-key": key} if key else {}

    def on_start(self) -> None:
        """Begin at a random sample, so that users do not all send the same one."""
        self._position = random.randrange(  # noqa: S311 - no secret
            len(_Run.expectations.requests)
        )
        _Run.users += 1
        seed = f"{_Run.scenario.seed} {os.getpid()} {_Run.users}"
        self._chance = random.Random(seed)  # noqa: S311 - no secret
        if _Run.scenario.new_connections:
            self._further = {**self._further, "connection": "close"}

    def ask(self, due_s: float | None = None, position: int | None = None) -> None:
        """Send one request and judge its answer.

        Args:
            due_s: When the request was due (``time.perf_counter``); None: now.
            position: The request's position among the prepared ones; None: the next one.
        """
        requests, recorder = _Run.expectations.requests, _Run.recorder
        if position is None:
            position = self._position = (self._position + 1) % len(requests)
        request, begun_s = requests[position], time.perf_counter()
        due_s = begun_s if due_s is None else due_s
        if self._chance.random() < _Run.scenario.hang_up_share:
            wait_s = self._chance.uniform(0, _Run.scenario.hang_up_within_ms / 1000)
            recorder.hung_up(len(request.positions))
            hang_up(str(self.host), request, wait_s, self._further)
            return
        phase = recorder.sent(begun_s - due_s)
        with self.client.post(
            request.path,
            data=request.content,  # type: ignore[arg-type]  # bytes are sent as they are
            headers=request.headers | self._further,
            name=request.form,
            catch_response=True,
        ) as response:
            latency_s = time.perf_counter() - due_s
            response.request_meta["response_time"] = 1000 * latency_s
            if response.status_code != HTTP_OK:
                kind = error_kind(response)
                response.failure(kind)
                recorder.failed(kind, phase)
            elif complaint := self._complaint(request, response):
                response.failure(f"wrong answer: {complaint}")
                recorder.wrong(complaint, position)
            elif phase == "window":
                recorder.answered(latency_s, len(request.positions))

    def _complaint(self, request: Request, response: Any) -> str | None:
        if self.options.ceiling:
            return None
        expectations = _Run.expectations
        complaint = expectations.complaint(request, response.content, response.headers)
        _Run.recorder.named = expectations.named
        return complaint

    @task
    def predict(self) -> None:
        """Send one request of a closed loop, or all of this user's requests of an open loop."""
        if _Run.scenario.loop == "open":
            self._dispatch()
            return
        self.ask()
        runner = self.environment.runner
        if isinstance(runner, LocalRunner) and _Run.recorder.is_over:
            _end(runner)

    def _due(self, start_s: float) -> Iterator[Due]:
        """The requests of an open loop that this user sends."""
        scenario, options, runner = _Run.scenario, self.options, self.environment.runner
        users, process = 1, 0
        if isinstance(runner, WorkerRunner):
            users, process = max(1, options.all_users), runner.worker_index
        elif runner is not None:
            users = max(1, runner.target_user_count)
        number = _Run.dispatchers
        _Run.dispatchers, _Run.dispatching = number + 1, _Run.dispatching + 1
        if scenario.trace:
            processes = max(1, options.expect_workers or 1)
            share = (number * processes + process, users)
            return replayed(_Run.expectations, scenario, start_s, share)
        seed = 1_000_000 * scenario.seed + 1_000 * number + process
        whole_s = options.warmup + options.window if options.window else float("inf")
        return drawn(scenario, start_s, whole_s, users, seed)

    def _dispatch(self) -> None:
        runner, recorder = self.environment.runner, _Run.recorder
        pool, clock, start_s = Pool(MOST_IN_FLIGHT), waiter(), time.perf_counter()
        for due in self._due(start_s):
            if due.at_s > time.perf_counter():
                clock.until(due.at_s)
            if pool.full():
                recorder.no_room()
            else:
                pool.spawn(self.ask, due.at_s, due.position)
        if self.options.window:
            clock.until(start_s + self.options.warmup + self.options.window)
        clock.close()
        recorder.stop()
        pool.join(self.options.request_timeout)
        recorder.stragglers(len(pool))
        pool.kill()
        _Run.dispatching -= 1
        if not _Run.dispatching and isinstance(runner, LocalRunner):
            _end(runner)
        raise StopUser
