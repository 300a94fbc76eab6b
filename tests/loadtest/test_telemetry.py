"""A watch samples the server during a load, and never makes the load fail."""

import http.server
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from loadtest.measure.noop import noop_server
from loadtest.server import REPOSITORY, free_port
from loadtest.telemetry.usage import Processes
from loadtest.telemetry.watch import (
    Figures,
    ServerSample,
    ServerWatch,
    between,
    read,
    summary,
)
from tests.service.processes import main_process, worker_processes

BLANK = [[0] * 28] * 28
COUNTED = (
    *("samples_per_s", "requests_per_s", "refused_per_s", "batches_per_s", "samples_per_batch"),
    *("batch_sizes", "queue_ms", "compute_ms", "queued_samples"),
)


def _ask(url: str, images: object, model: str = "cnn") -> None:
    body = json.dumps({"images": images, "model": model}).encode()
    request = urllib.request.Request(f"{url}/predict", body, {"content-type": "application/json"})
    with urllib.request.urlopen(request) as answer:
        assert answer.status == 200


@contextmanager
def _telling(text: str) -> Iterator[tuple[str, list[str | None]]]:
    """A server in this process with this text as /metrics, and the API keys it received."""
    keys: list[str | None] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            keys.append(self.headers["X-Api-Key"])
            self.send_response(200)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", keys
        server.shutdown()
        thread.join()


def test_counters_differ_by_what_was_asked(service_url: str) -> None:
    """Ten requests of 3 images, one of 40 and two refused ones are counted, earlier ones not."""
    _ask(service_url, [BLANK] * 7)
    with ServerWatch(service_url, interval_s=0.3) as watch:
        for _ in range(10):
            _ask(service_url, [BLANK] * 3)
        _ask(service_url, [BLANK] * 40, "mlp")
        for _ in range(2):
            with pytest.raises(urllib.error.HTTPError):
                _ask(service_url, "nothing")
        give_up_s = time.monotonic() + 10
        while len(watch.samples) < 3 and time.monotonic() < give_up_s:
            time.sleep(0.05)
    samples = watch.samples
    assert len(samples) >= 3
    assert watch.reasons.keys() <= {"gpu"}

    def total(name: str) -> float:
        return sum(float(getattr(sample, name)) * sample.seconds for sample in samples)

    assert total("requests_per_s") == pytest.approx(11)
    assert total("samples_per_s") == pytest.approx(70)
    assert total("batches_per_s") == pytest.approx(11)
    whole = summary(samples)
    assert whole["batch_sizes"] | {"4": 10, "64": 1} == whole["batch_sizes"]
    assert sum(whole["batch_sizes"].values()) == 11
    assert list(whole["batch_sizes"])[-2:] == ["256", "+Inf"]
    assert whole["refused_per_s"] == {"400": pytest.approx(2 / whole["seconds"])}
    assert whole["samples_per_s"] == pytest.approx(70 / whole["seconds"])
    assert whole["samples_per_batch"] == pytest.approx(70 / 11)
    assert 0 < whole["compute_ms"] < 1000
    assert 0 < whole["queue_ms"] < 1000
    assert whole["samples"] == whole["samples_with_metrics"] == len(samples)
    assert samples[-1].at_s == pytest.approx(whole["seconds"])
    assert ServerSample.model_validate_json(samples[0].model_dump_json()) == samples[0]
    json.dumps(whole, allow_nan=False)


def test_a_short_rest_belongs_to_the_last_sample(service_url: str) -> None:
    """Requests just before the end count; no sample is shorter than half an interval."""
    with ServerWatch(service_url, interval_s=0.4) as watch:
        give_up_s = time.monotonic() + 10
        while len(watch.samples) < 2 and time.monotonic() < give_up_s:
            time.sleep(0.01)
        _ask(service_url, [BLANK] * 5)
    counts = [(sample.samples_per_s or 0) * sample.seconds for sample in watch.samples]
    assert sum(counts) == pytest.approx(5)
    assert min(sample.seconds for sample in watch.samples) >= 0.2


def test_the_services_processes_are_found_by_its_port(service_url: str) -> None:
    """The main process and its workers are found, with their memory and CPU time."""
    expected = {main_process(service_url), *worker_processes(service_url)}
    with ServerWatch(service_url, interval_s=0.2) as watch:
        give_up_s = time.monotonic() + 0.5
        while time.monotonic() < give_up_s:
            _ask(service_url, [BLANK] * 50)
    assert watch.processes.keys() == {process.pid for process in expected}
    assert os.getpid() not in watch.processes
    whole = summary(watch.samples)
    assert 0.05 < whole["cpu_cores"] < (os.cpu_count() or 1) + 0.5
    memory = sum(process.memory_info().rss for process in expected)
    assert whole["rss_bytes"] == pytest.approx(memory, rel=0.3)


def test_what_computes_beside_the_listener_belongs_with_it() -> None:
    """A parent with a listening and a computing child: all three processes are found."""
    port = free_port()
    script = f"sleep 60 & {sys.executable} -m loadtest.measure.noop --port {port}; wait"
    with subprocess.Popen(["sh", "-c", script], cwd=REPOSITORY, process_group=0) as process:
        try:
            give_up_s, names = time.monotonic() + 20, list[str]()
            while not names and time.monotonic() < give_up_s:
                time.sleep(0.05)
                with suppress(LookupError):
                    processes = Processes(f"http://127.0.0.1:{port}")
                    processes.used()
                    names = sorted(processes.names.values())
            assert [name.rstrip("0123456789.") for name in names] == ["python", "sh", "sleep"]
        finally:
            os.killpg(process.pid, signal.SIGKILL)


def test_a_server_without_metrics_is_watched_from_outside() -> None:
    """Counters are None for one reason; processes are known; a summary can be computed."""
    with noop_server() as url, ServerWatch(url, interval_s=0.1) as watch:
        time.sleep(0.35)
    assert len(watch.samples) >= 2
    for sample in watch.samples:
        assert [getattr(sample, name) for name in COUNTED] == [None] * len(COUNTED)
        assert sample.rss_bytes is not None
    assert watch.reasons["metrics"] == f"{url}/metrics: HTTP Error 404: Not Found"
    whole = summary(watch.samples)
    assert whole["samples_with_metrics"] == 0
    assert [whole[name] for name in COUNTED] == [None] * len(COUNTED)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            "# HELP other_total\nother_total 1\n",
            "none of the service's metrics (their names begin with inference_)",
        ),
        ("inference_samples_total{model=\n", r"could not convert"),
        ("inference_queued_samples NaN\n", "inference_queued_samples is nan"),
        ("inference_batch_samples_bucket 1\n", "'le'"),
    ],
)
def test_metrics_of_another_shape_are_a_reason(text: str, reason: str) -> None:
    """Another server's metrics, a broken line, a bad number or a missing bound give a reason."""
    with _telling(text) as (url, _), ServerWatch(url) as watch:
        pass
    assert [sample.samples_per_s for sample in watch.samples] == [None]
    assert reason in watch.reasons["metrics"]
    assert watch.reasons["processes"].endswith("runs within the process that watches it")


def test_a_server_that_is_gone_ends_no_load() -> None:
    """A server that ends or never existed gives samples of None and one reason each."""
    with noop_server() as url:
        watch = ServerWatch(url, interval_s=0.1)
        watch.__enter__()
        time.sleep(0.15)
    time.sleep(0.15)
    watch.__exit__(None, None, None)
    assert watch.samples[0].rss_bytes is not None
    assert watch.samples[-1].rss_bytes is None
    assert "no process listens on port" in watch.reasons["processes"]
    port = free_port()
    with ServerWatch(f"http://127.0.0.1:{port}", interval_s=0.1) as never:
        time.sleep(0.15)
    assert {sample.cpu_cores for sample in never.samples} == {None}
    assert "Connection refused" in never.reasons["metrics"]
    assert never.reasons["processes"].endswith(f"no process listens on port {port}")


def test_a_server_elsewhere_has_no_processes_here() -> None:
    """A remote address is recognised as another machine, whose processes are unknown."""
    elsewhere = Processes("http://192.0.2.1:80")
    with pytest.raises(LookupError, match=r"192\.0\.2\.1 is another machine"):
        elsewhere.used()
    assert not elsewhere.here


@pytest.mark.parametrize("url", ["nonsense", "http://[", "http://127.0.0.1:port", "http:///x"])
def test_what_is_no_url_ends_no_load(url: str) -> None:
    """Samples are None, with a reason for each unknown part."""
    with ServerWatch(url) as watch:
        pass
    assert watch.reasons.keys() == {"metrics", "processes", "gpu"}
    assert summary(watch.samples)["cpu_cores"] is None


def test_what_a_long_load_leaks_is_told() -> None:
    """Growth of 1 MiB and one file per second is reported; too few samples give None."""
    samples = [
        ServerSample(at_s=i, seconds=1, rss_bytes=2**20 * max(i, 10), open_files=max(i, 10))
        for i in range(40)
    ]
    whole = summary(samples)
    assert whole["rss_growth_bytes_per_h"] == pytest.approx(3600 * 2**20)
    assert whole["open_files_growth_per_h"] == pytest.approx(3600)
    assert summary(samples[:8])["rss_growth_bytes_per_h"] is None


def test_what_was_computed_in_vain_is_the_difference_to_what_was_answered() -> None:
    """With 50 samples/s computed and 30 answered for two seconds, 40 are in vain."""
    samples = [
        ServerSample(at_s=i + 1, seconds=1, samples_per_s=30.0, computed_per_s=50.0)
        for i in range(2)
    ]
    assert summary(samples)["samples_in_vain"] == 40


def test_a_summary_of_nothing_knows_nothing() -> None:
    """Without samples, the summary has zero seconds and None for all means."""
    whole = summary([])
    assert (whole["samples"], whole["seconds"], whole["samples_per_s"]) == (0, 0, None)


def test_an_error_in_the_load_stays_the_loads() -> None:
    """An error raised within the block propagates, and the watch ends."""
    with pytest.raises(ZeroDivisionError), noop_server() as url, ServerWatch(url):
        raise ZeroDivisionError
    assert "server watch" not in {thread.name for thread in threading.enumerate()}


def test_the_key_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """LOADTEST_API_KEY is sent as X-Api-Key; if it is not set, no such header is sent."""
    monkeypatch.delenv("LOADTEST_API_KEY", raising=False)
    with _telling("") as (url, keys):
        with ServerWatch(url):
            pass
        monkeypatch.setenv("LOADTEST_API_KEY", "a key of sixteen\n")
        with ServerWatch(url):
            pass
    assert keys == [None, None, "a key of sixteen", "a key of sixteen"]


def test_a_server_that_began_anew_is_counted_from_zero() -> None:
    """A smaller count means that the server restarted; no rate becomes negative."""
    before: Figures = read(
        'inference_samples_total{model="cnn"} 1000\ninference_queued_samples 9\n'
    )
    after = read(
        'inference_samples_total{model="cnn"} 30\ninference_samples_total{model="mlp"} 10\n'
    )
    assert between(before, after, 2.0)["samples_per_s"] == 20
    assert between(before, before, 2.0)["queued_samples"] == 9


def _nvidia_smi(folder: Path, script: str) -> None:
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)


def test_what_nvidia_smi_tells_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The busiest GPU and total memory are kept; an unknown use is ignored; the process ends."""
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    lines = "echo 0, 12, 1000; echo 1, 90, 24; echo 2, '[N/A], 0'"
    _nvidia_smi(
        tmp_path, f'echo "$@" > {tmp_path}/asked; echo $$ > {tmp_path}/pid; {lines}\nexec sleep 60'
    )
    with noop_server() as url, ServerWatch(url, interval_s=0.1) as watch:
        give_up_s = time.monotonic() + 10
        while watch.samples[-1:] == [] or watch.samples[-1].gpu_percent is None:
            assert time.monotonic() < give_up_s
            time.sleep(0.02)
    assert (watch.samples[-1].gpu_percent, watch.samples[-1].gpu_bytes) == (90, 1024 * 2**20)
    assert "--loop-ms=100" in (tmp_path / "asked").read_text()
    assert "gpu" not in watch.reasons
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_a_gpu_that_cannot_be_asked_is_a_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If nvidia-smi prints an error, it becomes the reason, and the fields are None."""
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    _nvidia_smi(tmp_path, "echo NVIDIA-SMI has failed; exit 9")
    with noop_server() as url, ServerWatch(url, interval_s=0.1) as watch:
        give_up_s = time.monotonic() + 10
        while "gpu" not in watch.reasons and time.monotonic() < give_up_s:
            time.sleep(0.02)
    assert watch.reasons["gpu"] == "nvidia-smi: NVIDIA-SMI has failed"
    assert {sample.gpu_bytes for sample in watch.samples} == {None}
