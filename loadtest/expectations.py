"""Prepared requests and the answers they must get, from a bundle's golden samples.

The generator must not become what is measured: bodies are bytes made before the test, and an
answer whose bytes were verified once for a request is recognised again without being parsed.

Shape suffixes: G golden images, H and W 28 pixels, K classes.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from loadtest.bodies import VARIANT, Body, Said, body, read
from loadtest.errors import LoadTestError
from loadtest.scenarios import Endpoint

# softmax in float32 rounds by a few 6e-8, and JSON carries every digit.
SOFTMAX_ROUNDING = 1e-6
# A float16 has 11 significant bits; a softmax in it rounds twice.
HALF_ROUNDING = 2 * 2.0**-11
# Where the truth's two best logits are nearer than this share of its largest one, it wavers itself.
NEAR_TIE = 0.01
# No answer has many right spellings: beyond this, each is parsed.
REMEMBERED_ANSWERS = 8


# Which of the manifest's tolerances a served variant is held to: format and precision. TorchScript
# is held to what ONNX is: on another machine than the exporter's its sums run in another order too.
TOLERANCE_OF = {
    "onnx": ("onnx", "fp32"),
    "onnx-tf32": ("onnx", "tf32"),
    "onnx-fp16": ("onnx", "fp16"),
    "onnx-int8": ("onnx", "int8"),
    "torchscript": ("onnx", "fp32"),
    "torchscript-frozen": ("onnx", "fp32"),
}


class ExpectationError(LoadTestError):
    """The bundle cannot be read."""


class Bound(NamedTuple):
    """What an answer may differ by.

    Attributes:
        probability: Upper bound of a probability's difference; None if it is not judged.
        total: The same of the sum of an image's probabilities, which is 1.
        margin: Labels are judged where the truth's margin is at least this.
    """

    probability: float | None
    total: float
    margin: float


@dataclass
class Prepared:
    """One request and what its answer must say.

    Attributes:
        margins_N: How far the truth's two best logits are apart, in shares of the largest one.
    """

    sent: Body
    labels: list[str]
    margins_N: npt.NDArray[np.float64]
    probabilities_NK: npt.NDArray[np.float64]
    known_right: set[tuple[bytes, str | None]] = field(default_factory=set)


class Expectations:
    """Prepared requests for one model, and the judge of their answers."""

    def __init__(self, bundle: Path, images_per_request: int, endpoint: Endpoint) -> None:
        """Prepare one request for each golden sample (a batch starts at it and goes on from it).

        Args:
            bundle: The folder of the bundle that is served.
            images_per_request: Images in a body.
            endpoint: Which is asked.

        Raises:
            ExpectationError: No bundle there.
        """
        try:
            self.manifest: dict[str, Any] = json.loads((bundle / "manifest.json").read_text())
            with np.load(bundle / "golden.npz", allow_pickle=False) as golden:
                images_GHW, truth_GK = golden["inputs/images"], golden["truth/logits"]
        except (OSError, ValueError, KeyError) as error:
            raise ExpectationError(f"{bundle} is no bundle with golden samples: {error}") from error
        self.named: tuple[str, str] | None = None  # device and variant, by the last answer judged
        largest = float(np.abs(truth_GK).max())
        self._bounds = _bounds(self.manifest["tolerances"], largest)
        best_GK = np.sort(truth_GK, axis=1)[:, -2:]
        margins_G = (best_GK[:, 1] - best_GK[:, 0]) / largest
        exponentials = np.exp(truth_GK - truth_GK.max(axis=1, keepdims=True))
        probabilities_GK = exponentials / exponentials.sum(axis=1, keepdims=True)
        labels = [self.manifest["labels"][i] for i in truth_GK.argmax(axis=1)]
        self.requests = []
        for start in range(len(images_GHW)):
            chosen = [(start + i) % len(images_GHW) for i in range(images_per_request)]
            self.requests.append(
                Prepared(
                    body(endpoint, self.manifest["name"], images_GHW[chosen]),
                    [labels[i] for i in chosen],
                    margins_G[chosen],
                    probabilities_GK[chosen],
                )
            )

    def complaint(self, request: Prepared, answer: bytes, headers: Mapping[str, str]) -> str | None:
        """What is wrong with a 200 answer; None if nothing is.

        The bundle's tolerance for the device and the variant that the answer names decides. A
        probability may differ by half of what a logit may (softmax changes by at most half of the
        largest change of its inputs), and by its own rounding. Labels must be the reference's, of
        variants in fewer bits where it does not waver; int8 is judged by them and by the sums of
        its probabilities alone. Labels must be those of the answer's own probabilities, too.
        """
        key = (answer, headers.get(VARIANT))
        if key in request.known_right:
            return None
        try:
            complaint = self._judge(request, read(answer, headers, self.manifest["labels"]))
        except Exception as error:  # noqa: BLE001 - whatever trips the judge is no right answer
            complaint = f"malformed answer ({error!r})"
        if complaint is None and len(request.known_right) < REMEMBERED_ANSWERS:
            request.known_right.add(key)
        return None if complaint is None else f"{complaint}; it began {answer[:200]!r}"

    def _judge(self, request: Prepared, said: Said) -> str | None:
        expected = (self.manifest["name"], self.manifest["version"])
        if (said.model, said.version) != expected:
            return f"answered by {said.model} {said.version}, expected {' '.join(expected)}"
        self.named = (said.device, said.variant)
        bound = self._bounds.get(self.named)
        if bound is None:
            return f"answered by {self.named}, expected one of {sorted(self._bounds)}"
        if not _agree(said.labels, request, bound.margin):
            return f"labels {said.labels}, expected {request.labels}"
        if said.probabilities_NK.shape != request.probabilities_NK.shape:
            return f"probabilities of shape {said.probabilities_NK.shape}"
        return self._judge_probabilities(said.labels, said.probabilities_NK, request, bound)

    def _judge_probabilities(
        self,
        labels: list[str],
        probabilities_NK: npt.NDArray[np.float64],
        request: Prepared,
        bound: Bound,
    ) -> str | None:
        # Comparisons are such that NaN complains too.
        difference = float(np.abs(probabilities_NK - request.probabilities_NK).max())
        if bound.probability is not None and not difference <= bound.probability:
            return f"probabilities differ by {difference:.2e}, allowed {bound.probability:.2e}"
        off = float(np.abs(probabilities_NK.sum(axis=1) - 1).max())
        if not off <= bound.total:
            return f"probabilities whose sum differs from 1 by {off:.2e}, allowed {bound.total:.2e}"
        if (probabilities_NK < 0).any():
            return "probabilities below 0"
        own_N = probabilities_NK[
            np.arange(len(labels)), [self.manifest["labels"].index(label) for label in labels]
        ]
        if not (own_N == probabilities_NK.max(axis=1)).all():
            return f"labels {labels} that are not those of the largest probabilities"
        return None


def _agree(labels: list[Any], request: Prepared, margin: float) -> bool:
    """The labels are the request's, but for images whose margin is below this."""
    return len(labels) == len(request.labels) and all(
        found == expected or own < margin
        for found, expected, own in zip(labels, request.labels, request.margins_N, strict=True)
    )


def _bounds(tolerances: list[dict[str, Any]], largest: float) -> dict[tuple[str, str], Bound]:
    """What answers may differ by, for each device and variant that the manifest knows.

    Args:
        tolerances: The manifest's.
        largest: The truth's largest logit, absolute.
    """
    bounds = {}
    for row in tolerances:
        for variant, of in TOLERANCE_OF.items():
            if of == (row["format"], row["precision"]):
                half = row["precision"] == "fp16"
                rounding = HALF_ROUNDING if half else SOFTMAX_ROUNDING
                error = row["scaled_error"]
                bounds[row["device"], variant] = Bound(
                    None if error is None else error * largest / 2 + rounding,
                    # Ten roundings, each of at most half a unit of its own value.
                    rounding if half else 10 * SOFTMAX_ROUNDING,
                    NEAR_TIE if error is None or half else 0.0,
                )
    return bounds
