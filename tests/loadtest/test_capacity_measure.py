"""The points measured of a real replica, and the configuration of a proxy with two."""

import json
import os
import shutil
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import psutil
import pytest

from loadtest.__main__ import main
from loadtest.capacity.check import compare, sentence, watch
from loadtest.capacity.client import ClientError, Timing, send_at, send_in_turn
from loadtest.capacity.measure import read_sweep
from loadtest.capacity.points import PointsError, load_points
from loadtest.capacity.proxy import CONFIGURATION, ProxyError, adapt, running_proxy
from loadtest.capacity.simulation import POLICIES, poisson_arrivals, simulate
from loadtest.generator.expectations import Expectations
from loadtest.measure.noop import noop_server
from tests.loadtest.capacity_points import made_points
from tests.tiny import SERVED_BUNDLES

CNN = SERVED_BUNDLES / "cnn"
needs_haproxy = pytest.mark.skipif(
    shutil.which("haproxy") is None, reason="haproxy is not installed: apt install haproxy"
)


EARLY_S = 0.002  # uvloop ends a sleep up to 1.2 ms early


@pytest.fixture(scope="module")
def expectations() -> Expectations:
    """Expectations for requests of four samples."""
    return Expectations(CNN, 4, "infer/raw")


def test_answers_are_verified_and_say_what_they_took(
    service_url: str, expectations: Expectations
) -> None:
    """In turn, each request is its own batch; latency includes the service's reported times."""
    timings = send_in_turn(service_url, expectations, 30)
    assert len(timings) == 30
    assert {timing.batch_samples for timing in timings} == {4}
    assert all(t.latency_ms > t.queue_ms + t.compute_ms > 0 for t in timings)
    assert all(a.sent_s < b.sent_s for a, b in pairwise(timings))


def test_requests_are_sent_when_they_are_due(service_url: str, expectations: Expectations) -> None:
    """No request is early, except by uvloop's timer error; simultaneous ones go out together."""
    timings = send_at(service_url, expectations, [0.1, 0.1, 0.1, 0.3])
    sent_s = [timing.sent_s for timing in timings]
    assert sent_s[0] >= 0.1 - EARLY_S
    assert sent_s[3] >= 0.3 - EARLY_S


def test_a_wrong_answer_ends_the_measurement(service_url: str) -> None:
    """Another model's answers do not match the golden samples, so the client raises."""
    expectations = Expectations(CNN, 1, "infer/raw")
    for request in expectations.requests:
        request.path = request.path.replace("/cnn/", "/mlp/")
    with pytest.raises(ClientError, match="gave a wrong answer"):
        send_in_turn(service_url, expectations, 60)


def test_a_server_without_the_header_is_named(expectations: Expectations) -> None:
    """The no-op server's answers lack the timing header, so the client raises."""
    with noop_server() as url, pytest.raises(ClientError):
        send_in_turn(url, expectations, 1)


@needs_haproxy
def test_the_points_of_a_real_replica_are_measured(tmp_path: Path) -> None:
    """The file of points can be loaded, names the model, and has plausible times."""
    out = tmp_path / "points.json"
    command = ["capacity", "measure", "--bundle", str(CNN), "--samples-per-request", "4"]
    assert main([*command, "--requests", "40", "--rate", "40", "--out", str(out)]) == 0
    points = load_points(out)
    assert points.model.startswith("cnn ")
    assert points.request_bytes > 4 * 784
    assert 0 < points.sample_ms < 50
    assert points.proxy_ms is not None
    assert points.start_s > 0.1
    assert points.memory_mib > 50
    assert set(points.scatter) == {1, 2, 4, 8, 16, 32, 64}
    assert points.at_slo is None
    simulate(points, np.zeros(3), replicas=2, policy="least-loaded", seed=0)


@needs_haproxy
def test_the_adapted_proxy_reaches_every_replica(
    service_url: str, expectations: Expectations, tmp_path: Path
) -> None:
    """HAProxy accepts the configuration, and answers through it are right."""
    with running_proxy(tmp_path, [service_url, service_url], "round-robin") as url:
        assert len(send_in_turn(url, expectations, 10)) == 10


def test_only_addresses_and_the_policy_are_changed() -> None:
    """All other lines are unchanged; an unexpected configuration file is refused."""
    text = CONFIGURATION.read_text()
    adapted = adapt(text, 8123, ["127.0.0.1:1", "127.0.0.1:2"], "round-robin")
    gone = set(text.splitlines()) - set(adapted.splitlines())
    new = set(adapted.splitlines()) - set(text.splitlines())
    assert new == {
        "    bind 127.0.0.1:8123",
        "    balance roundrobin",
        "    server replica0 127.0.0.1:1",
        "    server replica1 127.0.0.1:2",
    }
    assert all(
        line.strip().split()[0]
        in {"bind", "balance", "server-template", "resolvers", "parse-resolv-conf"}
        or line.strip().startswith(
            ("accepted_payload_size", "timeout resolve", "timeout retry", "hold")
        )
        for line in gone
    ), gone
    with pytest.raises(ProxyError, match="bind :8080"):
        adapt(text.replace("bind :8080", "bind :80"), 8123, [], "round-robin")


def test_a_simulation_of_itself_has_no_error() -> None:
    """Simulated measurements give a ratio of 1; doubled latencies give a ratio of 0.5."""
    points = made_points(fixed_ms=2.0, max_batch_samples=8)
    arrived = poisson_arrivals(300, 20, seed=1)
    outcome = simulate(points, arrived, replicas=2, policy="least-loaded", seed=1)
    for factor in (1, 2):
        timings = [
            Timing(float(sent_s), factor * float(latency), 0, 0, 1, 1)
            for sent_s, latency in zip(arrived, outcome.latency_ms, strict=True)
        ]
        found = compare(points, timings, "least-loaded", 0.3, seed=1, other_share=0.2)
        assert (found.p50, found.p99) == pytest.approx((1 / factor, 1 / factor))
        assert not found.is_valid
        assert "other work took 20% of the cores: INVALID" in sentence(found)


@needs_haproxy
def test_the_simulation_is_held_against_two_real_replicas(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each policy is compared at each share; the validity depends on the machine's other work."""
    points, out = tmp_path / "points.json", tmp_path / "check.json"
    points.write_text(made_points(model="cnn", samples_per_request=4).model_dump_json())
    command = ["capacity", "check", str(points), "--bundle", str(CNN), "--json", str(out)]
    status = main([*command, "--shares", "0.05", "0.1", "--seconds", "1"])
    found = json.loads(out.read_text())
    assert [(one["policy"], one["share"]) for one in found] == [
        (policy, share) for policy in POLICIES for share in (0.05, 0.1)
    ]
    assert all(one["p50"] > 0 and one["requests"] > 10 for one in found)
    assert status == (0 if any(one["other_share"] <= 0.1 for one in found) else 3)
    assert capsys.readouterr().err.count("simulated / measured") == 4


def test_work_of_other_processes_is_counted(service_url: str) -> None:
    """A busy process counts as other work, however busy the machine is."""
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as other:
        with watch([service_url]) as disturbed:
            time.sleep(1.0)
        other.kill()
    assert disturbed.other_share > 0.3 / (os.cpu_count() or 1)


def test_our_own_work_is_not_counted(service_url: str) -> None:
    """CPU time of this process counts for the machine, but not as other work."""

    def busy_s() -> float:
        times = psutil.cpu_times()
        return float(sum(times[:4]) - times.idle)

    began_s, busy_before, own_before = time.perf_counter(), busy_s(), time.process_time()
    with watch([service_url]) as used:
        while time.process_time() < own_before + 0.5:
            pass
    cores_s = (time.perf_counter() - began_s) * (os.cpu_count() or 1)
    assert (busy_s() - busy_before) - used.other_share * cores_s > 0.4


def test_a_sweep_without_a_valid_capacity_is_refused(tmp_path: Path) -> None:
    """A file that is not a sweep's is refused too."""
    path = tmp_path / "sweep.json"
    content = (
        '{"slo_ms": 20, "ceiling_per_s": 1, "closed_loop_per_s": 1, "points": [], "capacity": null}'
    )
    path.write_text(content)
    with pytest.raises(PointsError, match="found no valid point within 20 ms"):
        read_sweep(path)
    path.write_text("{}")
    with pytest.raises(PointsError, match="is not the result of an open-loop"):
        read_sweep(path)
