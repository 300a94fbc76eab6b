"""The Open Inference Protocol over gRPC: the same answers, checks and records as over HTTP."""

import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.grpc import service_pb2
from tritonclient.utils import InferenceServerException

from export.bundle.golden import Golden
from loadtest.server import REPOSITORY, free_port, running_service
from service.protocol.errors import ErrorKind
from service.protocol.grpc_messages import SERVICE
from service.transport.grpc_server import CODES
from tests.service.processes import main_process
from tests.service.wire import wait_for
from tests.tiny import SERVED_BUNDLES

GOLDEN = Golden.load(SERVED_BUNDLES / "cnn" / "golden.npz")
IMAGES, LOGITS = GOLDEN.inputs["images"], GOLDEN.fp32["logits"]
KEY = "a key of 22 characters"
INVALID = grpc.StatusCode.INVALID_ARGUMENT


@pytest.fixture(scope="module")
def client(service_url: str, grpc_port: int) -> Iterator[triton.InferenceServerClient]:
    """Triton's gRPC client."""
    opened = triton.InferenceServerClient(f"127.0.0.1:{grpc_port}")
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def channel(service_url: str, grpc_port: int) -> Iterator[grpc.Channel]:
    """A channel for messages that a normal client would not send."""
    with grpc.insecure_channel(f"127.0.0.1:{grpc_port}") as opened:
        yield opened


def _input(images: Any) -> triton.InferInput:
    tensor = triton.InferInput("images", list(images.shape), "UINT8")
    tensor.set_data_from_numpy(images)
    return tensor


def _call(channel: grpc.Channel, content: bytes, method: str = "ModelInfer") -> Any:
    return channel.unary_unary(f"/{SERVICE}/{method}").with_call(content, timeout=30)


def _count(url: str, metric: str) -> float:
    """The sum of a metric's values; ``metric`` is a regular expression."""
    text = httpx.get(f"{url}/metrics", headers={"X-Api-Key": KEY}).text
    return sum(float(value) for value in re.findall(rf"^{metric} (\S+)$", text, re.MULTILINE))


def test_health_and_metadata_are_read(client: triton.InferenceServerClient) -> None:
    """Liveness, readiness, the models and their tensors are read."""
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("cnn")
    assert not client.is_model_ready("nobody")
    assert not client.is_model_ready("cnn", "7")
    assert client.get_server_metadata(as_json=True) == {"name": "proven-digits", "version": "2"}
    metadata = client.get_model_metadata("cnn", as_json=True)
    assert metadata["inputs"] == [
        {"name": "images", "datatype": "UINT8", "shape": ["-1", "28", "28"]}
    ]
    assert [output["name"] for output in metadata["outputs"]] == ["logits", "probabilities"]


def test_inference_gives_the_references_answers(client: triton.InferenceServerClient) -> None:
    """All golden images in one request are answered; a request may name the version."""
    found = client.infer("cnn", [_input(IMAGES)], request_id="7")
    assert found.get_response().id == "7"
    assert np.abs(found.as_numpy("logits") - LOGITS).max() <= 2e-6 * np.abs(LOGITS).max()
    version = found.get_response().model_version
    again = client.infer("cnn", [_input(IMAGES)], version)
    assert np.array_equal(again.as_numpy("logits"), found.as_numpy("logits"))


def test_values_are_those_of_http_bit_by_bit(
    client: triton.InferenceServerClient, service_url: str
) -> None:
    """The raw outputs equal the bytes of HTTP's binary extension."""
    response = client.infer("mlp", [_input(IMAGES[:3])]).get_response()
    answer = httpx.post(
        f"{service_url}/v2/models/mlp/infer",
        content=IMAGES[:3].tobytes(),
        headers={"Inference-Header-Content-Length": "0"},
    )
    length = int(answer.headers["inference-header-content-length"])
    assert b"".join(response.raw_output_contents) == answer.content[length:]


def test_typed_contents_are_answered_in_kind(channel: grpc.Channel) -> None:
    """Requests with typed contents get typed contents, for clients without raw contents."""
    request = service_pb2.ModelInferRequest(model_name="cnn", outputs=[{"name": "logits"}])
    tensor = request.inputs.add(name="images", datatype="UINT8", shape=[1, 28, 28])
    tensor.contents.uint_contents.extend(IMAGES[0].ravel().tolist())
    content, _ = _call(channel, request.SerializeToString())
    response = service_pb2.ModelInferResponse.FromString(content)
    assert not response.raw_output_contents
    found = np.array(response.outputs[0].contents.fp32_contents)
    assert np.abs(found - LOGITS[0]).max() <= 2e-6 * np.abs(LOGITS).max()


@pytest.mark.parametrize(
    ("model", "shape", "code", "words"),
    [
        ("nobody", (1, 28, 28), grpc.StatusCode.NOT_FOUND, "no model 'nobody' is served"),
        ("cnn", (1, 784), INVALID, "shape [1, 784], expected [N, 28, 28]"),
        ("cnn", (101, 28, 28), INVALID, "101 samples in one request, at most 100 are allowed"),
        ("cnn", (2000, 28, 28), grpc.StatusCode.RESOURCE_EXHAUSTED, "larger than max"),
    ],
)
def test_a_refusal_has_its_code_and_says_why(
    model: str,
    shape: tuple[int, ...],
    code: grpc.StatusCode,
    words: str,
    client: triton.InferenceServerClient,
) -> None:
    """An unknown model, a wrong shape, too many samples and a large message are refused."""
    with pytest.raises(InferenceServerException, match=re.escape(words)) as caught:
        client.infer(model, [_input(np.zeros(shape, np.uint8))])
    assert caught.value.status() == str(code)


@pytest.mark.parametrize("method", ["ModelInfer", "ModelMetadata", "ModelReady"])
def test_garbage_is_an_invalid_argument(method: str, channel: grpc.Channel) -> None:
    """For bytes that are not a message, the status names the expected message."""
    with pytest.raises(grpc.RpcError) as caught:
        _call(channel, b"\xff\xff\xff\x01", method)
    assert caught.value.code() == INVALID
    assert "expected this message of the Open Inference Protocol" in caught.value.details()


def test_an_unknown_method_is_not_implemented(channel: grpc.Channel) -> None:
    """Triton's repository control is not implemented here."""
    with pytest.raises(grpc.RpcError) as caught:
        _call(channel, b"", "RepositoryIndex")
    assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED


def test_metadata_name_the_request_the_model_and_the_timing(channel: grpc.Channel) -> None:
    """Trailing metadata contain the headers of HTTP answers."""
    request = service_pb2.ModelInferRequest(
        model_name="cnn", raw_input_contents=[IMAGES[0].tobytes()]
    )
    request.inputs.add(name="images", datatype="UINT8", shape=[1, 28, 28])
    ask = channel.unary_unary(f"/{SERVICE}/ModelInfer")
    _, call = ask.with_call(request.SerializeToString(), metadata=[("x-request-id", "mine")])
    found = dict(call.trailing_metadata())
    assert (found["x-request-id"], found["x-model"]) == ("mine", "cnn")
    assert found["x-batch-size"] == "1"
    assert found["server-timing"].startswith("queue;dur=")


def test_every_kind_of_error_has_a_code() -> None:
    """400 and related errors are invalid arguments; the others have the status's gRPC code."""
    names = {kind.label: CODES.get(kind.status, INVALID).name for kind in ErrorKind}
    assert names["invalid_input"] == names["too_large"] == "INVALID_ARGUMENT"
    assert (names["unauthorized"], names["unknown_model"]) == ("UNAUTHENTICATED", "NOT_FOUND")
    assert (names["overloaded"], names["deadline"]) == ("RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED")
    assert (names["not_ready"], names["engine"]) == ("UNAVAILABLE", "INTERNAL")


def test_requests_are_counted_beside_those_of_http(
    client: triton.InferenceServerClient, service_url: str
) -> None:
    """The endpoint infer_grpc counts requests with their samples, and refusals by kind."""
    answered = r'inference_samples_total\{endpoint="infer_grpc",model="cnn"\}'
    refused = r'inference_refused_requests_total\{[^}]*"unknown_model"[^}]*\}'
    before = _count(service_url, answered), _count(service_url, refused)
    client.infer("cnn", [_input(IMAGES[:5])])
    with pytest.raises(InferenceServerException):
        client.infer("nobody", [_input(IMAGES[:1])])
    assert _count(service_url, answered) == before[0] + 5
    assert _count(service_url, refused) == before[1] + 1


@dataclass(frozen=True)
class Guarded:
    """A service with a key, a log, two workers and a batching delay of one second."""

    url: str
    target: str
    log_file: Path


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    """The guarded service, which the last test stops."""
    port, log_file = free_port(), tmp_path_factory.mktemp("grpc") / "service.log"
    settings = {
        "INFERENCE_BUNDLES": str(SERVED_BUNDLES),
        "INFERENCE_DEVICE": "cpu",
        "INFERENCE_GRPC_PORT": str(port),
        "INFERENCE_API_KEY": KEY,
        "INFERENCE_WORKERS": "2",
        "INFERENCE_BATCH_WAIT_MS": "1000",
        "INFERENCE_ACCESS_LOG_SHARE": "1",
        "INFERENCE_LOG_FORMAT": "json",
        "INFERENCE_DRAIN_S": "0.2",
    }
    with running_service(log_file, settings=settings) as url:
        yield Guarded(url, f"127.0.0.1:{port}", log_file)


@pytest.fixture(scope="module")
def guarded_client(guarded: Guarded) -> Iterator[triton.InferenceServerClient]:
    """A Triton client of the guarded service."""
    opened = triton.InferenceServerClient(guarded.target)
    yield opened
    opened.close()


def test_a_key_is_required_by_all_but_health(
    guarded_client: triton.InferenceServerClient,
) -> None:
    """Requests need the right key, in either form."""
    assert guarded_client.is_server_ready()
    for headers in ({}, {"x-api-key": "another key"}):
        with pytest.raises(
            InferenceServerException, match=r"the API key is (wrong|missing)"
        ) as caught:
            guarded_client.infer("cnn", [_input(IMAGES[:1])], headers=headers)
        assert caught.value.status() == str(grpc.StatusCode.UNAUTHENTICATED)
    with pytest.raises(InferenceServerException, match="the API key is missing"):
        guarded_client.get_model_metadata("cnn")
    for headers in ({"x-api-key": KEY}, {"authorization": f"Bearer {KEY}"}):
        assert guarded_client.infer("cnn", [_input(IMAGES[:1])], headers=headers)


def test_requests_are_logged(
    guarded: Guarded, guarded_client: triton.InferenceServerClient
) -> None:
    """A log line has path, status, client and the request's own id."""
    headers = {"x-api-key": KEY, "x-request-id": "logged-1"}
    guarded_client.infer("cnn", [_input(IMAGES[:1])], headers=headers)
    # The line is written after the answer was sent.
    assert wait_for(lambda: '"logged-1"' in guarded.log_file.read_text(), within_s=10)
    lines = [json.loads(line) for line in guarded.log_file.read_text().splitlines() if line]
    line = next(line for line in lines if line.get("request_id") == "logged-1")
    assert (line["path"], line["status"]) == (f"/{SERVICE}/ModelInfer", 200)
    assert (line["model"], line["batch_samples"]) == ("cnn", 1)
    assert line["client"].startswith("127.0.0.1:")


def test_a_request_whose_client_gave_up_is_not_computed(guarded: Guarded) -> None:
    """It is counted as client_gone, and no batch runs for it."""
    gone = r'inference_refused_requests_total\{[^}]*"client_gone"[^}]*\}'
    batches = r'inference_batch_samples_count\{model="cnn"\}'
    time.sleep(1.1)  # each worker has flushed its counts of earlier requests
    before = _count(guarded.url, gone), _count(guarded.url, batches)
    with (
        triton.InferenceServerClient(guarded.target) as client,
        pytest.raises(InferenceServerException) as caught,
    ):
        client.infer("cnn", [_input(IMAGES[:1])], client_timeout=0.1, headers={"x-api-key": KEY})
    assert caught.value.status() == str(grpc.StatusCode.DEADLINE_EXCEEDED)
    give_up_s = time.monotonic() + 20
    while _count(guarded.url, gone) == before[0] and time.monotonic() < give_up_s:
        time.sleep(0.1)
    time.sleep(1.1)  # the waiting batch ends
    assert (_count(guarded.url, gone), _count(guarded.url, batches)) == (before[0] + 1, before[1])


def test_no_accepted_request_is_lost_when_the_service_stops(guarded: Guarded) -> None:
    """Requests waiting for their batch at SIGTERM are answered, then connections are refused."""
    main = main_process(guarded.url)
    sent = threading.Barrier(17)

    def ask(_: int) -> Any:
        with triton.InferenceServerClient(guarded.target) as client:
            assert client.is_server_live()
            sent.wait()
            return client.infer("cnn", [_input(IMAGES[:1])], headers={"x-api-key": KEY})

    with ThreadPoolExecutor(16) as pool:
        answers = pool.map(ask, range(16))
        sent.wait()
        time.sleep(0.1)
        main.terminate()
        for answer in answers:
            assert np.array_equal(answer.as_numpy("logits").argmax(1), LOGITS[:1].argmax(1))
    main.wait(30)
    with pytest.raises(grpc.RpcError) as caught, grpc.insecure_channel(guarded.target) as late:
        _call(late, b"", "ServerLive")
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE


def test_a_taken_port_ends_the_start(tmp_path: Path, grpc_port: int, service_url: str) -> None:
    """The error gives the address and the setting to change."""
    settings = {
        "INFERENCE_BUNDLES": str(SERVED_BUNDLES),
        "INFERENCE_DEVICE": "cpu",
        "INFERENCE_GRPC_PORT": str(grpc_port),
    }
    with (
        pytest.raises(Exception, match=f"gRPC cannot listen on 127.0.0.1:{grpc_port}: .* in use"),
        running_service(tmp_path / "log", settings=settings),
    ):
        pass


def test_a_missing_package_is_named() -> None:
    """The error names the setting that needs it and the command that installs it."""
    code = "import sys; sys.modules['grpc'] = None; import service.app"
    ran = subprocess.run(
        [sys.executable, "-c", code],
        cwd=REPOSITORY,
        env={"INFERENCE_GRPC_PORT": "5001"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 1
    assert ran.stderr == (
        "error: INFERENCE_GRPC_PORT is set, but gRPC needs another package: pip install grpcio\n"
    )
