"""A network of two images and three answers is served at /v2, verified at the start as all are."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from export.bundle.golden import Golden
from loadtest.server import running_service

COUNT = 70  # more than a batch


@pytest.fixture(scope="module")
def pair_bundle(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny pair network's bundle: one epoch, 1,500 images."""
    pytest.importorskip("torch")
    from export.__main__ import main as export  # noqa: PLC0415 - not there without the extra
    from training.__main__ import main as training  # noqa: PLC0415

    folder = tmp_path_factory.mktemp("pair")
    data = ["--data-dir", str(data_dir)]
    numbers = [f"--arch={name}" for name in ("n1=2", "n2=4", "n3=16", "n4=16")]
    command = ["train", "--model", "two-input", "--epochs", "1", "--batch-size", "32", *numbers]
    assert training([*command, *data, "--device", "cpu", "--out", str(folder / "trained")]) == 0
    out = folder / "bundles" / "pair"
    command = ["build", str(folder / "trained"), "--out", str(out), "--variants", "onnx"]
    assert export([*command, *data]) == 0
    return out


@pytest.fixture(scope="module")
def pair_url(pair_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The real service with only that bundle."""
    log_file = tmp_path_factory.mktemp("service") / "service.log"
    settings = {"INFERENCE_BUNDLES": str(pair_bundle.parent), "INFERENCE_DEVICE": "cpu"}
    with running_service(log_file, settings=settings) as url:
        yield url


def _asked(golden: Golden) -> dict[str, Any]:
    """More samples than there are golden ones, by input."""
    return {name: np.resize(array, (COUNT, 28, 28)) for name, array in golden.inputs.items()}


def _assert_right(answers: dict[str, Any], golden: Golden) -> None:
    assert set(answers) == {
        f"{answer}_{kind}"
        for answer in ("first", "second", "sum")
        for kind in ("logits", "probabilities")
    }
    for name, eager in golden.fp32.items():
        expected = np.resize(eager, (COUNT, *eager.shape[1:]))
        assert np.allclose(answers[name], expected, atol=1e-4), name


def test_json_gives_the_references_answers(pair_url: str, pair_bundle: Path) -> None:
    """Two inputs of numbers give six outputs, each equal to the checkpoint's module."""
    golden = Golden.load(pair_bundle / "golden.npz")
    inputs = [
        {"name": n, "shape": [COUNT, 28, 28], "datatype": "UINT8", "data": a.ravel().tolist()}
        for n, a in _asked(golden).items()
    ]
    answer = httpx.post(
        f"{pair_url}/v2/models/two-input/infer", json={"inputs": inputs}, timeout=60
    )
    assert answer.status_code == 200, answer.text
    outputs = {
        tensor["name"]: np.array(tensor["data"]).reshape(tensor["shape"])
        for tensor in answer.json()["outputs"]
    }
    _assert_right(outputs, golden)


def test_binary_gives_the_references_answers(pair_url: str, pair_bundle: Path) -> None:
    """Two blobs after the JSON, in either order of the inputs, give six blobs."""
    golden = Golden.load(pair_bundle / "golden.npz")
    asked = _asked(golden)
    for names in (list(asked), list(reversed(asked))):
        header = {
            "inputs": [
                {
                    "name": name,
                    "shape": [COUNT, 28, 28],
                    "datatype": "UINT8",
                    "parameters": {"binary_data_size": asked[name].size},
                }
                for name in names
            ],
            "parameters": {"binary_data_output": True},
        }
        text = json.dumps(header).encode()
        answer = httpx.post(
            f"{pair_url}/v2/models/two-input/infer",
            content=text + b"".join(asked[name].tobytes() for name in names),
            headers={"Inference-Header-Content-Length": str(len(text))},
            timeout=60,
        )
        assert answer.status_code == 200, answer.text
        length = int(answer.headers["Inference-Header-Content-Length"])
        outputs, start = {}, length
        for tensor in json.loads(answer.content[:length])["outputs"]:
            size = tensor["parameters"]["binary_data_size"]
            values = np.frombuffer(answer.content[start : start + size], "<f4")
            outputs[tensor["name"]] = values.reshape(tensor["shape"])
            start += size
        _assert_right(outputs, golden)


def test_predict_says_where_a_pair_is_asked(pair_url: str) -> None:
    """Both endpoints for digits refuse a single image and name the endpoint to use."""
    image = (Path(__file__).parent / "digit.png").read_bytes()
    answers = [
        httpx.post(f"{pair_url}/predict", json={"images": [[0] * 28] * 28}),
        httpx.post(
            f"{pair_url}/predict/image", content=image, headers={"Content-Type": "image/png"}
        ),
    ]
    for answer in answers:
        assert answer.status_code == 400
        assert "send its requests to /v2/models/two-input/infer" in answer.json()["error"]


def test_it_has_no_feature_maps_and_says_why(pair_url: str) -> None:
    """The error is 404 with the reason given at the build."""
    answer = httpx.post(f"{pair_url}/models/two-input/features", json={"images": [[0] * 28] * 28})
    assert answer.status_code == 404
    reason = "they need a network whose only input is images=UINT8[-1,28,28]"
    assert answer.json()["error"] == f"two-input has no feature maps: {reason}"


def test_a_missing_or_uneven_input_is_named(pair_url: str) -> None:
    """A missing input and inputs of different lengths are refused by name."""
    first = {"name": "first_images", "shape": [1, 28, 28], "datatype": "UINT8", "data": [0] * 784}
    two = first | {"name": "second_images", "shape": [2, 28, 28], "data": [0] * 1568}
    for inputs, words in (([first], "second_images"), ([first, two], "second_images")):
        answer = httpx.post(f"{pair_url}/v2/models/two-input/infer", json={"inputs": inputs})
        assert answer.status_code == 400
        assert words in answer.json()["error"]


def test_golden_samples_are_asked_at_the_start_and_again(pair_url: str) -> None:
    """Golden samples run at the start and on request, and metadata list both inputs."""
    (card,) = httpx.get(f"{pair_url}/models").json()["models"]
    assert (card["golden"]["wrong_labels"], card["golden"]["failures"]) == (0, [])
    assert card["labels"] == [str(total) for total in range(19)]
    described = httpx.get(f"{pair_url}/v2/models/two-input").json()
    assert [t["name"] for t in described["inputs"]] == ["first_images", "second_images"]
    deep = httpx.get(f"{pair_url}/healthz/deep", timeout=60)
    assert deep.status_code == 200, deep.text
