"""The comparison with the tutorial's form asks all servers the same images, or says why not."""

import dataclasses
import io
import json
import shutil
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import HTTP
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from loadtest.__main__ import main
from loadtest.client.forms import Forms
from loadtest.client.wrk import WrkError, alone, check
from loadtest.server import running_service
from loadtest.yardstick import PLAIN, TUTORIAL, YardstickError, chosen, requests
from tests.service.processes import worker_processes
from tests.tiny import SERVED_BUNDLES

BUNDLE = SERVED_BUNDLES / "cnn"
FORMS = Forms(BUNDLE)
needs_wrk = pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk is not installed")


def _pixels(png: bytes) -> bytes:
    with Image.open(io.BytesIO(png)) as image:
        return image.tobytes()


def test_all_forms_ask_the_same_image() -> None:
    """JSON, raw and binary bodies and files hold the same pixels; the tutorial's form is first."""
    asked = requests(FORMS)
    assert asked[0].name == "tutorial, JSON"
    first = {request.name: request for request in asked}
    pixels = bytes(
        json.loads(first["JSON"].body)["images"][i][j] for i in range(28) for j in range(28)
    )
    assert first["raw binary"].body == pixels
    assert first["binary"].body.endswith(pixels)
    assert len(first["raw binary, 64 images"].body) == 64 * 784
    assert _pixels(first["PNG upload"].body) == pixels
    form = first["PNG upload in a form"]
    head = f"Content-Type: {form.headers['content-type']}\r\n\r\n".encode()
    message = message_from_bytes(head + form.body, policy=HTTP)
    assert isinstance(message, EmailMessage)
    (part,) = message.iter_parts()
    assert part.get_param("name", header="content-disposition") == "image"
    assert _pixels(part.get_content()) == pixels
    tutorial = json.loads(first["tutorial, JSON"].body)["images"]
    assert bytes(value for row in tutorial[0] for value in row) == pixels


def test_further_workers_are_asked_in_the_raw_forms_alone() -> None:
    """Each number of processes is a server of its own, named but for one."""
    asked = {request.name: request.server for request in requests(FORMS, [1, 2])}
    assert asked["raw binary"] != asked["raw binary, 2 workers"]
    assert asked["raw binary, 2 workers"] == asked["raw binary, 64 images, 2 workers"]
    assert [name for name in asked if "2 workers" in name] == [
        "raw binary, 2 workers",
        "raw binary, 64 images, 2 workers",
    ]
    assert "JSON" not in {request.name for request in requests(FORMS, [2])}


def test_chosen_forms_keep_what_they_are_compared_with() -> None:
    """A word keeps the forms that hold it and their base; one that none holds is an error."""
    asked = requests(FORMS)
    assert [r.name for r in chosen(asked, ["upload"])] == [
        "tutorial, JSON",
        "PNG upload",
        "PNG upload in a form",
    ]
    assert [r.name for r in chosen(asked, ["alone"])] == [
        "tutorial, JSON, 64 images",
        "ONNX Runtime alone, 64 images",
    ]
    assert chosen(asked, []) == asked
    with pytest.raises(YardstickError, match='"raw binary"'):
        chosen(asked, ["x-ray"])


def test_each_form_is_answered_with_the_right_digits(service_url: str) -> None:
    """The real service passes the check of every form; other digits do not."""
    ours = [request for request in requests(FORMS) if request.server == "service 1"]
    assert len(ours) == 6
    for request in ours:
        check(service_url, request, FORMS)
        wrong = dataclasses.replace(request, labels=("x", *request.labels[1:]))
        with pytest.raises(WrkError, match="expected"):
            check(service_url, wrong, FORMS)


def _libraries(url: str) -> str:
    (worker,) = worker_processes(url)
    return Path(f"/proc/{worker.pid}/maps").read_text()


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="no /proc here")
@pytest.mark.parametrize("plain", [True, False])
def test_the_base_runs_without_uvloop_and_httptools(plain: bool, tmp_path: Path) -> None:
    """Its worker has neither of the libraries in memory; the other row's has both."""
    settings = {"BUNDLE": str(BUNDLE), "PLAIN": str(int(plain))}
    with running_service(tmp_path / "log", service=TUTORIAL, settings=settings) as url:
        check(url, FORMS.tutorial(PLAIN, "tutorial, JSON"), FORMS)
        libraries = _libraries(url)
    assert "onnxruntime" in libraries
    for name in ("uvloop/loop", "httptools/parser"):
        assert (name in libraries) != plain


def test_the_runtime_alone_gives_figures_or_says_what_is_wrong(served_bundle: Path) -> None:
    """A rate of batches and their times; a bundle of other golden samples is refused."""
    measured = alone(served_bundle, images=8, seconds=1)
    assert measured.requests_per_s > 10
    assert 0 < measured.p50_ms <= measured.p99_ms
    with np.load(served_bundle / "golden.npz") as content:
        arrays = dict(content)
    arrays["truth/logits"] = np.roll(arrays["truth/logits"], 1, axis=1)
    np.savez(served_bundle / "golden.npz", **arrays)
    with pytest.raises(WrkError, match="wrongly"):
        alone(served_bundle, images=8, seconds=1)


def test_without_wrk_or_a_bundle_the_reason_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Status 2, and what to install or to make."""
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["yardstick", "--bundle", str(BUNDLE)]) == 2
    assert "apt install wrk" in capsys.readouterr().err
    monkeypatch.undo()
    assert main(["yardstick", "--bundle", str(tmp_path)]) == 2
    assert "is no bundle" in capsys.readouterr().err or shutil.which("wrk") is None


@pytest.mark.slow
@needs_wrk
def test_ratios_of_every_form_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    """A row for each form; the tutorial's own ratio is 1; the runtime's own rate stands below."""
    command = ["yardstick", "--bundle", str(BUNDLE), "--connections", "2"]
    assert main([*command, "--rounds", "1", "--seconds", "1", "--workers", "1", "2"]) == 0
    printed = capsys.readouterr().out
    rows = [line for line in printed.splitlines() if line.startswith("| 2 |")]
    assert len(rows) == 12
    assert "| tutorial, JSON | 1.0 x |" in rows[0]
    assert "raw binary, 64 images, 2 workers: " in printed.splitlines()[-1]
