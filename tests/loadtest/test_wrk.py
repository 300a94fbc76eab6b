"""Results of wrk are accepted only if every request was answered."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from loadtest.generator.expectations import Expectations
from loadtest.generator.payloads import Model, prepare
from loadtest.generator.wrk import WrkError, alone, by_wrk
from tests.tiny import SERVED_BUNDLES

BUNDLE = SERVED_BUNDLES / "cnn"
needs_wrk = pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk is not installed")
SAID = """Running 1s test
  Latency Distribution
     50%  1.00ms
     75%  1.50ms
     90%  1.80ms
     99%  2.00ms
  1000 requests in 1.00s, 1.00MB read
{further}
Requests/sec:   1000.00
"""


def _by_wrk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, further: str) -> float:
    program = tmp_path / "wrk"
    program.write_text(f"#!/bin/sh\ncat <<'END'\n{SAID.format(further=further)}END\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    request = prepare(Model(BUNDLE), "infer/raw")[0]
    return by_wrk(tmp_path, "http://127.0.0.1:1", request, 1, 1).requests_per_s


def test_a_run_without_errors_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rate is the one that wrk prints."""
    assert _by_wrk(tmp_path, monkeypatch, "") == 1000


@pytest.mark.parametrize(
    "further",
    [
        "  Socket errors: connect 0, read 3, write 0, timeout 0",
        "  Socket errors: connect 0, read 0, write 0, timeout 7",
        "  Non-2xx or 3xx responses: 4",
    ],
)
def test_a_run_with_errors_is_refused(
    further: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lost, timed-out or refused requests make the run an error."""
    with pytest.raises(WrkError, match=further.strip().split(":")[0]):
        _by_wrk(tmp_path, monkeypatch, further)


def test_the_runtime_alone_gives_figures_or_says_what_is_wrong(served_bundle: Path) -> None:
    """It gives a rate and latencies; a bundle with other golden outputs is refused."""
    measured = alone(served_bundle, samples=8, seconds=1)
    assert measured.requests_per_s > 10
    assert 0 < measured.p50_ms <= measured.p99_ms
    with np.load(served_bundle / "golden.npz") as content:
        arrays = dict(content)
    arrays["eager/probabilities"] = np.roll(arrays["eager/probabilities"], 1, axis=1)
    np.savez(served_bundle / "golden.npz", **arrays)
    with pytest.raises(WrkError, match="is wrong: probabilities"):
        alone(served_bundle, samples=8, seconds=1)


@needs_wrk
def test_every_answer_is_verified_where_a_judge_is_given(
    service_url: str, served_bundle: Path, tmp_path: Path
) -> None:
    """The service's answers pass; other golden samples give the complaint."""
    honest = Expectations(BUNDLE, 3, "infer/raw")
    request = honest.requests[0]
    assert by_wrk(tmp_path, service_url, request, 4, 1, honest).requests_per_s > 1
    assert honest.named == ("cpu", "onnx")
    with np.load(served_bundle / "golden.npz") as content:
        arrays = dict(content)
    arrays["truth/logits"] = np.roll(arrays["truth/logits"], 1, axis=1)
    np.savez(served_bundle / "golden.npz", **arrays)
    spoilt = Expectations(served_bundle, 3, "infer/raw")
    with pytest.raises(WrkError, match="wrong answers, for example: probabilities: labels"):
        by_wrk(tmp_path, service_url, spoilt.requests[0], 4, 1, spoilt)
