"""The comparison with the tutorial's form asks both servers the same images, or says why not."""

import json
import shutil
from pathlib import Path

import pytest

from loadtest.__main__ import main
from loadtest.yardstick import requests
from tests.tiny import SERVED_BUNDLES

BUNDLE = SERVED_BUNDLES / "cnn"


def test_all_forms_ask_the_same_image() -> None:
    """JSON, raw and binary bodies hold the same pixels; the tutorial's form comes first."""
    asked = requests(BUNDLE)
    assert [request.server for request in asked].count("tutorial") == 2
    first = {request.name: request for request in asked}
    pixels = bytes(
        json.loads(first["JSON"].body)["images"][i][j] for i in range(28) for j in range(28)
    )
    assert first["raw binary"].body == pixels
    assert first["binary"].body.endswith(pixels)
    assert len(first["raw binary, 64 images"].body) == 64 * 784
    tutorial = json.loads(first["tutorial, JSON"].body)["images"]
    assert bytes(value for row in tutorial[0] for value in row) == pixels


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
@pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk is not installed")
def test_ratios_of_every_form_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    """A row for each form; the tutorial's own ratio is 1."""
    command = ["yardstick", "--bundle", str(BUNDLE), "--connections", "2"]
    assert main([*command, "--rounds", "1", "--seconds", "1"]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| 2 |")]
    assert len(rows) == 6
    assert "| tutorial, JSON | 1.0 x |" in rows[0]
