"""The peer comparison skips unavailable servers and verifies the answers of all others."""

import http.server
import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest

from loadtest.__main__ import main
from loadtest.generator.expectations import Expectations
from loadtest.generator.payloads import PeerForm
from loadtest.measure.run import generate
from loadtest.peers.peer import (
    Peer,
    PeerError,
    SkippedError,
    ask,
    declared,
    environment,
    packages,
    running,
)
from loadtest.peers.run import ENVIRONMENTS, Comparison, Plan, Server, forms_of
from loadtest.scenarios import Profile, load_scenario
from tests.loadtest.tiny_peer import ANSWERS, BUNDLE, IMAGES, SERVER, write_peer

needs_wrk = pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk is not installed")


def _compare(tmp_path: Path, *further: str) -> int:
    command = ["peers", "--bundle", str(BUNDLE), "--folder", str(tmp_path / "peers")]
    command += ["--environments", str(tmp_path / "environments"), "--out", str(tmp_path / "out")]
    command += ["--connections", "2", "--rounds", "2", "--seconds", "1", *further]
    return main(command)


def test_the_repository_declares_its_peers() -> None:
    """Each peer is pinned and has a known form, and all promised frameworks are present."""
    peers = declared()
    names = " ".join(peer.name for peer in peers)
    for framework in ("BentoML", "FastAPI", "LitServe", "mosec", "Triton"):
        assert framework in names
    assert all(peer.form in get_args(PeerForm) and peer.requirements for peer in peers)
    assert {peer.name for peer in declared(words=["fastapi"])} == {
        "FastAPI",
        "FastAPI, 2 processes",
    }
    assert len({peer.home for peer in declared(words=["mosec"])}) == 1
    with pytest.raises(PeerError, match="LitServe"):
        declared(words=["x-ray"])


@pytest.mark.parametrize(
    ("was", "becomes", "told"),
    [
        ("dependencies = []", 'dependencies = ["numpy"]', "pin"),
        ('path = "/digits"', 'path = "digits"', "path"),
        ('form = "tensors"', 'form = "smoke signals"', "form"),
        ('settings = "as it comes"', 'setings = "?"', "setings"),
        ("[[tool.peer]]", "[[tool.beer]]", "peer"),
        ("dependencies", "dependencies dependencies", "TOML"),
    ],
)
def test_a_comment_that_is_not_right_is_refused(
    was: str, becomes: str, told: str, tmp_path: Path
) -> None:
    """The error names the file and the fault."""
    file = write_peer(tmp_path, "tiny")
    file.write_text(file.read_text().replace(was, becomes, 1))
    with pytest.raises(PeerError, match=rf"(?s)tiny\.py.*{told}"):
        declared(tmp_path)


def test_peers_are_asked_for_as_many_samples_as_this_service() -> None:
    """Peers with 64 samples are measured only if this service is measured with 64, too."""
    tutorials = [peer.samples for peer in Plan(words=("tutorial",)).peers()]
    assert tutorials == [1, 1]
    every = Plan(words=("tutorial",), own=forms_of((1,)))
    assert sorted(peer.samples for peer in every.peers()) == [1, 1, 64]


def test_earlier_names_of_forms_are_accepted(tmp_path: Path) -> None:
    """The peer file of an earlier release keeps its form of request."""
    file = write_peer(tmp_path, "tiny")
    for earlier, now in (("pixels", "tensors"), ("open-inference", "infer/binary")):
        file.write_text(file.read_text().replace('form = "tensors"', f'form = "{earlier}"'))
        (peer,) = declared(tmp_path)
        assert peer.form == now
        file.write_text(file.read_text().replace(f'form = "{earlier}"', 'form = "tensors"'))


def test_a_file_without_the_comment_is_no_peer_and_names_are_unique(tmp_path: Path) -> None:
    """The file is ignored; two peers with the same name are an error."""
    (tmp_path / "no_peer.py").write_text("import sys\n")
    first = write_peer(tmp_path, "tiny")
    assert [peer.file for peer in declared(tmp_path)] == [first]
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "__main__.py").write_text(first.read_text().replace("tiny", "other"))
    assert [peer.home for peer in declared(tmp_path)] == ["folder", "tiny"]
    (tmp_path / "folder" / "__main__.py").write_text(first.read_text())
    with pytest.raises(PeerError, match="several peers have the name tiny"):
        declared(tmp_path)


def _peer(tmp_path: Path, server: str = SERVER, requirements: str = "") -> Peer:
    (peer,) = declared(
        write_peer(tmp_path / "peers", "tiny", server, requirements=requirements).parent
    )
    return peer


def test_a_peer_that_cannot_be_installed_is_skipped_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reason is pip's last line; the incomplete environment is not reused."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    peer = _peer(tmp_path, requirements='"a-package-that-is-nowhere==1.0"')
    for _ in range(2):
        with pytest.raises(SkippedError, match=r"No matching distribution found for a-package"):
            environment(peer, tmp_path / "environments")


def test_an_environment_is_of_its_own_and_reused(tmp_path: Path) -> None:
    """It has none of this environment's packages, and is recreated only for other pins."""
    peer = _peer(tmp_path)
    python = environment(peer, tmp_path / "environments")
    assert packages(python) == []
    assert "include-system-site-packages = false" in (python.parents[1] / "pyvenv.cfg").read_text()
    (python.parents[1] / "trace").touch()
    assert environment(peer, tmp_path / "environments") == python
    assert (python.parents[1] / "trace").exists()
    (python.parents[1] / "peer-requirements.txt").write_text("other==1.0\n")
    environment(peer, tmp_path / "environments")
    assert not (python.parents[1] / "trace").exists()


def test_a_peer_that_does_not_start_is_skipped_with_the_end_of_its_log(tmp_path: Path) -> None:
    """The reason is its exit status and the end of its log."""
    peer = _peer(tmp_path, "raise SystemExit('no model | today')\n")
    python = environment(peer, tmp_path / "environments")
    with (
        pytest.raises(SkippedError, match="exited with status 1 while starting: no model / today"),
        running(peer, python, BUNDLE, tmp_path / "scratch", IMAGES[0]),
    ):
        pass


@needs_wrk
def test_a_peer_that_answers_wrongly_fails_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Status 1 before the measurement, and the error names the sample and the labels."""
    write_peer(tmp_path / "peers", "tiny", honest=40)
    assert _compare(tmp_path) == 1
    assert "FAILED: tiny, sample 39: probabilities: labels" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


class _MixedUp(http.server.BaseHTTPRequestHandler):
    """Gives every requester the answer to the previous request, whoever sent it."""

    protocol_version, wbufsize = "HTTP/1.1", -1
    last = threading.Lock(), [b""]

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def do_POST(self) -> None:
        pixels = self.rfile.read(int(self.headers["content-length"]))
        lock, last = self.last
        with lock:
            given, last[0] = last[0] or pixels, pixels
        (asked,) = (r for r in IMAGES if r.content == given)
        body = ANSWERS[asked.positions[0]].tobytes()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        """Log nothing."""


@pytest.fixture
def mixed_up_url() -> Iterator[str]:
    """The URL of a server that answers rightly only if all requests have the same image."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _MixedUp) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_answers_given_to_the_wrong_requester_are_noticed(mixed_up_url: str) -> None:
    """Locust's users send different golden images at once, and judge each answer separately."""
    scenario = load_scenario("Concurrency", users=4)
    profile = Profile(name="short", duration_s=1, warmup_s=0.2, runs=1)
    tally = generate(scenario, mixed_up_url, [BUNDLE], profile, peer=("tensors", "/digits"))
    assert tally.wrong_answers > 0
    server = Server("mixed up", "", "tensors", mixed_up_url, by_locust=[tally])
    (told,) = Comparison(Plan(), [server], []).wrong
    assert told.startswith(
        f"mixed up: {tally.wrong_answers} wrong answers under load, for example: "
    )


def test_without_wrk_a_bundle_or_a_sound_plan_the_reason_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Status 2, and a message that says what is wrong or missing."""
    assert _compare(tmp_path, "--rounds", "0") == 2
    assert "must be positive" in capsys.readouterr().err
    if shutil.which("wrk") is not None:
        assert _compare(tmp_path, "--bundle", str(tmp_path)) == 2
        assert "is not a bundle" in capsys.readouterr().err
        assert _compare(tmp_path) == 2
        assert "no peer's name" in capsys.readouterr().err
    monkeypatch.setenv("PATH", str(tmp_path))
    assert _compare(tmp_path) == 2
    assert "apt install wrk" in capsys.readouterr().err


@pytest.mark.slow
@needs_wrk
def test_the_whole_command_measures_verifies_and_reports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A right peer has figures, a missing one a reason; one that turns wrong fails the run."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    write_peer(tmp_path / "peers", "tiny")
    write_peer(tmp_path / "peers", "missing", requirements='"a-package-that-is-nowhere==1.0"')
    assert _compare(tmp_path, "--cores", "split") == 0
    printed = capsys.readouterr().out
    assert printed == (tmp_path / "out" / "peers.md").read_text()
    lines = [line.split(" | ") for line in printed.splitlines() if line.startswith("| ")]
    base = next(cells for cells in lines if cells[:2] == ["| 2", "this service"])
    assert base[2:4] == ["1.00 x", "1.00 to 1.00"]
    missing = next(cells for cells in lines if cells[0] == "| missing")
    assert "skipped: installation failed" in missing[-1]
    result = json.loads((tmp_path / "out" / "peers.json").read_text())
    assert [server["name"] for server in result["servers"]][-1] == "tiny"
    (tiny,) = [server for server in result["servers"] if server["name"] == "tiny"]
    assert (tiny["request_body_bytes"], tiny["answer_body_bytes"]) == (784, 40)
    ratio, low, high = tiny["figures"][0]["ratio"]
    assert 0 < low <= ratio <= high
    assert len(tiny["figures"][0]["ratios"]) == 2
    assert tiny["check"]["answers_verified"] > 100
    assert 0 < tiny["check"]["locust_over_wrk"][0] < 5
    assert 0 < tiny["check"]["locust_cpu_share"] < 2
    assert (tiny["check"]["wrong"], tiny["check"]["other"]) == (0, {})
    assert [skipped["name"] for skipped in result["skipped"]] == ["missing"]

    write_peer(tmp_path / "peers", "tiny", honest=len(IMAGES) + 2)
    assert _compare(tmp_path, "--peers", "tiny") == 1
    assert "FAILED: tiny: " in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("peer", declared(), ids=lambda peer: peer.name)
def test_every_peer_of_the_repository_answers_rightly(peer: Peer, tmp_path: Path) -> None:
    """With pinned packages, all golden images get the right digit, serially and in parallel."""
    try:
        python = environment(peer, ENVIRONMENTS)
    except SkippedError as reason:
        pytest.skip(str(reason))
    expectations = Expectations(BUNDLE, peer.samples, peer.form, peer.path)
    first = expectations.requests[0]
    scenario = load_scenario("Concurrency", users=16, samples_per_request=peer.samples)
    profile = Profile(name="short", duration_s=1, warmup_s=0.5, runs=1)
    with running(peer, python, BUNDLE, tmp_path / "scratch", first) as url:
        for request in expectations.requests:
            headers, body = ask(url, request)
            assert expectations.complaint(request, body, headers) is None
        tally = generate(scenario, url, [BUNDLE], profile, peer=(peer.form, peer.path))
    assert (tally.wrong_answers, tally.errors) == (0, {})
    assert tally.in_window > 10
