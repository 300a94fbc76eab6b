"""Load tests of the real service, each a second or two long."""

import base64
import http.server
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from loadtest.__main__ import main
from loadtest.generator.recorder import Tally
from loadtest.server import running_service
from tests.tiny import SERVED_BUNDLES

LOCUSTFILE = Path(__file__).parent.parent.parent / "loadtest" / "locustfile.py"


def _run(url: str, out: Path, *further: str, bundle: Path = SERVED_BUNDLES / "cnn") -> int:
    command = ["run", "--url", url, "--bundle", str(bundle), "--out", str(out)]
    # Runs of a second or two are too short for a valid verdict; other tests check the verdicts.
    further = ("--accept-invalid", *further)
    return main([*command, "--duration", "1", "--warmup", "0.2", *further])


def _result(file: Path) -> dict[str, Any]:
    (result,) = json.loads(file.read_text())["runs"]
    assert isinstance(result, dict)
    return result


@pytest.mark.parametrize("scenario", ["Concurrency", "Offline", "Upload"])
def test_an_honest_service_passes(
    scenario: str, service_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Status 0, no wrong answer, and a report as JSON, Markdown, JUnit XML and HTML."""
    assert _run(service_url, tmp_path, "--scenario", scenario, "--users", "4") == 0
    assert "wrong answers: 0  errors: none" in capsys.readouterr().out
    result = _result(tmp_path / f"{scenario}-cnn.json")
    assert result["requests"] > 10
    assert result["users"] == 4
    assert result["wrong_answers"] == 0
    latency = result["latency_ms"]
    assert 0 < latency["p50"] <= latency["p90"] <= latency["p95"] <= latency["p99"]
    assert result["samples_per_s"] == pytest.approx(
        result["requests_per_s"] * result["samples_per_request"]
    )
    page = (tmp_path / f"{scenario}-cnn.html").read_text()
    assert "data:image/png;base64," in page
    assert "http://" not in page.replace(service_url, "")
    assert f"{result['requests_per_s']:,.0f}/s" in page or not result["verdict"]["valid"]
    assert f"| {result['requests_per_s']:,.0f} |" in (tmp_path / f"{scenario}-cnn.md").read_text()
    junit = (tmp_path / f"{scenario}-cnn.xml").read_text()
    assert 'tests="1" failures="0"' in junit


def test_a_sweep_leaves_the_same_four_files(
    service_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Each file contains every measured point, and the capacity or a note that there is none."""
    for name, value in {"CAPACITY_S": 1.0, "FIRST_SHARES": (0.3, 0.9), "MOST_STEPS": 1}.items():
        monkeypatch.setattr(f"loadtest.measure.sweep.{name}", value)
    command = ["sweep", "--url", service_url, "--bundle", str(SERVED_BUNDLES / "cnn")]
    command += ["--out", str(tmp_path), "--duration", "1", "--warmup", "0.2"]
    assert main([*command, "--accept-invalid"]) == 0
    stem = tmp_path / "sweep-cnn-Server"
    assert f"report: {stem}.html" in capsys.readouterr().out
    points = json.loads(stem.with_suffix(".json").read_text())["points"]
    assert f'tests="{len(points)}" failures="0"' in stem.with_suffix(".xml").read_text()
    assert "apacity" in stem.with_suffix(".md").read_text().splitlines()[0]
    page = stem.with_suffix(".html").read_text()
    assert all(f"{point['offered_per_s']:,.0f}/s" in page for point in points)


def test_a_service_that_answers_wrongly_fails_the_run(
    service_url: str, served_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Golden samples with other logits give status 1 and the first wrong answer."""
    with np.load(served_bundle / "golden.npz") as content:
        arrays = dict(content)
    arrays["truth/logits"] = np.roll(arrays["truth/logits"], 1, axis=1)
    np.savez(served_bundle / "golden.npz", **arrays)
    assert _run(service_url, tmp_path, "--users", "2", bundle=served_bundle) == 1
    error = capsys.readouterr().err
    assert "wrong answers: " in error
    assert _result(tmp_path / "Concurrency-cnn.json")["wrong_answers"] > 0
    saved = json.loads((tmp_path / "Concurrency-cnn-wrong.json").read_text())
    assert "labels" in saved[0]["complaint"]
    again = httpx.post(
        service_url + saved[0]["path"],
        content=base64.b64decode(saved[0]["body_base64"]),
        headers=saved[0]["headers"],
    )
    assert again.status_code == 200


def test_missed_thresholds_fail_the_run(
    service_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An impossible p99 and an impossible rate give status 1, and both are named."""
    limits = ["--max-p99-ms", "0.001", "--min-requests-per-s", "10000000"]
    assert _run(service_url, tmp_path, "--users", "2", *limits) == 1
    error = capsys.readouterr().err
    assert "> 0.001 ms" in error
    assert "requests/s < 1e+07" in error


class _Fake(http.server.BaseHTTPRequestHandler):
    """Reports that it is ready, then refuses every request or leaves it unanswered."""

    hang = threading.Event()

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        if self.hang.is_set():
            time.sleep(10)
            return
        self.send_response(429)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def fake_url() -> Iterator[str]:
    _Fake.hang.clear()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Fake)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_service_that_hangs_fails_the_run(fake_url: str, tmp_path: Path) -> None:
    """Unanswered requests are counted as errors, and the run ends by itself."""
    _Fake.hang.set()
    assert _run(fake_url, tmp_path, "--users", "2", "--request-timeout", "3") == 1
    result = _result(tmp_path / "Concurrency-cnn.json")
    assert result["requests"] == 0
    assert sum(result["errors"].values()) == 2
    assert result["duration_s"] == pytest.approx(1.8, abs=1)


def test_refused_requests_are_told_by_their_kind(
    fake_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """429 answers are not wrong answers, but exceed the allowed error share: status 1."""
    assert _run(fake_url, tmp_path, "--users", "1") == 1
    assert "HTTP 429 x" in capsys.readouterr().err
    result = _result(tmp_path / "Concurrency-cnn.json")
    assert (result["requests"], result["wrong_answers"]) == (0, 0)


def test_a_duration_must_be_positive(
    service_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Locust runs forever for 0 seconds: status 2. A trailing slash in the URL is harmless."""
    assert _run(f"{service_url}/", tmp_path, "--duration", "0") == 2
    assert "duration_s" in capsys.readouterr().err
    assert _run(f"{service_url}/", tmp_path, "--users", "1", "--duration", "1") == 0


@pytest.mark.parametrize(
    ("url", "named"),
    [("http://127.0.0.1:9", "make serve"), ("localhost:3000", "is not a URL")],
)
def test_no_service_is_status_2(
    url: str, named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """If nothing listens or the URL is invalid, the message says what to do."""
    assert _run(url, tmp_path) == 2
    assert named in capsys.readouterr().err


def test_the_locustfile_works_by_itself(service_url: str, tmp_path: Path) -> None:
    """Locust's own command line runs it from any folder, and it writes the figures."""
    result = tmp_path / "result.json"
    command = [sys.executable, "-m", "locust", "-f", str(LOCUSTFILE), "--host", service_url]
    command += ["--headless", "-u", "2", "-r", "2", "-t", "8s", "--only-summary"]
    command += ["--bundle", str(SERVED_BUNDLES / "mlp"), "--scenario", "MultiStream"]
    command += ["--warmup", "0.2"]
    ran = subprocess.run([*command, "--result", str(result)], cwd=tmp_path, capture_output=True)
    assert ran.returncode == 0, ran.stderr.decode()
    tally = Tally.model_validate_json(result.read_bytes())
    assert tally.in_window > 10
    assert (tally.wrong_answers, tally.named) == (0, ("cpu", "onnx"))


def test_several_processes_give_one_result(service_url: str, tmp_path: Path) -> None:
    """Two generator processes share the rate, and their counts are merged."""
    further = ["--scenario", "Server", "--rate", "100", "--processes", "2", "--duration", "3"]
    assert _run(service_url, tmp_path, *further, "--request-timeout", "2") == 0
    result = _result(tmp_path / "Server-cnn.json")
    assert result["processes"] == 2
    assert 200 < result["sent"] < 400
    assert result["requests"] == result["sent"]
    assert result["latency_ms"]["p50"] > 0


def test_an_open_loop_is_measured_and_judged(service_url: str, tmp_path: Path) -> None:
    """All due requests are sent; the file has the server's metrics and the verdict."""
    further = [
        "--scenario",
        "Server",
        "--rate",
        "50",
        "--duration",
        "3",
        "--endpoint",
        "infer/json",
        "--slo-ms",  # kept even on a busy machine
        "5000",
    ]
    assert _run(service_url, tmp_path, *further) == 0
    result = _result(tmp_path / "Server-cnn.json")
    assert (result["loop"], result["endpoint"]) == ("open", "infer/json")
    assert (result["device"], result["variant"]) == ("cpu", "onnx")
    assert 100 < result["sent"] < 210
    assert len(result["requests_each_window"]) == 3
    assert result["server"]["samples_per_s"] > 0
    # Three seconds at 50 requests/s are too few to judge a p99.
    assert not result["verdict"]["valid"]
    assert any("are too few to judge p99" in reason for reason in result["verdict"]["reasons"])


def test_a_measurement_that_says_nothing_is_status_3(service_url: str, tmp_path: Path) -> None:
    """Fifty requests are too few to judge p99: status 3, unless invalid results are accepted."""
    command = ["run", "--url", service_url, "--bundle", str(SERVED_BUNDLES / "cnn")]
    command += ["--out", str(tmp_path), "--scenario", "Server", "--rate", "50", "--duration", "1"]
    command += ["--warmup", "0.2"]
    assert main(command) == 3
    assert main([*command, "--accept-invalid"]) == 0
    assert main([*command, "--accept-invalid", "--max-p99-ms", "0.001"]) == 1
    # An invalid figure misses no threshold.
    assert main([*command, "--max-p99-ms", "0.001"]) == 3


def test_several_runs_are_told_each_and_together(
    service_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each run has its own arrivals; statistics over runs include only valid ones."""
    further = ["--scenario", "Server", "--rate", "100", "--runs", "2", "--price-per-hour", "3.6"]
    assert _run(service_url, tmp_path, *further) == 0
    content = json.loads((tmp_path / "Server-cnn.json").read_text())
    first, second = content["runs"]
    assert (first["seed"], second["seed"]) == (0, 1)
    assert first["sent"] != second["sent"] or first["latency_us"] != second["latency_us"]
    cost = 3.6 / 3600 / first["samples_per_s"] * 1e6
    assert first["cost_per_million"] == pytest.approx(cost)
    valid = sum(run["verdict"]["valid"] for run in content["runs"])
    assert bool(content["over_runs"]) == (valid == 2)
    assert 'tests="2" failures="0"' in (tmp_path / "Server-cnn.xml").read_text()


def test_a_sweep_of_a_closed_loop_doubles_the_users(
    service_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is one point for each number of users, all in one report."""
    monkeypatch.setattr("loadtest.cli.USERS", (1, 4))
    command = ["sweep", "--url", service_url, "--bundle", str(SERVED_BUNDLES / "cnn")]
    command += ["--out", str(tmp_path), "--duration", "1", "--warmup", "0.2", "--accept-invalid"]
    assert main([*command, "--scenario", "Concurrency"]) == 0
    stem = tmp_path / "sweep-cnn-Concurrency"
    points = json.loads(stem.with_suffix(".json").read_text())["runs"]
    assert [point["users"] for point in points] == [1, 4]
    assert "4 users" in stem.with_suffix(".html").read_text()


def test_a_service_with_a_key_is_asked_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LOADTEST_API_KEY is sent with every request; without it all are refused."""
    settings = {"INFERENCE_BUNDLES": str(SERVED_BUNDLES), "INFERENCE_API_KEY": "a key long enough"}
    with running_service(tmp_path / "service.log", settings=settings) as url:
        assert _run(url, tmp_path, "--users", "1") == 1
        monkeypatch.setenv("LOADTEST_API_KEY", "a key long enough")
        assert _run(url, tmp_path, "--users", "1") == 0


def test_what_cannot_be_made_is_status_2_whatever_it_was(
    service_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A no-op server that does not start ends a sweep with status 2, like a missing service."""
    monkeypatch.setattr("loadtest.measure.noop.START_TIMEOUT_S", 0.0)
    command = ["sweep", "--url", service_url, "--bundle", str(SERVED_BUNDLES / "cnn")]
    assert main([*command, "--out", str(tmp_path)]) == 2
    assert "was not ready within 0 s" in capsys.readouterr().err


@pytest.mark.slow
def test_the_service_is_offered_less_and_more_than_it_can(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each share has a point; answers are 200 or 429; refusals are in the report."""
    command = ["overload", "--bundle", str(SERVED_BUNDLES / "cnn"), "--out", str(tmp_path)]
    small = ["INFERENCE_MAX_QUEUE_SAMPLES=128", "INFERENCE_MAX_REQUEST_SAMPLES=64"]
    command += ["--rounds", "1", "--seconds", "1", "--settings", *small]
    assert main([*command, "--factors", "0.5", "2"]) == 0
    assert "2 x the capacity: Overload on cnn" in capsys.readouterr().out
    half, double = json.loads((tmp_path / "overload-cnn.json").read_text())["runs"]
    assert double["offered_per_s"] > 2 * half["offered_per_s"]
    for point in (half, double):
        assert point["errors"].keys() <= {"HTTP 429"}
        assert (point["wrong_answers"], point["samples_per_request"]) == (0, 64)


def test_an_overload_that_cannot_be_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A missing bundle, a share of 0 or a setting without a value gives status 2."""
    bundle = str(SERVED_BUNDLES / "cnn")
    assert main(["overload", "--bundle", str(tmp_path)]) == 2
    assert "is not a bundle" in capsys.readouterr().err
    assert main(["overload", "--bundle", bundle, "--factors", "0"]) == 2
    assert "positive" in capsys.readouterr().err
    assert main(["overload", "--bundle", bundle, "--settings", "INFERENCE_WORKERS"]) == 2
    assert "NAME=VALUE" in capsys.readouterr().err


def test_an_overload_of_a_running_service_is_a_multiple_of_its_capacity(
    service_url: str, tmp_path: Path
) -> None:
    """The capacity is measured first; refused requests do not make the run invalid."""
    assert _run(service_url, tmp_path, "--scenario", "Overload", "--max-error-share", "1") == 0
    result = _result(tmp_path / "Overload-cnn.json")
    assert result["offered_per_s"] != 2000
    assert result["errors"].keys() <= {"HTTP 429"}
    assert result["wrong_answers"] == 0
