"""The service opens only models that it has verified."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import cast

import numpy as np
import pytest

from export.bundle.manifest import BundleError
from export.bundle.session import DeviceUnavailableError, cuda_device_count
from loadtest.server import REPOSITORY
from service.adapters.digits import DigitsAdapter
from service.models.loader import VerificationError, load_verified_models
from service.models.registry import ModelRegistry
from service.observability.metrics import Metrics
from service.protocol.answers import Prediction
from service.settings import Settings
from tests.rehash import rehash
from tests.tiny import SERVED_BUNDLES


def test_proven_bundles_are_opened_on_the_device_asked_for() -> None:
    """Each bundle's golden samples were run with the CPU's provider."""
    models = load_verified_models(Settings(bundles=SERVED_BUNDLES, device="cpu"))
    assert [model.manifest.name for model in models] == ["cnn", "mlp"]
    assert all(model.golden.passed and model.golden.samples >= 30 for model in models)
    assert {model.engine.provider for model in models} == {"CPUExecutionProvider"}


def test_a_wrong_golden_answer_stops_the_start(served_bundle: Path) -> None:
    """The error names a model that differs from its golden samples although every hash agrees."""
    with np.load(served_bundle / "golden.npz") as content:
        arrays = dict(content)
    arrays["eager/logits"] = arrays["eager/logits"] * np.float32(1.0001)
    np.savez(served_bundle / "golden.npz", **arrays)
    rehash(served_bundle, "golden.npz")
    with pytest.raises(
        VerificationError, match=r"cnn \(onnx\) fails its golden samples.*scaled error"
    ):
        load_verified_models(Settings(bundles=served_bundle.parent, device="cpu"))


def test_a_model_without_a_guard_is_served_without_one(served_bundle: Path) -> None:
    """Without a guard, predictions and description contain None in place of its verdict."""
    path = served_bundle / "manifest.json"
    manifest = json.loads(path.read_text())
    files = [entry for entry in manifest["files"] if entry["role"] != "guard"]
    path.write_text(json.dumps({**manifest, "guard": None, "files": files}))
    (served_bundle / "guard.npz").unlink()
    settings = Settings(bundles=served_bundle.parent, device="cpu")
    models = ModelRegistry(load_verified_models(settings), settings, Metrics())
    (model,) = models.all()
    inputs = {"images": np.zeros((1, 28, 28), np.uint8)}
    adapter = model.adapter
    assert isinstance(adapter, DigitsAdapter)
    answer = adapter.encode_predictions(model.engine(inputs), inputs, show=False)
    assert [entry["guard"] for entry in cast("list[Prediction]", answer["predictions"])] == [None]
    assert model.describe(is_default=True)["guard"] is None
    models.close()


def test_an_altered_model_stops_the_start(served_bundle: Path) -> None:
    """A model whose hash differs from the manifest's is never opened."""
    (served_bundle / "model.onnx").write_bytes(b"?")
    with pytest.raises(BundleError, match=r"model\.onnx was altered"):
        load_verified_models(Settings(bundles=served_bundle.parent))


def test_a_bundle_without_a_passed_verdict_is_not_served(served_bundle: Path) -> None:
    """A manifest without a parity verdict or with a failed one is refused."""
    path = served_bundle / "manifest.json"
    manifest = json.loads(path.read_text())
    failed = [{**verdict, "passed": False} for verdict in manifest["parity"]]
    for verdicts in (failed, []):
        path.write_text(json.dumps({**manifest, "parity": verdicts}))
        with pytest.raises(BundleError, match="no passed parity verdict"):
            load_verified_models(Settings(bundles=served_bundle.parent))


def test_two_bundles_of_one_name_are_refused(served_bundle: Path) -> None:
    """Two bundles of one name are refused, because it would be undefined which one answers."""
    shutil.copytree(served_bundle, served_bundle.parent / "copy")
    with pytest.raises(BundleError, match=r"two bundles .* name cnn"):
        load_verified_models(Settings(bundles=served_bundle.parent))


def test_an_empty_folder_and_an_unknown_default_are_refused(tmp_path: Path) -> None:
    """The messages say what to do and which models there are."""
    with pytest.raises(BundleError, match="make bundles"):
        load_verified_models(Settings(bundles=tmp_path))
    with pytest.raises(BundleError, match=r"INFERENCE_DEFAULT_MODEL=rnn.*cnn, mlp"):
        load_verified_models(Settings(bundles=SERVED_BUNDLES, default_model="rnn"))


def test_a_replaced_version_ends_with_its_last_request() -> None:
    """A job that was decoded for a version is answered by it; then its thread and engine end."""
    code = """
import asyncio, threading, weakref
import numpy as np
from service.models.loader import load_verified_models
from service.models.registry import ModelRegistry, ModelVersions
from service.observability.metrics import Metrics
from service.settings import Settings
from tests.tiny import SERVED_BUNDLES

settings = Settings(bundles=SERVED_BUNDLES, device="cpu", default_model="cnn", engine="thread")
models = ModelRegistry(load_verified_models(settings), settings, Metrics())

def engine_threads():
    return [thread for thread in threading.enumerate() if thread.name == "engine"]

async def main():
    inputs = {"images": np.zeros((1, 28, 28), np.uint8)}
    old = models.get("cnn")
    await old.batcher.submit(inputs)
    (thread,) = engine_threads()
    underway = asyncio.ensure_future(old.batcher.submit(inputs))
    await asyncio.sleep(0)
    verified = load_verified_models(settings)[0]
    models.replace("cnn", ModelVersions(models.prepare(verified)))
    assert models.get("cnn") is not old
    outputs, _ = await underway
    assert outputs["logits"].shape == (1, 10)
    gone = weakref.ref(old), weakref.ref(old.engine), weakref.ref(old.batcher)
    del old, underway, outputs
    await asyncio.sleep(0)
    thread.join(5)
    assert not thread.is_alive()
    assert [found() for found in gone] == [None, None, None]

import gc
gc.disable()  # references alone must free it, since the service hardly ever collects
asyncio.run(main())
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=REPOSITORY)


@pytest.mark.skipif(cuda_device_count() > 0, reason="this machine has a CUDA device")
def test_cuda_without_a_device_stops_the_start() -> None:
    """The service does not fall back to the CPU."""
    with pytest.raises(DeviceUnavailableError, match="no CUDA device"):
        load_verified_models(Settings(bundles=SERVED_BUNDLES, device="cuda"))


@pytest.mark.gpu
@pytest.mark.skipif(cuda_device_count() == 0, reason="no CUDA device on this machine")
def test_golden_samples_are_answered_rightly_on_cuda() -> None:
    """On a GPU, the models run with CUDA's provider."""
    models = load_verified_models(Settings(bundles=SERVED_BUNDLES, device="cuda"))
    assert {model.engine.provider for model in models} == {"CUDAExecutionProvider"}
