"""Judges answers: compares them with the bundle's reference, within the variant's tolerance.

The rules are those of the export's parity gate, applied to one answer at a time. They need only the
bundle: the tolerance row of the answer's device and variant, and the golden outputs' magnitudes.

Shape suffixes: G golden samples, N samples of a request, K classes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from loadtest.generator.arrivals import read_trace
from loadtest.generator.payloads import (
    VARIANT,
    Answer,
    Array,
    Form,
    Model,
    PayloadError,
    Request,
    Tensor,
    prepare,
    read,
)
from loadtest.scenarios import Scenario

# Default for older bundles: float32 softmax errs by a few times 6e-8, and JSON keeps every digit.
SOFTMAX_ROUNDING = 1e-6
# A sample is a near tie, and its label not reliable, if the gap between the two largest logits of
# the float64 reference is at most this share of the gap from the largest to the sample's mean.
NEAR_TIE = 0.01
# A channel's scale is its own largest value, but at least this share of the output's largest value.
LEAST_SCALE = 1 / 16
FLOAT32_ROUNDING = 2.0**-24
# Largest allowed ratio of the worst sample's error to the median's, for reduced precision.
SAMPLE_SPREAD = 16.0
# A request has few distinct right answers: when this many are remembered, further ones are parsed.
REMEMBERED_ANSWERS = 8
PEER_IS = ("cpu", "onnx")  # device and variant of peers, whose answers name neither

# The manifest's tolerance row, by format and precision, that applies to each served variant.
# TorchScript has ONNX's: on another machine than the exporter's it too sums in another order.
TOLERANCE_OF = {
    "onnx": ("onnx", "fp32"),
    "onnx-tf32": ("onnx", "tf32"),
    "onnx-fp16": ("onnx", "fp16"),
    "onnx-int8": ("onnx", "int8"),
    "torchscript": ("onnx", "fp32"),
    "torchscript-frozen": ("onnx", "fp32"),
}


@dataclass(frozen=True)
class Bound:
    """How much an answer may differ from the reference; None: this is not judged.

    Attributes:
        scaled_error: Error of a value, in units of its channel's scale.
        noise: Root mean square error of a sample, in units of the output's root mean square.
        softmax_error: Difference of a probability from the softmax of the reference's logits.
        may_waver: Whether a label may differ where the reference is a near tie.
    """

    scaled_error: float | None
    noise: float | None
    softmax_error: float
    may_waver: bool

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> "Bound":
        """Convert a row of the manifest's tolerances into a bound."""
        error, decibels = row["scaled_error"], row.get("sqnr_db")
        # Half of the samples have at least the median's error. So the median is at most sqrt(2)
        # times the root mean square error of all samples, which the signal-to-noise ratio bounds.
        spread = (row.get("sample_spread") or SAMPLE_SPREAD) * 2**0.5
        return cls(
            scaled_error=error,
            noise=None if decibels is None else spread * 10 ** (-decibels / 20),
            softmax_error=row.get("softmax_error") or SOFTMAX_ROUNDING,
            may_waver=error is None or row["precision"] != "fp32",
        )


class Judge:
    """Judges the answers of one model."""

    def __init__(self, model: Model) -> None:
        """Compute the tolerances, scales and labels from the model's golden outputs."""
        self.model = model
        self._bounds = {
            (row["device"], variant): Bound.of(row)
            for row in model.manifest["tolerances"]
            for variant, of in TOLERANCE_OF.items()
            if of == (row["format"], row["precision"])
        }
        self._scales = {
            tensor.name: _scales(model.eager[tensor.name], model.truth[tensor.name])
            for tensor in model.outputs
            if tensor.dtype.kind == "f"
        }
        if model.logits is not None:
            truth_GK = model.truth[model.logits].astype(np.float64)
            self._largest = float(np.abs(truth_GK).max())
            self._best_G = truth_GK.argmax(axis=1)
            self._margins_G, self._wavers_G = _margins(truth_GK)
            exponentials = np.exp(truth_GK - truth_GK.max(axis=1, keepdims=True))
            self.softmax_GK = exponentials / exponentials.sum(axis=1, keepdims=True)

    def labels(self, positions: Sequence[int]) -> list[str]:
        """The labels that the reference assigns to these golden samples."""
        return [self._label(self._best_G[i]) for i in positions]

    def complaint(self, request: Request, answer: Answer) -> str | None:
        """What is wrong with an answer; None if nothing is."""
        model = self.model
        who = (answer.device, answer.variant) if request.is_ours else PEER_IS
        if request.is_ours and (answer.model, answer.version) != (model.name, model.version):
            return (
                f"answered by {answer.model} {answer.version}, expected {model.name} "
                f"{model.version}"
            )
        bound = self._bounds.get((str(who[0]), str(who[1])))
        if bound is None:
            return f"answered by {who}, expected one of {sorted(self._bounds)}"
        positions = list(request.positions)
        if answer.labels is not None:
            wrong = self._label_complaint(answer, positions, bound)
            if wrong is not None:
                return wrong
        wanted = [t for t in model.asked if answer.labels is None or t.kind == "probabilities"]
        for tensor in (*wanted, *(t for t in model.outputs if t not in wanted)):
            values = answer.tensors.get(tensor.name)
            if values is None and tensor not in wanted:
                continue  # the request did not name this output
            wrong = self._tensor_complaint(tensor, values, positions, bound)
            if wrong is not None:
                return wrong
        return None

    def _label_complaint(self, answer: Answer, positions: list[int], bound: Bound) -> str | None:
        labels, expected = answer.labels or [], self.labels(positions)
        right = len(labels) == len(expected) and all(
            found == wanted or self._may_differ(position, bound)
            for found, wanted, position in zip(labels, expected, positions, strict=True)
        )
        if not right:
            return f"labels {labels}, expected {expected}"
        probabilities_NK = answer.tensors[str(self.model.probabilities)]
        if probabilities_NK.shape == (len(labels), len(self.model.labels)):
            best_N = [probabilities_NK[i, self.model.labels.index(v)] for i, v in enumerate(labels)]
            if (np.array(best_N) != probabilities_NK.max(axis=1)).any():
                return f"labels {labels} do not have the largest probabilities"
        return None

    def _tensor_complaint(
        self, tensor: Tensor, values: Array | None, positions: list[int], bound: Bound
    ) -> str | None:
        eager = self.model.eager[tensor.name][positions]
        if values is None:
            return f"{tensor.name} is missing, expected shape {eager.shape}"
        if values.shape != eager.shape:
            return f"{tensor.name} has shape {values.shape}, expected {eager.shape}"
        if tensor.kind == "probabilities" and self.model.logits is not None:
            return self._probability_complaint(tensor, values, positions, bound)
        if tensor.dtype.kind != "f":
            unequal = int((values != eager).sum())
            return f"{tensor.name}: {unequal} values differ" if unequal else None
        # The comparisons are written as `not <=`, so that NaN is a complaint too.
        difference = np.abs(values.astype(np.float64) - eager.astype(np.float64))
        if bound.scaled_error is not None:
            scaled = float((difference / self._scales[tensor.name]).max(initial=0))
            if not scaled <= bound.scaled_error:
                return f"{tensor.name}: scaled error {scaled:.2e}, allowed {bound.scaled_error:.2e}"
        if bound.noise is not None:
            wrong = self._noise_complaint(tensor, difference, bound.noise)
            if wrong is not None:
                return wrong
        if tensor.kind == "logits":
            return self._argmax_complaint(tensor, values, positions, bound)
        return None

    def _noise_complaint(self, tensor: Tensor, difference: Array, bound: float) -> str | None:
        axes = tuple(range(1, difference.ndim))
        noise_N = np.sqrt(np.mean(np.square(difference), axis=axes))
        size = float(np.sqrt(np.mean(np.square(self.model.truth[tensor.name]))))
        worst = float(noise_N.max())
        if not worst <= bound * size:
            return f"{tensor.name}: noise {worst:.2e}, allowed {bound * size:.2e}"
        return None

    def _argmax_complaint(
        self, tensor: Tensor, values: Array, positions: list[int], bound: Bound
    ) -> str | None:
        found_N = values.argmax(axis=1)
        for found, position in zip(found_N, positions, strict=True):
            if found != self._best_G[position] and not self._may_differ(position, bound):
                return (
                    f"{tensor.name}: labels {[self._label(i) for i in found_N]}, expected "
                    f"{self.labels(positions)}"
                )
        return None

    def _probability_complaint(
        self, tensor: Tensor, values_NK: Array, positions: list[int], bound: Bound
    ) -> str | None:
        """What is wrong with probabilities, compared with the softmax of the reference's logits."""
        wrong = self._argmax_complaint(tensor, values_NK, positions, bound)
        if wrong is not None:
            return wrong
        difference = float(np.abs(values_NK - self.softmax_GK[positions]).max())
        if bound.scaled_error is not None:
            # A softmax output changes by at most half of the largest change of its inputs.
            allowed = bound.scaled_error * self._largest / 2 + bound.softmax_error
            if not difference <= allowed:
                return f"{tensor.name} differ by {difference:.2e}, allowed {allowed:.2e}"
        # The sum has ten rounded terms, each off by at most half a unit in its last place.
        allowed = max(bound.softmax_error, 10 * SOFTMAX_ROUNDING)
        off = float(np.abs(values_NK.astype(np.float64).sum(axis=1) - 1).max())
        if not off <= allowed:
            return f"the sum of {tensor.name} differs from 1 by {off:.2e}, allowed {allowed:.2e}"
        return f"{tensor.name} has values below 0" if (values_NK < 0).any() else None

    def _may_differ(self, position: int, bound: Bound) -> bool:
        """Whether the label of a golden sample may differ from the reference's."""
        if bound.may_waver:
            return bool(self._wavers_G[position])
        # Each of the two largest logits may be off by the allowed error.
        reach = 2 * (bound.scaled_error or 0) * self._largest
        return bool(self._margins_G[position] <= reach)

    def _label(self, best: int) -> str:
        return self.model.labels[best] if self.model.labels else str(best)


class Expectations:
    """Prepared requests for one or several models, and the judges of their answers.

    Attributes:
        requests: Requests for all golden samples; those for several models alternate.
        named: Device and variant that the last judged answer named.
    """

    def __init__(
        self,
        bundles: Path | Sequence[Path],
        samples: int,
        form: Form,
        path: str | None = None,
    ) -> None:
        """Prepare one request for each golden sample.

        Args:
            bundles: The folders of the bundles that are served.
            samples: Number of samples in each request.
            form: The format of the requests.
            path: URL path, for a server that is not this service.

        Raises:
            PayloadError: A bundle cannot be read, or its model does not accept that form.
        """
        folders = [bundles] if isinstance(bundles, Path) else list(bundles)
        if not folders:
            raise PayloadError("no bundle was given; expected at least one folder")
        self.models = [Model(folder) for folder in folders]
        self.judges = {id(model): Judge(model) for model in self.models}
        prepared = [prepare(model, form, samples, path) for model in self.models]
        longest = max(len(requests) for requests in prepared)
        self.requests = [
            requests[i % len(requests)] for i in range(longest) for requests in prepared
        ]
        self.named: tuple[str, str] | None = None
        self._form, self._path = form, path
        self._positions: dict[tuple[str | None, int], list[int]] = {}

    def prepare_trace(self, scenario: Scenario) -> None:
        """Prepare the requests of the scenario's trace, if any, before the load begins."""
        if scenario.trace is not None:
            for event in read_trace(Path(scenario.trace)):
                self.positions(event.model, event.samples)

    def positions(self, name: str | None, samples: int) -> list[int]:
        """Indices in ``requests`` of a model's requests of one size; prepares them if needed.

        Args:
            name: Name of the model; None: the first model.
            samples: Number of samples in each request.

        Raises:
            PayloadError: No bundle of that model was given.
        """
        if (name, samples) not in self._positions:
            models = [model for model in self.models if name in (None, model.name)]
            if not models:
                known = ", ".join(model.name for model in self.models)
                raise PayloadError(
                    f"the trace requests the model {name}, but the given bundles are of {known}; "
                    "add its bundle to --bundle"
                )
            made = prepare(models[0], self._form, samples, self._path)
            first = len(self.requests)
            self.requests += made
            self._positions[name, samples] = list(range(first, len(self.requests)))
        return self._positions[name, samples]

    def complaint(self, request: Request, answer: bytes, headers: Mapping[str, str]) -> str | None:
        """What is wrong with a 200 answer; None if nothing is.

        An answer whose bytes were already verified for this request is not parsed again.
        """
        key = (answer, headers.get(VARIANT))
        if key in request.known_right:
            return None
        try:
            said = read(request, answer, headers)
            complaint = self.judges[id(request.model)].complaint(request, said)
            if request.is_ours:
                self.named = (str(said.device), str(said.variant))
        except Exception as error:  # noqa: BLE001 - an answer that cannot be judged is wrong
            complaint = f"malformed answer ({error!r})"
        if complaint is None and len(request.known_right) < REMEMBERED_ANSWERS:
            request.known_right.add(key)
        return None if complaint is None else f"{complaint}; the answer began {answer[:200]!r}"


def _margins(truth_GK: Array) -> tuple[Array, Array]:
    """The gap between the two largest logits of each sample, and whether it is a near tie."""
    best_G2 = np.sort(truth_GK, axis=1)[:, -2:]
    margins_G = best_G2[:, 1] - best_G2[:, 0]
    wavers_G = margins_G <= NEAR_TIE * (truth_GK.max(axis=1) - truth_GK.mean(axis=1))
    return margins_G, wavers_G


def _scales(eager: Array, truth: Array) -> Array:
    """The scale of each value of a sample, [1, ...]: the smallest scale of its channels.

    A channel's scale is its largest value, or that of the terms it sums if they are larger. These
    are estimated from the reference's rounding error, about four roundings of the largest terms.
    """
    rounding = np.abs(eager.astype(np.float64) - truth) / (4 * FLOAT32_ROUNDING)
    sizes = np.maximum(np.abs(eager.astype(np.float64)), rounding)
    sizes = sizes.reshape(len(sizes), 1) if sizes.ndim == 1 else sizes
    output = float(np.abs(eager).max()) or 1.0
    scale = np.full((1, *sizes.shape[1:]), output)
    for axis in {1, sizes.ndim - 1}:  # the axes that may be the channel axis
        others = tuple(other for other in range(sizes.ndim) if other != axis)
        largest = sizes.max(axis=others, keepdims=True)
        scale = np.minimum(scale, np.clip(largest, LEAST_SCALE * output, output))
    return scale.reshape(1, *eager.shape[1:])
