"""The OpenAPI document depends on the served models and on the settings."""

import json
from typing import Any

import pytest
import schemathesis.openapi
from pydantic import SecretStr, TypeAdapter, ValidationError

from export.bundle.manifest import Domain, Manifest, TensorSpec
from export.bundle.store import Bundle
from service.openapi import openapi_document
from service.openapi.examples import MOST_VALUES, request_examples
from service.protocol.answers import ClassPrediction, NamedTensorsAnswer, NamedTensorsRequest
from service.settings import Settings
from service.transport.gate import HEALTH_PATHS, LONGEST_ID
from tests.tiny import SERVED_BUNDLES

BASE = {"openapi": "3.0.2", "info": {"version": "None"}, "components": {"schemas": {"X": {}}}}
PATH = "/models/{model}/predict"
COUNTS = Domain(kind="length", low=2, high=9)
TASKS = ["tensors", "image-classification", "digits"]


def _model(task: str, **changes: Any) -> Manifest:
    manifest = Bundle.open(SERVED_BUNDLES / "cnn").manifest
    return manifest.model_copy(update=changes | {"task": task})


def _document(*models: Manifest, **settings: Any) -> dict[str, Any]:
    return openapi_document(BASE, models, Settings(**settings))


@pytest.mark.parametrize("task", TASKS)
def test_the_document_is_valid_for_every_task(task: str) -> None:
    """It matches the schema of OpenAPI 3.1, and every reference resolves."""
    document = _document(_model(task))
    schemathesis.openapi.from_dict(json.loads(json.dumps(document))).validate()
    text = json.dumps(document)
    for kind, components in document["components"].items():
        for name in components:
            text = text.replace(f'"#/components/{kind}/{name}"', "")
    assert "#/" not in text
    assert "X" not in document["components"]["schemas"]


@pytest.mark.parametrize("task", TASKS)
def test_the_task_decides_on_paths_and_media_types(task: str) -> None:
    """Only digits have /predict and /predict/image, and only image models accept image files."""
    paths = _document(_model(task))["paths"]
    assert ({"/predict", "/predict/image"} <= paths.keys()) == (task == "digits")
    content = paths[PATH]["post"]["requestBody"]["content"]
    images = {"multipart/form-data", "image/png", "image/jpeg", "application/octet-stream"}
    assert content.keys() - {"application/json"} == (set() if task == "tensors" else images)


def test_models_without_feature_maps_have_no_path_for_them() -> None:
    """The path is documented if any model's bundle contains the first layer."""
    path = "/models/{model}/features"
    assert path in _document(_model("digits"))["paths"]
    assert path not in _document(_model("digits", features=None))["paths"]


def test_names_labels_and_limits_are_those_of_the_models_and_settings() -> None:
    """Enumerations and bounds of the schemas follow the manifests and the settings."""
    model = _model("digits", name="other", labels=("a", "b"))
    schemas = _document(model, max_request_samples=7)["components"]["schemas"]
    assert schemas["PredictRequest"]["properties"]["model"]["enum"] == ["other", None]
    assert schemas["Images"]["maxItems"] == 7
    assert schemas["Prediction"]["properties"]["label"]["enum"] == ["a", "b"]
    assert schemas["ClassPrediction"]["properties"]["label"]["enum"] == ["a", "b"]
    assert schemas["Prediction"]["properties"]["probabilities"]["maxItems"] == 2
    assert schemas["RequestInput"]["properties"]["name"]["enum"] == ["images"]


def test_every_inference_can_be_refused_because_of_readiness_and_of_its_outputs() -> None:
    """Each operation that runs a model describes 422, 429, 503 and 504."""
    for path, item in _document(_model("digits"))["paths"].items():
        if "post" in item:
            assert {"422", "429", "503", "504"} <= item["post"]["responses"].keys(), path


def test_a_key_is_required_on_all_paths_but_health() -> None:
    """With a key set, all operations but health list it and the refusal without it."""
    for path, item in _document(_model("digits"), api_key=SecretStr("0" * 16))["paths"].items():
        for operation in item.values():
            needs_key = path not in HEALTH_PATHS
            assert ("security" in operation) == ("401" in operation["responses"]) == needs_key


def test_the_named_tensors_example_is_the_documented_request() -> None:
    """It contains each input by name, nested like the tensor."""
    content = _document(_model("tensors"))["paths"][PATH]["post"]["requestBody"]["content"]
    example = content["application/json"]["examples"]["cnn"]["value"]
    request = TypeAdapter(NamedTensorsRequest).validate_python(example)
    assert request == {"inputs": {"images": [[[0] * 28] * 28]}}


def test_models_with_large_samples_are_described_without_examples() -> None:
    """The document does not grow with the samples, and the model is listed nevertheless."""
    large = TensorSpec(name="pixels", datatype="UINT8", shape=(-1, MOST_VALUES + 1))
    document = _document(_model("tensors", name="large", inputs=(large,), features=None))
    for path in (PATH, "/v2/models/{model}/infer"):
        operation = document["paths"][path]["post"]
        assert not any(body["examples"] for body in operation["requestBody"]["content"].values())
        (model,) = [one for one in operation["parameters"] if one["name"] == "model"]
        assert model["schema"]["enum"] == ["large"]


def test_examples_hold_values_that_the_inputs_may_have() -> None:
    """Examples avoid values such as a mask of zeros or a length of 0, which are refused."""
    declared = {"mask": ("FP32", Domain(kind="mask"), 3), "length": ("INT64", COUNTS, 1)}
    inputs = tuple(
        TensorSpec.model_validate(
            {"name": name, "datatype": datatype, "shape": (-1, size), "domain": domain}
        )
        for name, (datatype, domain, size) in declared.items()
    )
    (example,) = request_examples("infer", _model("tensors", inputs=inputs))
    data = {tensor["name"]: tensor["data"] for tensor in example.body["inputs"]}
    assert data == {"mask": [1.0] * 3, "length": [2]}


def test_the_longest_request_id_is_the_documented_one() -> None:
    """The description states the limit that the service applies."""
    operation = _document(_model("digits"))["paths"]["/predict"]["post"]
    (request_id,) = [one for one in operation["parameters"] if one["name"] == "x-request-id"]
    assert f"at most {LONGEST_ID} bytes" in request_id["description"]


def test_an_answer_is_built_from_its_type() -> None:
    """The type of the new endpoint's answer accepts one, and refuses an unknown field."""
    prediction = ClassPrediction(label="7", probabilities=[0.0, 1.0])
    answer = NamedTensorsAnswer(
        model="cnn",
        version="1",
        variant="onnx",
        device="cpu",
        provider="CPUExecutionProvider",
        outputs={"logits": [[0.5, -0.5]]},
        predictions=[prediction],
    )
    adapter = TypeAdapter(NamedTensorsAnswer)
    assert adapter.validate_python(answer) == answer
    assert json.loads(adapter.dump_json(answer)) == answer
    with pytest.raises(ValidationError, match="unknown"):
        adapter.validate_python(answer | {"unknown": 1})
