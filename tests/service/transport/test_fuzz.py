"""Thousands of broken requests cause no 5xx, no wrong answers elsewhere and no memory growth."""

import concurrent.futures
import io
import json
import random
import threading
from pathlib import Path

import httpx
import pytest
from PIL import Image

from export.bundle.golden import Golden
from loadtest.server import running_service
from tests.service.answers import RAW, read_logits
from tests.service.processes import worker_processes
from tests.tiny import SERVED_BUNDLES

GOLDEN = Golden.load(SERVED_BUNDLES / "cnn" / "golden.npz")
CLIENTS = 4
GROWTH_BYTES = 32 * 2**20


def _seeds() -> list[tuple[str, bytes, dict[str, str]]]:
    image = GOLDEN.inputs["images"][0]
    tensor = {
        "name": "images",
        "shape": [1, 28, 28],
        "datatype": "UINT8",
        "parameters": {"binary_data_size": 784},
    }
    text = json.dumps({"inputs": [tensor], "id": "x"}).encode()
    as_json = {"name": "images", "shape": [1, 28, 28], "datatype": "UINT8"}
    as_json_body = json.dumps({"inputs": [as_json | {"data": image.ravel().tolist()}]}).encode()
    picture = io.BytesIO()
    Image.fromarray(image).save(picture, format="PNG")
    length = {"inference-header-content-length": str(len(text))}
    return [
        ("/v2/models/cnn/infer", image.tobytes(), RAW),
        ("/v2/models/cnn/infer", text + image.tobytes(), length),
        ("/v2/models/cnn/infer", as_json_body, {}),
        ("/predict", json.dumps({"images": image.tolist(), "model": "mlp"}).encode(), {}),
        ("/models/cnn/features", json.dumps({"images": image.tolist()}).encode(), {}),
        ("/predict/image", picture.getvalue(), {"content-type": "image/png"}),
    ]


def _mutated(
    generator: random.Random, path: str, body: bytes, headers: dict[str, str]
) -> tuple[str, bytes, dict[str, str]]:
    """Mutate a request: bytes changed, cut, repeated or inserted, a false header, a wrong path."""
    changed, kind = bytearray(body), generator.randrange(7)
    position = generator.randrange(len(changed))
    if kind == 0:
        for _ in range(generator.randrange(1, 20)):
            changed[generator.randrange(len(changed))] = generator.randrange(256)
    elif kind == 1:
        del changed[position:]
    elif kind == 2:
        changed[position:position] = generator.randbytes(generator.randrange(1, 2000))
    elif kind == 3:
        changed[position:position] = generator.choice(
            [b"NaN", b"[[", b"1e999", b"\0", b'"\\ud800"']
        )
    elif kind == 4:
        headers = headers | {
            "inference-header-content-length": str(generator.choice([1, 7, 10**9, 10**30, -1]))
        }
    elif kind == 5:
        path += generator.choice(["/", "?model=", "?model=%00", "%2e%2e", "?" + "a" * 3000])
    else:
        changed *= generator.randrange(2, 6)
    return path, bytes(changed), headers


def _fuzz(url: str, seed: int, count: int, statuses: set[int]) -> list[str]:
    generator, strange = random.Random(seed), list[str]()  # noqa: S311 - repeatable, not secret
    seeds = _seeds()
    with httpx.Client(base_url=url, timeout=30) as client:
        for _ in range(count):
            path, body, headers = _mutated(generator, *generator.choice(seeds))
            answer = client.post(path, content=body, headers=headers)
            statuses.add(answer.status_code)
            if answer.status_code >= 500:
                strange.append(f"{answer.status_code} {path[:80]} {body[:80]!r}")
            elif answer.status_code >= 400 and set(answer.json()) != {"error"}:
                strange.append(f"another shape: {answer.text[:200]}")
    return strange


def _neighbour(url: str, stop: threading.Event) -> int:
    """Send valid requests meanwhile, check each answer, and return their number."""
    images, labels, asked = GOLDEN.inputs["images"], GOLDEN.labels(), 0
    with httpx.Client(base_url=url, timeout=30) as client:
        while not stop.is_set():
            position = asked % len(images)
            body = images[position].tobytes()
            answer = client.post("/v2/models/cnn/infer", content=body, headers=RAW)
            assert read_logits(answer).argmax() == labels[position]
            asked += 1
    return asked


def _resident_bytes(url: str) -> int:
    return sum(worker.memory_info().rss for worker in worker_processes(url))


@pytest.mark.parametrize("mutations", [500, pytest.param(10_000, marks=pytest.mark.slow)])
def test_mutated_requests_harm_nobody(mutations: int, tmp_path: Path) -> None:
    """Each is answered or refused in JSON, while another client gets right answers."""
    settings = {"INFERENCE_BUNDLES": str(SERVED_BUNDLES), "INFERENCE_MAX_IMAGE_PIXELS": "1000000"}
    with running_service(tmp_path / "service.log", settings=settings) as url:
        assert (
            _fuzz(url, 99, mutations // CLIENTS, set()) == []
        )  # memory that each code path needs once
        before, stop, statuses = _resident_bytes(url), threading.Event(), set[int]()
        with concurrent.futures.ThreadPoolExecutor(CLIENTS + 1) as threads:
            neighbour = threads.submit(_neighbour, url, stop)
            runs = [
                threads.submit(_fuzz, url, i, mutations // CLIENTS, statuses)
                for i in range(CLIENTS)
            ]
            strange = [words for run in runs for words in run.result()]
            stop.set()
            asked = neighbour.result()
        assert strange == []
        assert {200, 400, 404} <= statuses
        assert asked > mutations // 100
        assert _resident_bytes(url) - before < GROWTH_BYTES
        assert before > 0
        assert httpx.get(url + "/healthz/deep").status_code == 200
