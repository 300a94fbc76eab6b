"""A right answer is recognised, and so is every kind of wrong one."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from loadtest.generator.expectations import Expectations
from loadtest.generator.payloads import PayloadError, Request
from loadtest.scenarios import ENDPOINTS, Endpoint
from tests.tiny import SERVED_BUNDLES

BUNDLE = SERVED_BUNDLES / "cnn"


def _right_answer(expectations: Expectations, position: int) -> dict[str, Any]:
    (model,) = expectations.models
    judge, positions = expectations.judges[id(model)], expectations.requests[position].positions
    return {
        "model": model.name,
        "version": model.version,
        "variant": "onnx",
        "device": "cpu",
        "predictions": [
            {"label": label, "probabilities": row.tolist()}
            for label, row in zip(
                judge.labels(positions), judge.softmax_GK[list(positions)], strict=True
            )
        ],
    }


def _other(expectations: Expectations, position: int) -> Request:
    """A request whose golden samples have other labels."""
    judge = expectations.judges[id(expectations.models[0])]
    labels = judge.labels(expectations.requests[position].positions)
    return next(r for r in expectations.requests if judge.labels(r.positions) != labels)


def test_bodies_hold_the_golden_images() -> None:
    """A batch of three holds its sample and the ones after it, and wraps around at the end."""
    expectations = Expectations(BUNDLE, 3, "predict")
    with np.load(BUNDLE / "golden.npz") as golden:
        images = golden["inputs/images"]
    last = json.loads(expectations.requests[-1].content)["images"]
    assert np.array_equal(np.array(last), images[[-1, 0, 1]])
    single = Expectations(BUNDLE, 1, "predict").requests[0]
    assert np.array(json.loads(single.content)["images"]).shape == (28, 28)
    upload = Expectations(BUNDLE, 1, "predict/image").requests[0]
    assert upload.content.startswith(b"\x89PNG")
    assert upload.headers == {"content-type": "image/png"}


def test_a_right_answer_is_right_again_by_its_bytes() -> None:
    """The reference's answer passes, and its bytes are remembered only for that request."""
    expectations = Expectations(BUNDLE, 1, "predict")
    answer = json.dumps(_right_answer(expectations, 0)).encode()
    assert expectations.complaint(expectations.requests[0], answer, {}) is None
    assert (answer, None) in expectations.requests[0].known_right
    other = _other(expectations, 0)
    assert expectations.complaint(other, answer, {}) is not None


def _wrong_label(answer: dict[str, Any]) -> None:
    answer["predictions"][0]["label"] = "x"


def _off_by_a_little(answer: dict[str, Any]) -> None:
    answer["predictions"][0]["probabilities"][3] += 1e-4


def _not_a_number(answer: dict[str, Any]) -> None:
    answer["predictions"][0]["probabilities"][3] = float("nan")


def _one_too_many(answer: dict[str, Any]) -> None:
    answer["predictions"] *= 2


def _other_version(answer: dict[str, Any]) -> None:
    answer["version"] = "0"


def _unknown_device(answer: dict[str, Any]) -> None:
    answer["device"] = "tpu"


def _unknown_variant(answer: dict[str, Any]) -> None:
    answer["variant"] = "onnx-int4"


def _variant_of_another_device(answer: dict[str, Any]) -> None:
    answer.update(variant="onnx-int8", device="cuda")


def _no_variant(answer: dict[str, Any]) -> None:
    del answer["variant"]


def _version_as_number(answer: dict[str, Any]) -> None:
    answer["version"] = 7


def _as_strings(answer: dict[str, Any]) -> None:
    for entry in answer["predictions"]:
        entry["probabilities"] = [str(value) for value in entry["probabilities"]]


def _beyond_any_float(answer: dict[str, Any]) -> None:
    answer["predictions"][0]["probabilities"][0] = 10**400


def _ragged(answer: dict[str, Any]) -> None:
    answer["predictions"][0]["probabilities"].pop()


def _nothing(answer: dict[str, Any]) -> None:
    answer.clear()


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (_wrong_label, "labels"),
        (_off_by_a_little, "probabilities differ by 1.00e-04"),
        (_not_a_number, ""),
        (_one_too_many, "labels"),
        (_other_version, "version"),
        (_unknown_device, "answered by ('tpu', 'onnx')"),
        (_unknown_variant, "answered by ('cpu', 'onnx-int4')"),
        (_variant_of_another_device, "answered by ('cuda', 'onnx-int8')"),
        (_no_variant, "malformed answer (KeyError('variant'))"),
        (_version_as_number, "expected"),
        (_as_strings, "not numbers"),
        (_beyond_any_float, "malformed"),
        (_ragged, "shape (1, 9)"),
        (_nothing, "malformed"),
    ],
)
def test_a_wrong_answer_is_told_by_what_is_wrong(
    spoil: Callable[[dict[str, Any]], None], named: str
) -> None:
    """Each kind of fault gives a complaint that names it, and is never remembered as right."""
    expectations = Expectations(BUNDLE, 1, "predict")
    answer = _right_answer(expectations, 5)
    spoil(answer)
    for _ in range(2):
        complaint = expectations.complaint(
            expectations.requests[5], json.dumps(answer).encode(), {}
        )
        assert complaint is not None
        assert named in complaint


def _shifted(expectations: Expectations, variant: str, shift: float) -> str | None:
    """The complaint about an answer in which some probability is moved to another class."""
    answer = _right_answer(expectations, 5)
    probabilities = answer["predictions"][0]["probabilities"]
    best, other = int(np.argmax(probabilities)), int(np.argmin(probabilities))
    probabilities[best] -= shift
    probabilities[other] += shift
    content = json.dumps(answer | {"variant": variant}).encode()
    return expectations.complaint(expectations.requests[5], content, {})


@pytest.mark.parametrize(
    ("variant", "allowed", "too_much"),
    [
        ("onnx", 1e-6, 1e-4),
        ("torchscript", 1e-6, 1e-4),
        ("torchscript-frozen", 1e-6, 1e-4),
        ("onnx-fp16", 1e-3, 0.05),
        ("onnx-int8", 0.1, None),
    ],
)
def test_each_variant_is_held_to_its_own_tolerance(
    variant: str, allowed: float, too_much: float | None
) -> None:
    """fp16's tolerance is larger than fp32's; int8 has none for single probabilities."""
    expectations = Expectations(BUNDLE, 1, "predict")
    assert _shifted(expectations, variant, allowed) is None
    if too_much is not None:
        complaint = _shifted(expectations, variant, too_much)
        assert complaint is not None
        assert "probabilities differ" in complaint


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (_wrong_label, "labels"),
        (_off_by_a_little, "the sum of probabilities differs from 1 by 1.00e-04"),
        (_not_a_number, ""),
        (_ragged, "shape (1, 9)"),
    ],
)
def test_int8_too_can_be_wrong(spoil: Callable[[dict[str, Any]], None], named: str) -> None:
    """A wrong label that is not a near tie and invalid probabilities are wrong for int8 too."""
    expectations = Expectations(BUNDLE, 1, "predict")
    answer = _right_answer(expectations, 5) | {"variant": "onnx-int8"}
    spoil(answer)
    complaint = expectations.complaint(expectations.requests[5], json.dumps(answer).encode(), {})
    assert complaint is not None
    assert named in complaint


def test_a_label_must_be_that_of_its_own_probabilities() -> None:
    """An int8 answer whose label does not have the largest probability is wrong."""
    complaint = _shifted(Expectations(BUNDLE, 1, "predict"), "onnx-int8", 0.9)
    assert complaint is not None
    assert "do not have the largest" in complaint


@pytest.mark.parametrize(
    ("variant", "margin", "passes"),
    [
        ("onnx-int8", 0.015, True),
        ("onnx-int8", 0.017, False),
        ("onnx-fp16", 0.0001, True),
        ("onnx", 0.0001, False),
    ],
)
def test_where_the_reference_wavers_fewer_bits_may_say_the_other_digit(
    variant: str, margin: float, passes: bool, served_bundle: Path
) -> None:
    """For a near tie of two logits, either label is right, except in fp32."""
    with np.load(served_bundle / "golden.npz") as content:
        arrays = dict(content)
    truth = arrays["truth/logits"]
    second, best = np.argsort(truth[0])[-2:]
    largest = np.abs(np.delete(truth, 0, axis=0)).max()
    truth[0] = -largest
    truth[0, [best, second]] = largest, largest * (1 - margin)
    np.savez(served_bundle / "golden.npz", **arrays)
    expectations = Expectations(served_bundle, 1, "predict")
    answer = _right_answer(expectations, 0) | {"variant": variant}
    entry = answer["predictions"][0]
    entry["label"] = expectations.models[0].labels[second]
    either = (entry["probabilities"][best] + entry["probabilities"][second]) / 2
    entry["probabilities"][best] = entry["probabilities"][second] = either
    complaint = expectations.complaint(expectations.requests[0], json.dumps(answer).encode(), {})
    assert (complaint is None) == passes, complaint


def test_no_bundle_is_an_error(tmp_path: Path) -> None:
    """The error names a folder without a manifest."""
    with pytest.raises(PayloadError, match=str(tmp_path)):
        Expectations(tmp_path, 1, "predict")


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_every_endpoint_of_the_real_service_is_asked_and_judged(
    endpoint: Endpoint, service_url: str
) -> None:
    """Answers are right, name device and variant, and are wrong for another image's request."""
    images = 1 if endpoint == "predict/image" else 3
    expectations = Expectations(BUNDLE, images, endpoint)
    request = expectations.requests[4]
    answer = httpx.post(
        service_url + request.path, content=request.content, headers=request.headers
    )
    assert answer.status_code == 200
    assert expectations.complaint(request, answer.content, answer.headers) is None
    assert expectations.named == ("cpu", "onnx")
    other = _other(expectations, 4)
    complaint = expectations.complaint(other, answer.content, answer.headers)
    assert complaint is not None
    assert "labels" in complaint
    cut = expectations.complaint(request, answer.content[:-7], answer.headers)
    assert cut is not None
    if endpoint.startswith("infer"):
        nameless = expectations.complaint(
            request, answer.content, {k: v for k, v in answer.headers.items() if k[:2] != "x-"}
        )
        assert nameless is not None
        assert "unnamed" in nameless
