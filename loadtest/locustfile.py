"""The user that locust runs; works by itself too, with locust's web page.

    locust -f loadtest/locustfile.py --host http://localhost:3000 --bundle artifacts/bundles/cnn

Every answer is verified. With ``--result FILE`` the figures are written at the end.
"""

import logging
import random
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

# Locust loads this file by its path, without the folder that `loadtest` lies in.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from locust import FastHttpUser, events, task
from locust.argument_parser import LocustArgumentParser
from locust.env import Environment

from loadtest.expectations import ExpectationError, Expectations
from loadtest.record import Recorder, Result
from loadtest.run import REQUEST_TIMEOUT_S
from loadtest.scenarios import Scenario, load_scenario, scenario_names

logger = logging.getLogger(__name__)
HTTP_OK = 200


class _Run:
    """What all users of this process share; set before the first one starts."""

    scenario: Scenario
    expectations: Expectations
    recorder: Recorder


@events.init_command_line_parser.add_listener
def _add_arguments(parser: LocustArgumentParser) -> None:
    # Not in a group: locust's web page shows the parser's own arguments alone.
    parser.add_argument("--bundle", default="artifacts/bundles/cnn", help="the served bundle")
    parser.add_argument("--scenario", choices=scenario_names(), default="Concurrency")
    parser.add_argument("--images-per-request", type=int, help="in place of the scenario's")
    parser.add_argument("--warmup", type=float, default=1.0, help="seconds that do not count")
    parser.add_argument(
        "--request-timeout", type=float, default=REQUEST_TIMEOUT_S, help="seconds until an error"
    )
    parser.add_argument("--result", default="", help="write the figures to this JSON file")


def _options(environment: Environment) -> Namespace:
    if environment.parsed_options is None:
        raise RuntimeError("locust was started without its command line")
    options: Namespace = environment.parsed_options
    return options


@events.test_start.add_listener
def _prepare(environment: Environment, **_: Any) -> None:
    options = _options(environment)
    _Run.scenario = load_scenario(options.scenario, images_per_request=options.images_per_request)
    try:
        _Run.expectations = Expectations(
            Path(options.bundle), _Run.scenario.images_per_request, _Run.scenario.endpoint
        )
    except ExpectationError as error:
        logger.error("%s", error)
        environment.process_exit_code = 2
        if environment.runner is not None:
            environment.runner.quit()
        return
    _Run.recorder = Recorder(options.warmup)


@events.test_stopping.add_listener
def _close_window(**_: Any) -> None:
    if hasattr(_Run, "recorder"):
        _Run.recorder.stop()


@events.test_stop.add_listener
def _finish(environment: Environment, **_: Any) -> None:
    options, runner = _options(environment), environment.runner
    if runner is None or not hasattr(_Run, "recorder"):
        return
    result = Result(
        scenario=_Run.scenario.name,
        model=_Run.expectations.manifest["name"],
        version=_Run.expectations.manifest["version"],
        endpoint=_Run.scenario.endpoint,
        users=runner.target_user_count,
        images_per_request=_Run.scenario.images_per_request,
        url=environment.host or "",
        **_Run.recorder.figures(_Run.scenario.images_per_request),
    )
    if options.result:
        Path(options.result).write_text(result.model_dump_json(indent=2) + "\n")
    if result.wrong_answers:
        logger.error(
            "%d WRONG ANSWERS, such as: %s", result.wrong_answers, result.wrong_answer_examples[0]
        )
        environment.process_exit_code = 1


def error_kind(response: Any) -> str:
    """Why there is no answer: the HTTP status, or the name of what the connection raised."""
    if response.status_code:
        return f"HTTP {response.status_code}"
    return type(response.error).__name__ if response.error else "no answer"


class DigitUser(FastHttpUser):
    """Sends prepared golden samples, the next when the last is answered, and checks each answer."""

    def __init__(self, environment: Environment) -> None:
        """Take the time-outs from the command line; the client is made with them."""
        self.network_timeout = _options(environment).request_timeout
        self.connection_timeout = self.network_timeout
        super().__init__(environment)

    def on_start(self) -> None:
        """Begin at a sample of one's own, so that not all users send the same."""
        self._position = random.randrange(  # noqa: S311 - no secret
            len(_Run.expectations.requests)
        )

    @task
    def predict(self) -> None:
        """One request and its judgement."""
        requests = _Run.expectations.requests
        request = requests[self._position % len(requests)]
        self._position += 1
        with self.client.post(
            _Run.expectations.path,
            data=request.body,  # type: ignore[arg-type]  # bytes are sent as they are
            headers={"Content-Type": request.content_type},
            name=_Run.scenario.endpoint,
            catch_response=True,
        ) as response:
            if response.status_code != HTTP_OK:
                kind = error_kind(response)
                response.failure(kind)
                _Run.recorder.failed(kind)
            elif complaint := _Run.expectations.complaint(request, response.content):
                response.failure(f"wrong answer: {complaint}")
                _Run.recorder.wrong(complaint)
            else:
                _Run.recorder.answered(response.request_meta["response_time"])
