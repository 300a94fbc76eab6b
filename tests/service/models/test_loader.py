"""Only verified bytes are run, on this device, after a check in another process."""

import subprocess
import sys
from pathlib import Path

import pytest

from export.bundle.manifest import BundleError
from export.bundle.signature import SignatureError, sign_bundle
from export.bundle.store import Bundle
from service.engine.engines import open_engine
from service.models.loader import load_verified_models
from service.settings import ROOT, Settings
from tests.keys import make_key_pair, public_half
from tests.tiny import SERVED_BUNDLES


def test_a_file_that_is_replaced_after_its_hash_was_checked_is_not_run(served_bundle: Path) -> None:
    """The engine reads the file once more and runs exactly the bytes that it has hashed."""
    bundle = Bundle.open(served_bundle)
    settings = Settings(bundles=served_bundle.parent, device="cpu")
    assert open_engine(bundle, "cpu", settings).provider == "CPUExecutionProvider"
    (served_bundle / "model.onnx").write_bytes((served_bundle / "model.int8.onnx").read_bytes())
    with pytest.raises(BundleError, match=r"model\.onnx was altered"):
        open_engine(bundle, "cpu", settings)


def test_a_file_that_the_manifest_does_not_name_is_not_read(served_bundle: Path) -> None:
    """Files in the folder that the manifest does not list are never read."""
    bundle = Bundle.open(served_bundle)
    (served_bundle / "other.onnx").write_bytes(b"?")
    with pytest.raises(BundleError, match=r"other\.onnx is not listed in the manifest"):
        bundle.read(served_bundle / "other.onnx")


def test_the_command_that_verifies_says_what_is_wrong_on_one_line(served_bundle: Path) -> None:
    """Right bundles give status 0 without output, an altered one status 1 with the reason."""
    command = [sys.executable, "-m", "service.models.loader"]

    def verify(bundles: Path) -> tuple[int, str]:
        environment = {"INFERENCE_BUNDLES": str(bundles), "INFERENCE_DEVICE": "cpu"}
        ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        assert "Traceback" not in ran.stderr
        return ran.returncode, ran.stdout

    assert verify(SERVED_BUNDLES) == (0, "")
    (served_bundle / "golden.npz").write_bytes(b"?")
    status, reason = verify(served_bundle.parent)
    assert status == 1
    assert "golden.npz was altered" in reason
    assert len(reason.splitlines()) == 1


def test_the_models_of_a_folder_come_in_the_order_of_their_names() -> None:
    """Each has its task's adapter and, if the bundle contains it, the first layer."""
    models = load_verified_models(Settings(bundles=SERVED_BUNDLES, device="cpu"))
    assert [model.manifest.name for model in models] == ["cnn", "mlp"]
    assert {model.adapter.task for model in models} == {"digits"}
    assert all(model.feature_maps is not None for model in models)


def test_with_a_signing_key_signed_bundles_alone_are_loaded(
    served_bundle: Path, tmp_path: Path
) -> None:
    """With the setting, unsigned bundles and those of another key are refused."""
    key, other = make_key_pair(tmp_path, "key"), make_key_pair(tmp_path, "other")
    settings = Settings(bundles=served_bundle.parent, device="cpu", signing_key=public_half(key))
    with pytest.raises(SignatureError, match="cnn is not signed"):
        load_verified_models(settings)
    sign_bundle(served_bundle, other)
    with pytest.raises(SignatureError, match="cnn is signed by another key"):
        load_verified_models(settings)
    assert load_verified_models(settings.model_copy(update={"signing_key": None}))
    sign_bundle(served_bundle, key)
    assert [model.manifest.name for model in load_verified_models(settings)] == ["cnn"]
