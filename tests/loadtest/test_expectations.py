"""A right answer is recognised, and every kind of wrong one is."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loadtest.expectations import ExpectationError, Expectations
from tests.tiny import SERVED_BUNDLES

BUNDLE = SERVED_BUNDLES / "cnn"


def _right_answer(expectations: Expectations, position: int) -> dict[str, Any]:
    request = expectations.requests[position]
    return {
        "model": expectations.manifest["name"],
        "version": expectations.manifest["version"],
        "device": "cpu",
        "predictions": [
            {"label": label, "probabilities": row.tolist()}
            for label, row in zip(request.labels, request.probabilities_NK, strict=True)
        ],
    }


def test_bodies_hold_the_golden_images() -> None:
    """A batch of three starts at its sample and goes on from it, around the end."""
    expectations = Expectations(BUNDLE, 3, "predict")
    with np.load(BUNDLE / "golden.npz") as golden:
        images = golden["inputs/images"]
    last = json.loads(expectations.requests[-1].body)["images"]
    assert np.array_equal(np.array(last), images[[-1, 0, 1]])
    single = Expectations(BUNDLE, 1, "predict").requests[0]
    assert np.array(json.loads(single.body)["images"]).shape == (28, 28)
    upload = Expectations(BUNDLE, 1, "predict/image").requests[0]
    assert upload.body.startswith(b"\x89PNG")
    assert upload.content_type == "image/png"


def test_a_right_answer_is_right_again_by_its_bytes() -> None:
    """The reference's own answer passes, and its bytes are remembered for that request alone."""
    expectations = Expectations(BUNDLE, 1, "predict")
    answer = json.dumps(_right_answer(expectations, 0)).encode()
    assert expectations.complaint(expectations.requests[0], answer) is None
    assert answer in expectations.requests[0].known_right
    other = next(r for r in expectations.requests if r.labels != expectations.requests[0].labels)
    assert expectations.complaint(other, answer) is not None


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
        (_not_a_number, "probabilities differ"),
        (_one_too_many, "labels"),
        (_other_version, "version"),
        (_unknown_device, "malformed"),
        (_version_as_number, "expected"),
        (_as_strings, "no numbers"),
        (_beyond_any_float, "malformed"),
        (_ragged, "shape (1, 9)"),
        (_nothing, "malformed"),
    ],
)
def test_a_wrong_answer_is_told_by_what_is_wrong(
    spoil: Callable[[dict[str, Any]], None], named: str
) -> None:
    """Each kind of fault is a complaint that names it, and is never remembered as right."""
    expectations = Expectations(BUNDLE, 1, "predict")
    answer = _right_answer(expectations, 5)
    spoil(answer)
    for _ in range(2):
        complaint = expectations.complaint(expectations.requests[5], json.dumps(answer).encode())
        assert complaint is not None
        assert named in complaint


def test_no_bundle_is_an_error(tmp_path: Path) -> None:
    """A folder without a manifest is named."""
    with pytest.raises(ExpectationError, match=str(tmp_path)):
        Expectations(tmp_path, 1, "predict")
