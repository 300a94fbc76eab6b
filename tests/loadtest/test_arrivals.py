"""Arrivals are drawn from a seed, follow a ramp, or are replayed from a recorded trace."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from loadtest.__main__ import main
from loadtest.generator.arrivals import Event, TraceError, drawn, read_trace, replayed
from loadtest.generator.expectations import Expectations
from loadtest.generator.payloads import PayloadError
from loadtest.scenarios import load_scenario
from loadtest.server import running_service
from tests.service.wire import wait_for
from tests.tiny import SERVED_BUNDLES

MODELS = [SERVED_BUNDLES / "cnn", SERVED_BUNDLES / "mlp"]


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """The URL of the service, and its JSON log with one line for each request."""
    log = tmp_path_factory.mktemp("logged") / "log"
    settings = {"INFERENCE_BUNDLES": str(SERVED_BUNDLES), "INFERENCE_DEVICE": "cpu"}
    settings |= {"INFERENCE_LOG_FORMAT": "json", "INFERENCE_ACCESS_LOG_SHARE": "1"}
    with running_service(log, settings=settings) as url:
        yield url, log


def _times(seed: int, **changes: Any) -> list[float]:
    scenario = load_scenario("Server", rate_per_s=100.0, **changes)
    return [due.at_s for due in drawn(scenario, 0.0, 20.0, users=1, seed=seed)]


def test_the_same_seed_gives_the_same_arrivals() -> None:
    """Another seed gives other arrivals; both have the requested rate."""
    assert _times(1) == _times(1) != _times(2)
    assert len(_times(1)) == pytest.approx(2000, rel=0.1)


def test_users_share_the_rate() -> None:
    """Each of four users sends a quarter of the rate."""
    scenario = load_scenario("Server", rate_per_s=100.0)
    counts = [len(list(drawn(scenario, 0.0, 20.0, users=4, seed=seed))) for seed in range(4)]
    assert sum(counts) == pytest.approx(2000, rel=0.1)
    assert max(counts) < 650


def test_a_rate_climbs_evenly() -> None:
    """On a ramp from 100 to 300/s, each quarter of the time has the mean rate of that quarter."""
    times = _times(3, ramp_to_per_s=300.0)
    quarters = [sum(5 * i <= t < 5 * (i + 1) for t in times) for i in range(4)]
    for found, expected in zip(quarters, (625, 875, 1125, 1375), strict=True):
        assert found == pytest.approx(expected, rel=0.15)


CSV = "time,model,samples\n10.5,mlp,2\n10.0,cnn,1\n12,,\n"
LINES = [
    {"time": "2026-01-01T00:00:02Z", "samples": 3},
    {"time": "2026-01-01T00:00:00.500Z", "model": "cnn"},
]
LOG = [
    {"time": "2026-01-01T00:00:00Z", "logger": "bentoml.service", "message": "ready"},
    {"time": "2026-01-01T00:00:03Z", "logger": "bentoml.access", "model": "cnn", "duration_s": 0.5},
    {"time": "2026-01-01T00:00:03Z", "logger": "bentoml.access", "path": "/readyz"},
    {"time": "2026-01-01T00:00:04Z", "logger": "bentoml.access", "model": "mlp", "duration_s": 0.1},
]


@pytest.mark.parametrize(
    ("text", "events"),
    [
        (CSV, [Event(0, "cnn", 1), Event(0.5, "mlp", 2), Event(2, None, 1)]),
        ("\n".join(map(json.dumps, LINES)), [Event(0, "cnn", 1), Event(1.5, None, 3)]),
        ("\n".join(map(json.dumps, LOG)), [Event(0, "cnn", 1), Event(1.4, "mlp", 1)]),
    ],
)
def test_a_trace_is_read_in_its_order(text: str, events: list[Event], tmp_path: Path) -> None:
    """CSV, JSON lines and an access log are read; times count from the first arrival."""
    file = tmp_path / "trace"
    file.write_text(text)
    found = read_trace(file)
    assert [event[1:] for event in found] == [event[1:] for event in events]
    assert [event.at_s for event in found] == pytest.approx([event.at_s for event in events])


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "contains no request"),
        ("time,model\n", "contains no request"),
        ("when,model\n1,cnn\n", "KeyError"),
        ("time,samples\n1,0\n", "0 samples"),
        ("time\nyesterday\n", "yesterday"),
        ('{"time": 1}\n{"time"\n', "request 2"),
    ],
)
def test_a_file_that_is_no_trace_is_refused(text: str, named: str, tmp_path: Path) -> None:
    """The error names the request and the expected fields."""
    file = tmp_path / "trace"
    file.write_text(text)
    with pytest.raises(TraceError, match=f"(?s){named}.*expected the fields time|{named}"):
        read_trace(file)


def test_users_share_a_trace_and_its_speed(tmp_path: Path) -> None:
    """Two users each send every other request, twice as fast, to the right model and size."""
    file = tmp_path / "trace.csv"
    file.write_text("time,model,samples\n0,cnn,1\n1,mlp,3\n2,cnn,1\n3,mlp,3\n")
    expectations = Expectations(MODELS, 1, "infer/binary")
    scenario = load_scenario("Server", rate_per_s=1.0, trace=str(file), speed=2.0)
    expectations.prepare_trace(scenario)
    for number, model, samples in ((0, "cnn", 1), (1, "mlp", 3)):
        dues = list(replayed(expectations, scenario, 100.0, (number, 2)))
        assert [due.at_s for due in dues] == [100 + number / 2, 101 + number / 2]
        for due in dues:
            request = expectations.requests[due.position or 0]
            assert (request.model.name, len(request.positions)) == (model, samples)
    file.write_text("time,model\n0,other\n")
    with pytest.raises(PayloadError, match=r"other.*add its bundle to --bundle"):
        Expectations(MODELS, 1, "infer/binary").prepare_trace(scenario)


def _run(url: str, out: Path, *further: str) -> dict[str, Any]:
    command = ["run", "--url", url, "--bundle", *map(str, MODELS), "--out", str(out)]
    assert main([*command, "--accept-invalid", *further]) == 0
    (file,) = out.glob("*.json")
    (result,) = json.loads(file.read_text())["runs"]
    assert isinstance(result, dict)
    return result


def test_a_recorded_access_log_is_replayed(logged: tuple[str, Path], tmp_path: Path) -> None:
    """Ten logged requests to two models are sent again, twice as fast."""
    url, log = logged
    for number in range(10):
        request = Expectations(MODELS[number % 2], 1, "infer/raw").requests[number]
        answer = httpx.post(url + request.path, content=request.content, headers=request.headers)
        assert answer.status_code == 200
    # A request's line is written after its answer was sent.
    assert wait_for(lambda: len(_requests(log)) == 10, within_s=10)
    trace = tmp_path / "access.jsonl"
    trace.write_text("".join(_lines(log)))
    assert [event.model for event in read_trace(trace)] == ["cnn", "mlp"] * 5
    result = _run(url, tmp_path / "out", "--scenario", "Server", "--trace", str(trace))
    assert (result["sent"], result["requests"], result["wrong_answers"]) == (10, 10, 0)


def test_a_trace_decides_how_many_samples_are_sent(
    logged: tuple[str, Path], tmp_path: Path
) -> None:
    """Two processes send 40 requests of five samples in two seconds: 200 samples."""
    trace = tmp_path / "trace.csv"
    rows = [f"{0.05 * i},{'cnn' if i % 2 else 'mlp'},5" for i in range(40)]
    trace.write_text("time,model,samples\n" + "\n".join(rows) + "\n")
    further = ["--scenario", "Server", "--trace", str(trace), "--processes", "2"]
    result = _run(logged[0], tmp_path / "out", *further)
    assert result["sent"] == result["requests"] == 40
    assert result["samples_per_s"] * result["duration_s"] == pytest.approx(200, abs=10)


def test_clients_that_hang_up_are_counted_beside_the_load(
    logged: tuple[str, Path], tmp_path: Path
) -> None:
    """Half of the clients hang up; other answers are right; wasted samples are reported."""
    further = ["--scenario", "HangUps", "--hang-up-share", "0.5", "--rate", "100"]
    further += ["--samples-per-request", "8", "--duration", "3", "--warmup", "0.5"]
    result = _run(logged[0], tmp_path, *further)
    share = result["hung_up"] / (result["hung_up"] + result["sent"])
    assert 0.35 < share < 0.65
    assert result["hung_up_samples"] == 8 * result["hung_up"]
    assert (result["wrong_answers"], result["errors"]) == (0, {})
    assert 0 <= result["server"]["samples_in_vain"] <= 2 * result["hung_up_samples"] + 64
    page = next(tmp_path.glob("*.html")).read_text()
    assert "computed in vain" in page


def test_each_request_may_open_a_connection(logged: tuple[str, Path], tmp_path: Path) -> None:
    """With Churn, every answer is right and every request uses a new connection."""
    _, log = logged
    before = len(_clients(log))
    result = _run(logged[0], tmp_path, "--scenario", "Churn", "--duration", "1", "--warmup", "0.2")
    assert result["requests"] > 10
    assert (result["wrong_answers"], result["errors"]) == (0, {})
    assert wait_for(lambda: len(_clients(log)) - before >= result["requests"], within_s=10)


def _clients(log: Path) -> set[str]:
    """The client addresses and ports of requests to a model."""
    return {line["client"] for line in _requests(log)}


def _requests(log: Path) -> list[dict[str, Any]]:
    """The log lines of requests to a model."""
    return [line for line in map(json.loads, _lines(log)) if line.get("model")]


def _lines(log: Path) -> list[str]:
    """The complete lines of the log that are JSON."""
    lines = log.read_text().splitlines(keepends=True)
    return [line for line in lines if line.startswith("{") and line.endswith("\n")]


def test_slow_clients_hold_nobody_up(logged: tuple[str, Path], tmp_path: Path) -> None:
    """Ten clients that send one byte per millisecond get answers, as does the load."""
    further = ["--scenario", "SlowClients", "--slow-clients", "10", "--rate", "50"]
    command = ["--duration", "4", "--warmup", "0.2", "--endpoint", "infer/raw"]
    bundle = str(MODELS[0])
    arguments = ["run", "--url", logged[0], "--bundle", bundle, "--out", str(tmp_path)]
    assert main([*arguments, *command, *further, "--accept-invalid"]) == 0
    (file,) = tmp_path.glob("*.json")
    (result,) = json.loads(file.read_text())["runs"]
    assert (result["wrong_answers"], result["errors"]) == (0, {})
    assert result["requests"] == result["sent"] > 100
    assert sum(result["slow_clients"].values()) == 0 or "answered" in result["slow_clients"]
