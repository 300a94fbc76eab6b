"""The running service behaves as its OpenAPI document states; schemathesis compares the two."""

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis.openapi
from PIL import Image
from starlette.routing import Route

from loadtest.server import running_service
from service.transport.asgi_app import make_app
from service.web.pages import FILES, page_routes
from tests.tiny import SERVED_BUNDLES

CONFIG = Path(__file__).with_name("schemathesis.toml")
HOOKS = Path(__file__).with_name("schemathesis_hooks.py")
DIGIT = Path(__file__).parents[1] / "digit.png"
OF_BENTOML = {"/healthz", "/livez", "/readyz"}
KEY = "0123456789abcdef"
TIMEOUT_S = 120

Document = dict[str, Any]


@pytest.fixture(scope="module")
def document(service_url: str) -> Document:
    """The document of the running service."""
    return _document(service_url)


def _document(url: str, headers: dict[str, str] | None = None) -> Document:
    content: Document = httpx.get(f"{url}/docs.json", headers=headers, timeout=30).json()
    return content


def _operations(document: Document) -> Iterator[tuple[str, str, Document]]:
    """Path, method and operation of every endpoint of this service."""
    for path, item in document["paths"].items():
        for method in ("get", "post"):
            if path not in OF_BENTOML and method in item:
                shared = item.get("parameters", [])
                operation = item[method]
                parameters = [*shared, *operation.get("parameters", [])]
                yield path, method, operation | {"parameters": parameters}


def test_the_document_is_valid(document: Document) -> None:
    """It matches the schema of OpenAPI 3.1, and operation ids are unique."""
    assert document["openapi"].startswith("3.1.")
    schemathesis.openapi.from_dict(json.loads(json.dumps(document))).validate()
    ids = [operation["operationId"] for _, _, operation in _operations(document)]
    assert len(ids) == len(set(ids))


def test_every_route_is_described(document: Document) -> None:
    """The document describes all routes except its own and those of the page's files."""
    routes = {
        (route.path_format.replace("{probe}", probe), method.lower())
        for route in make_app(dict, page_routes()).routes
        if isinstance(route, Route)
        for method in (route.methods or set()) - {"HEAD"}
        for probe in ("live", "ready")
    }
    described = {(path, method) for path, method, _ in _operations(document)}
    assert described == routes - {(path, "get") for path in ("/docs.json", *FILES)}


def test_the_service_does_what_the_document_says(service_url: str, tmp_path: Path) -> None:
    """Hundreds of valid and invalid requests get the documented answers."""
    command = [str(Path(sys.executable).with_name("schemathesis")), "--config-file", str(CONFIG)]
    command += ["run", f"{service_url}/docs.json", "--continue-on-failure", "--no-color"]
    ran = subprocess.run(
        command,
        cwd=tmp_path,
        env=os.environ | {"SCHEMATHESIS_HOOKS": str(HOOKS)},
        capture_output=True,
        encoding="utf-8",
        timeout=TIMEOUT_S,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    asked = len(list(_operations(_document(service_url))))
    assert f"Tested: {asked}" in ran.stdout


def _examples(document: Document) -> Iterator[tuple[str, httpx.Request]]:
    """Each example of a body, with the examples of parameters that have the same name."""
    for path, method, operation in _operations(document):
        for media_type, content in operation.get("requestBody", {}).get("content", {}).items():
            for name, example in content.get("examples", {}).items():
                known = example
                if "$ref" in example:
                    known = document["components"]["examples"][example["$ref"].rsplit("/")[-1]]
                given: dict[str, dict[str, str]] = {"path": {}, "header": {}, "query": {}}
                for parameter in operation["parameters"]:
                    if name in parameter.get("examples", {}):
                        value = parameter["examples"][name]["value"]
                        given[parameter["in"]][parameter["name"]] = str(value)
                body = known["value"]
                yield (
                    name,
                    httpx.Request(
                        method,
                        "http://service" + path.format(**given["path"]),
                        headers={**given["header"], "content-type": media_type},
                        content=body if isinstance(body, str) else json.dumps(body),
                    ),
                )


def test_every_example_is_answered(document: Document, service_url: str) -> None:
    """Status 200 for each form of inference, with and without version, and for pixels."""
    asked: dict[str, int] = {}
    with httpx.Client(timeout=30) as client:
        for name, request in _examples(document):
            request.url = httpx.URL(service_url + request.url.path)
            request.headers["host"] = request.url.netloc.decode()
            answer = client.send(request)
            assert answer.status_code == 200, (name, request.url, answer.text)
            asked[f"{name} {request.url.path}"] = len(answer.content)
    assert len(asked) == 2 * 2 * 3 + 2 * 2 + 2


def test_an_image_file_is_accepted_in_every_documented_media_type(
    document: Document, service_url: str
) -> None:
    """Images are accepted as a form, as PNG, as JPEG and as application/octet-stream."""
    jpeg = io.BytesIO()
    Image.open(DIGIT).save(jpeg, format="JPEG")
    content = document["paths"]["/predict/image"]["post"]["requestBody"]["content"]
    assert len(content) == 4
    for media_type in content:
        sent: dict[str, Any] = {"files": {"image": ("digit.png", DIGIT.read_bytes())}}
        if media_type != "multipart/form-data":
            picture = jpeg.getvalue() if media_type == "image/jpeg" else DIGIT.read_bytes()
            sent = {"content": picture, "headers": {"content-type": media_type}}
        answer = httpx.post(f"{service_url}/predict/image", **sent, timeout=30)
        assert answer.status_code == 200, (media_type, answer.text)


def test_the_document_marks_the_operations_that_need_a_key(tmp_path: Path) -> None:
    """With a key set, the marked operations answer 401 without it, and no others do."""
    settings = {"INFERENCE_BUNDLES": str(SERVED_BUNDLES), "INFERENCE_DEVICE": "cpu"}
    with running_service(tmp_path / "log", settings=settings | {"INFERENCE_API_KEY": KEY}) as url:
        document, marked = _document(url, {"x-api-key": KEY}), 0
        for path, method, operation in _operations(document):
            answer = httpx.request(method, url + path.format(model="cnn", version="none"))
            keyed = "security" in operation
            assert (answer.status_code == 401) == keyed == ("401" in operation["responses"]), path
            marked += keyed
        assert document["components"]["securitySchemes"].keys() == {"bearer", "key"}
        assert marked == len(list(_operations(document))) - 2
