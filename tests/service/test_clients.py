"""Other projects' Open Inference Protocol clients are served, in JSON and in binary."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

from export.bundle.golden import Golden
from tests.tiny import SERVED_BUNDLES

SAMPLES = SERVED_BUNDLES / "cnn" / "golden.npz"
GOLDEN = Golden.load(SAMPLES)
ROOT = Path(__file__).parents[2]
KSERVE = "kserve==0.21.0"


@pytest.fixture(scope="module")
def client(service_url: str) -> Iterator[triton.InferenceServerClient]:
    """Triton's HTTP client."""
    opened = triton.InferenceServerClient(service_url.removeprefix("http://"))
    yield opened
    opened.close()


def test_health_and_metadata_are_read(client: triton.InferenceServerClient) -> None:
    """Liveness, readiness, the server's extensions and the model's tensors are read."""
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("cnn")
    assert not client.is_model_ready("nobody")
    assert client.get_server_metadata()["extensions"] == ["binary_tensor_data"]
    metadata = client.get_model_metadata("cnn")
    assert metadata["inputs"] == [{"name": "images", "datatype": "UINT8", "shape": [-1, 28, 28]}]


@pytest.mark.parametrize("binary_in", [False, True])
@pytest.mark.parametrize("binary_out", [False, True])
def test_inference_gives_the_references_answers(
    binary_in: bool, binary_out: bool, client: triton.InferenceServerClient
) -> None:
    """All golden images in one request get right answers, for each form of input and output."""
    images = GOLDEN.inputs["images"]
    tensor = triton.InferInput("images", list(images.shape), "UINT8")
    tensor.set_data_from_numpy(images, binary_data=binary_in)
    output = triton.InferRequestedOutput("logits", binary_data=binary_out)
    found = client.infer("cnn", [tensor], outputs=[output], request_id="7")
    assert found.get_response()["id"] == "7"
    expected = GOLDEN.fp32["logits"]
    assert np.abs(found.as_numpy("logits") - expected).max() <= 2e-6 * np.abs(expected).max()


def test_a_refusal_reaches_the_caller_in_words(client: triton.InferenceServerClient) -> None:
    """A wrong shape raises an error with the service's message."""
    tensor = triton.InferInput("images", [1, 784], "UINT8")
    tensor.set_data_from_numpy(np.zeros((1, 784), np.uint8), binary_data=True)
    with pytest.raises(InferenceServerException, match=r"shape \[1, 784\], expected \[N, 28, 28\]"):
        client.infer("cnn", [tensor])


@pytest.fixture(scope="module")
def kserve(service_url: str, grpc_port: int) -> dict[str, Any]:
    """Results of KServe's client, in an environment that is created once, in half a minute.

    KServe requires psutil<6, protobuf<7, pandas<3 and python-dateutil<3, unlike our pins.
    """
    home = ROOT / ".venv-kserve"
    python, made = str(home / "bin" / "python"), home / KSERVE
    if not made.exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(home)], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", KSERVE], check=True)
        made.touch()
    address = f"127.0.0.1:{grpc_port}"
    command = [python, "-m", "tests.service.kserve_asks", service_url, address, str(SAMPLES)]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    found: dict[str, Any] = json.loads(ran.stdout)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("form", ["json", "binary", "grpc"])
def test_kserves_client_gets_the_references_answers(form: str, kserve: dict[str, Any]) -> None:
    """All golden images in one request get right answers, with one form in and out."""
    assert kserve[form]["id"] == "7"
    expected = GOLDEN.fp32["logits"]
    found = np.array(kserve[form]["logits"])
    assert np.abs(found - expected).max() <= 2e-6 * np.abs(expected).max()


@pytest.mark.slow
def test_kserves_client_reads_models_and_refusals(kserve: dict[str, Any]) -> None:
    """The client gets a model's readiness and the error for a wrong shape."""
    assert kserve["ready"] == [True, False]
    assert "shape [60, 784], expected [N, 28, 28]" in kserve["refusal"]


@pytest.mark.slow
def test_kserves_client_reads_health(kserve: dict[str, Any]) -> None:
    """The server is live and ready."""
    assert (kserve["is_server_live"], kserve["is_server_ready"]) == (True, True)
    assert (kserve["grpc"]["live"], kserve["grpc"]["ready"]) == (True, [True, True])
