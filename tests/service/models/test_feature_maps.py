"""Feature maps are verified at the start, correct, and do not block other requests."""

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from export.bundle.golden import Golden
from export.bundle.manifest import BundleError
from export.bundle.metrics import Arrays
from service.adapters.digits import decode_one_image
from service.models.feature_maps import JSON_BYTES, MAX_QUEUED, name_maps
from service.models.loader import VerificationError, VerifiedModel, load_verified_models
from service.protocol.errors import InvalidInputError, NoFeatureMapsError, OverloadedError
from service.settings import Limits, Settings
from tests.rehash import rehash
from tests.tiny import SERVED_BUNDLES

IMAGE = [[0] * 28] * 28


def _ask(url: str, model: str, body: object) -> httpx.Response:
    return httpx.post(f"{url}/models/{model}/features", json=body, timeout=30)


@pytest.mark.parametrize("model", ["cnn", "mlp"])
def test_the_maps_are_the_checkpoints_activations(model: str, service_url: str) -> None:
    """Each map matches to four digits, and the answer names the layer and the model."""
    golden = Golden.load(SERVED_BUNDLES / model / "golden.features.npz")
    (expected,) = golden.fp32.values()
    for image, values in zip(golden.inputs["images"], expected, strict=True):
        answer = _ask(service_url, model, {"images": image.tolist()})
        content = answer.json()
        shown = [np.array(each["values"]) for each in content["maps"]]
        named = list(name_maps(values))
        assert [each["name"] for each in content["maps"]] == [name for name, _ in named]
        for found, map_HW, each in zip(shown, named, content["maps"], strict=True):
            assert found.shape == map_HW[1].shape == (each["height"], each["width"])
            assert np.abs(found - map_HW[1]).max() <= 0.51e-4
    manifest = json.loads((SERVED_BUNDLES / model / "manifest.json").read_text())
    assert content["layer"] == manifest["features"]["layer"]
    assert (content["model"], content["version"]) == (model, manifest["version"])
    assert (answer.headers["x-model"], answer.headers["x-model-variant"]) == (model, "onnx")
    card = next(
        card
        for card in httpx.get(f"{service_url}/models").json()["models"]
        if card["model"] == model
    )
    assert card["features"]["verdict"]["passed"] is True
    counted = f'inference_requests_total{{endpoint="features",model="{model}"}}'
    assert counted in httpx.get(f"{service_url}/metrics").text


def test_units_fill_a_rectangle_and_other_layers_their_own_shape() -> None:
    """512 units give 16 rows of 32, a prime number one row; rows have height 1, volumes a depth."""
    values = np.arange(512.0)
    ((name, map_HW),) = name_maps(values)
    assert (name, map_HW.shape, map_HW[1, 0]) == ("units", (16, 32), 32)
    assert [each.shape for _, each in name_maps(np.zeros(7))] == [(1, 7)]
    assert [(n, m.shape) for n, m in name_maps(np.zeros((2, 5)))] == [
        ("channel 0", (1, 5)),
        ("channel 1", (1, 5)),
    ]
    volume = np.arange(24.0).reshape(1, 2, 3, 4)
    assert [name for name, _ in name_maps(volume)] == ["channel 0, depth 0", "channel 0, depth 1"]
    assert all(np.array_equal(m, volume[0, i]) for i, (_, m) in enumerate(name_maps(volume)))


def test_what_is_asked_wrongly_is_refused_in_words(service_url: str) -> None:
    """An unknown model gets 404; two images, another field, no image and a wrong method get 4xx."""
    two = _ask(service_url, "cnn", {"images": [IMAGE, IMAGE]})
    assert (two.status_code, two.json()) == (
        400,
        {
            "error": "2 images in one request; feature maps are computed for one image: "
            "send one per request"
        },
    )
    unknown = _ask(service_url, "rnn", {"images": IMAGE})
    assert unknown.status_code == 404
    assert "there are: cnn, mlp" in unknown.json()["error"]
    wrong: list[object] = [{"images": IMAGE, "model": "cnn"}, {}, {"images": []}, [1]]
    for body in wrong:
        assert _ask(service_url, "cnn", body).status_code == 400
    assert httpx.get(f"{service_url}/models/cnn/features").status_code == 405
    assert _ask(service_url, "cnn", {"images": [IMAGE]}).status_code == 200  # one image in a list


def test_one_image_is_read_and_no_model_beside_it() -> None:
    """The body gives one image, uint8 [1, 28, 28]; only the path names the model."""
    assert decode_one_image(json.dumps({"images": IMAGE}).encode(), Limits(4)).shape == (1, 28, 28)
    with pytest.raises(InvalidInputError, match="known: images"):
        decode_one_image(json.dumps({"images": IMAGE, "model": "cnn"}).encode(), Limits(4))


def _opened(bundle: Path) -> VerifiedModel:
    (model,) = load_verified_models(Settings(bundles=bundle.parent, device="cpu", timeout_s=60))
    return model


def test_a_bundle_without_them_is_served_and_says_so(served_bundle: Path) -> None:
    """The error is 404 with the bundle's own reason or with what to do."""
    path = served_bundle / "manifest.json"
    manifest = json.loads(path.read_text())
    files = [f for f in manifest["files"] if not f["role"].startswith("features")]
    for name in ("model.features.onnx", "golden.features.npz"):
        (served_bundle / name).unlink()
    reason = "there is no activation"
    for not_built, words in (({"features": reason}, reason), ({}, "rebuild the bundle")):
        changed = {"files": files, "features": None, "not_built": not_built}
        path.write_text(json.dumps(manifest | changed))
        proven = _opened(served_bundle)
        assert proven.feature_maps is None
        with pytest.raises(NoFeatureMapsError, match=f"cnn has no feature maps: .*{words}") as told:
            proven.require_feature_maps()
        assert told.value.kind.status == 404


def test_a_first_layer_that_answers_otherwise_stops_the_start(served_bundle: Path) -> None:
    """The start fails if the golden activations differ from this device's, even if hashes agree."""
    path = served_bundle / "golden.features.npz"
    with np.load(path) as content:
        arrays = dict(content)
    arrays["eager/relu"] = arrays["eager/relu"] * np.float32(1.0001)
    np.savez(path, **arrays)
    rehash(served_bundle, path.name)
    with pytest.raises(VerificationError, match=r"cnn \(feature maps\) fails its golden samples"):
        _opened(served_bundle)


def test_a_first_layer_whose_proof_failed_stops_the_start(served_bundle: Path) -> None:
    """A failed verdict prevents serving, whatever the golden samples show."""
    path = served_bundle / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["features"]["verdict"]["passed"] = False
    path.write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="no passed parity verdict for its feature maps"):
        _opened(served_bundle)


def test_more_than_wait_are_refused_and_run_one_at_a_time(served_bundle: Path) -> None:
    """Of twenty requests at once, those that fit the queue are answered and the rest get 429."""
    proven = _opened(served_bundle)
    assert proven.feature_maps is not None
    server = proven.feature_maps
    inputs: Arrays = {"images": np.zeros((1, 28, 28), np.uint8)}

    async def ask_at_once() -> list[Any]:
        asked = [server.batcher.submit(inputs) for _ in range(20)]
        return await asyncio.gather(*asked, return_exceptions=True)

    found = asyncio.run(ask_at_once())
    server.batcher.close()
    refused = [each for each in found if isinstance(each, OverloadedError)]
    answered = [each for each in found if not isinstance(each, BaseException)]
    assert (len(answered), len(refused)) == (MAX_QUEUED, 20 - MAX_QUEUED)
    assert {ran.batch_samples for _, ran in answered} == {1}
    assert all(json.loads(outputs[JSON_BYTES][0])["maps"] for outputs, _ in answered)
    assert int(refused[0].headers["Retry-After"]) >= 1
