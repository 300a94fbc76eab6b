"""The load test works with any bundle, using only its manifest and golden samples."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from loadtest.__main__ import main
from loadtest.generator.expectations import Expectations
from loadtest.generator.payloads import Form, Model, PayloadError, prepare, usable_form
from loadtest.server import running_service
from tests.service.made_bundles import make_rgb_bundle, make_text_bundle, make_vector_bundle
from tests.tiny import SERVED_BUNDLES

NAMES = ("vectors", "text", "colours", "cnn")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bundles with vectors, with token ids and a mask, with RGB images, and with digits."""
    folder = tmp_path_factory.mktemp("any") / "bundles"
    make_vector_bundle(folder)
    make_text_bundle(folder)
    make_rgb_bundle(folder)
    shutil.copytree(SERVED_BUNDLES / "cnn", folder / "cnn")
    return folder


@pytest.fixture(scope="module")
def url(folder: Path) -> Iterator[str]:
    """The URL of the real service with all these bundles."""
    settings = {"INFERENCE_BUNDLES": str(folder), "INFERENCE_DEVICE": "cpu"}
    with running_service(folder.parent / "log", settings=settings) as found:
        yield found


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("form", ["predict", "infer/json", "infer/binary", "infer/raw"])
def test_each_form_is_answered_rightly_and_for_its_own_samples(
    name: str, form: Form, folder: Path, url: str
) -> None:
    """The right answer passes; a truncated one and another request's do not."""
    if form == "infer/raw" and name == "text":
        pytest.skip("two inputs have no bare form")
    expectations = Expectations(folder / name, 3, form)
    first, second = expectations.requests[:2]
    answer = httpx.post(url + first.path, content=first.content, headers=first.headers)
    assert answer.status_code == 200, answer.text
    assert expectations.complaint(first, answer.content, answer.headers) is None
    assert expectations.named == ("cpu", "onnx")
    assert expectations.complaint(second, answer.content, answer.headers) is not None
    assert expectations.complaint(first, answer.content[:-7], answer.headers) is not None


def _answer(name: str, version: str, outputs: dict[str, Any]) -> bytes:
    """The body of an answer of /models/NAME/predict."""
    said = {"model": name, "version": version, "variant": "onnx", "device": "cpu"}
    return json.dumps({**said, "outputs": outputs}).encode()


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda y: y, None),
        (lambda y: y * (1 + 1e-7), None),
        (lambda y: y * (1 + 1e-4), "scaled error"),
        (lambda y: np.roll(y, 1, axis=1), "scaled error"),
        (lambda y: np.full_like(y, np.nan), "scaled error nan"),
        (lambda y: y[:, :1], "has shape"),
        (lambda y: y.astype(str), "not numbers"),
    ],
)
def test_values_are_held_to_the_tolerance_of_the_bundle(
    change: Any, complaint: str | None, folder: Path
) -> None:
    """A rounding error passes; an error of 1e-4, a wrong order, NaN or a wrong shape fails."""
    expectations = Expectations(folder / "vectors", 2, "predict")
    (model,) = expectations.models
    y = change(model.eager["y"][:2].astype(np.float64))
    answer = _answer(model.name, model.version, {"y": y.tolist()})
    found = expectations.complaint(expectations.requests[0], answer, {})
    assert (found is None) == (complaint is None), found
    assert complaint is None or complaint in str(found)


def test_an_output_that_is_missing_is_wrong(folder: Path) -> None:
    """An answer without the model's only output is a wrong answer."""
    expectations = Expectations(folder / "vectors", 1, "predict")
    (model,) = expectations.models
    answer = _answer(model.name, model.version, {"z": [[1.0, 2.0]]})
    assert "y is missing, expected shape (1, 2)" in str(
        expectations.complaint(expectations.requests[0], answer, {})
    )


def test_integers_must_be_equal(folder: Path, tmp_path: Path) -> None:
    """Integer outputs have no tolerance: a value that is off by one is wrong."""
    bundle = shutil.copytree(folder / "vectors", tmp_path / "vectors")
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["outputs"][0]["datatype"] = "INT64"
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    with np.load(bundle / "golden.npz") as content:
        arrays = dict(content)
    for group in ("eager", "truth"):
        arrays[f"{group}/y"] = np.arange(12).reshape(6, 2)
    np.savez(bundle / "golden.npz", **arrays)
    expectations = Expectations(bundle, 1, "predict")
    version = expectations.models[0].version
    for values, is_right in (([[0, 1]], True), ([[0, 2]], False)):
        answer = _answer("vectors", version, {"y": values})
        found = expectations.complaint(expectations.requests[0], answer, {})
        assert (found is None) == is_right
        assert is_right or "1 values differ" in str(found)


def test_in_fewer_bits_noise_is_bounded(folder: Path) -> None:
    """int8 is judged by its signal-to-noise ratio: small noise passes, garbage fails."""
    expectations = Expectations(folder / "colours", 1, "predict")
    (model,) = expectations.models
    logits = model.eager["logits"][:1].astype(np.float64)
    for values, is_right in ((logits + 1e-4, True), (logits[:, ::-1], False)):
        said = {"model": "colours", "version": model.version, "device": "cpu"}
        content = {**said, "variant": "onnx-int8", "outputs": {"logits": values.tolist()}}
        answer = json.dumps(content).encode()
        found = expectations.complaint(expectations.requests[0], answer, {})
        assert (found is None) == is_right, found


def test_what_cannot_be_asked_says_what_can(folder: Path) -> None:
    """The error suggests a usable form for two inputs without a raw form and for non-images."""
    text, digits = Model(folder / "text"), Model(folder / "cnn")
    for form in ("infer/raw", "predict/image", "json"):
        with pytest.raises(PayloadError, match="use infer/binary"):
            prepare(text, form)
    assert usable_form([digits, text], "infer/raw") == "infer/binary"
    assert usable_form([digits], "predict/image") == "predict/image"


def _run(url: str, out: Path, bundles: list[Path], *further: str) -> list[dict[str, Any]]:
    command = ["run", "--url", url, "--bundle", *map(str, bundles), "--out", str(out)]
    command += ["--duration", "1", "--warmup", "0.2", "--accept-invalid", *further]
    assert main(command) == 0
    (file,) = out.glob("*.json")
    runs: list[dict[str, Any]] = json.loads(file.read_text())["runs"]
    return runs


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("scenario", ["Concurrency", "Server"])
def test_run_loads_any_bundle(
    scenario: str, name: str, folder: Path, url: str, tmp_path: Path
) -> None:
    """Closed and open loops verify each answer, at an endpoint that the model accepts."""
    rate = ["--rate", "100"] if scenario == "Server" else ["--users", "2"]
    (result,) = _run(url, tmp_path, [folder / name], "--scenario", scenario, *rate)
    assert result["requests"] > 20
    assert (result["wrong_answers"], result["errors"], result["model"]) == (0, {}, name)


def test_several_models_are_asked_in_one_run(folder: Path, url: str, tmp_path: Path) -> None:
    """The models' requests alternate, and all answers are right."""
    bundles = [folder / name for name in NAMES]
    (result,) = _run(url, tmp_path, bundles, "--users", "2")
    assert result["model"] == "+".join(NAMES)
    assert (result["wrong_answers"], result["errors"]) == (0, {})
    metrics = httpx.get(f"{url}/metrics").text
    for name in NAMES:
        assert 'inference_requests_total{endpoint="' in metrics
        assert f'model="{name}"' in metrics


@pytest.mark.slow
def test_sweep_finds_the_capacity_of_a_foreign_network(
    folder: Path, url: str, tmp_path: Path
) -> None:
    """A search over the text model writes its points, and all its answers are verified."""
    command = ["sweep", "--url", url, "--bundle", str(folder / "text"), "--out", str(tmp_path)]
    command += ["--duration", "0.5", "--warmup", "0.1", "--accept-invalid", "--slo-ms", "1000"]
    assert main(command) == 0
    found = json.loads((tmp_path / "sweep-text-Server.json").read_text())
    assert found["points"]
    assert all(point["wrong_answers"] == 0 for point in found["points"])
    assert {point["endpoint"] for point in found["points"]} == {"infer/binary"}


def test_a_planted_wrong_answer_of_a_foreign_network_fails(
    folder: Path, url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Golden outputs that are off by 1% give status 1 and name the wrong output."""
    bundle = shutil.copytree(folder / "text", tmp_path / "text")
    with np.load(bundle / "golden.npz") as content:
        arrays = dict(content)
    arrays["eager/mean"] = arrays["eager/mean"] * np.float32(1.01)
    np.savez(bundle / "golden.npz", **arrays)
    command = ["run", "--url", url, "--bundle", str(bundle), "--out", str(tmp_path / "out")]
    assert main([*command, "--duration", "1", "--warmup", "0.2", "--users", "1"]) == 1
    assert "mean: scaled error" in capsys.readouterr().err
