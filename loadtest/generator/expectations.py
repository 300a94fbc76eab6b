"""Judges answers: how far they may be from the bundle's reference, by the variant that they name.

The rules are those of the export's gate, for one answer at a time, and read from the bundle alone:
the tolerance row of the device and the variant, and the golden samples' own sizes.

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

# softmax in float32 rounds by a few 6e-8, and JSON carries every digit; older bundles do not say.
SOFTMAX_ROUNDING = 1e-6
# Where the truth's two best logits are nearer than this share of the distance from the best one to
# the sample's mean, the reference itself wavers.
NEAR_TIE = 0.01
# A channel is measured by its own largest value, but by no less than this share of the output's.
LEAST_SCALE = 1 / 16
FLOAT32_ROUNDING = 2.0**-24
# The worst sample's error over the median's that the gate allows a variant in fewer bits.
SAMPLE_SPREAD = 16.0
# No answer has many right spellings: beyond this, each is parsed.
REMEMBERED_ANSWERS = 8
PEER_IS = ("cpu", "onnx")  # what servers run that name no device and no variant

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


@dataclass(frozen=True)
class Bound:
    """What an answer may differ by; None: not judged.

    Attributes:
        scaled_error: Of a value, in units of its channel's scale.
        noise: Root mean square error of a sample, in units of the output's root mean square.
        softmax_error: Of a probability from the softmax of its logits.
        may_waver: Whether a label may differ where the reference is a near tie.
    """

    scaled_error: float | None
    noise: float | None
    softmax_error: float
    may_waver: bool

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> "Bound":
        """The bound that a row of the manifest's tolerances means."""
        error, decibels = row["scaled_error"], row.get("sqnr_db")
        # Half of the samples have at least the median's error, so that it is at most the square
        # root of 2 times the error of all, which the signal-to-noise ratio bounds.
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
        """Measure the golden answers."""
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
        """What the reference reads these golden samples as."""
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
                continue  # it was not asked for
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
                return f"labels {labels} that are not those of the largest probabilities"
        return None

    def _tensor_complaint(
        self, tensor: Tensor, values: Array | None, positions: list[int], bound: Bound
    ) -> str | None:
        eager = self.model.eager[tensor.name][positions]
        if values is None or values.shape != eager.shape:
            shape = None if values is None else values.shape
            return f"{tensor.name} of shape {shape}, expected {eager.shape}"
        if tensor.kind == "probabilities" and self.model.logits is not None:
            return self._probability_complaint(tensor, values, positions, bound)
        if tensor.dtype.kind != "f":
            unequal = int((values != eager).sum())
            return f"{tensor.name}: {unequal} values differ" if unequal else None
        # Comparisons are such that NaN complains too.
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
        """Softmax changes by at most half of the largest change of its inputs."""
        wrong = self._argmax_complaint(tensor, values_NK, positions, bound)
        if wrong is not None:
            return wrong
        difference = float(np.abs(values_NK - self.softmax_GK[positions]).max())
        if bound.scaled_error is not None:
            allowed = bound.scaled_error * self._largest / 2 + bound.softmax_error
            if not difference <= allowed:
                return f"{tensor.name} differ by {difference:.2e}, allowed {allowed:.2e}"
        # Ten roundings, each of at most half a unit of its own value.
        allowed = max(bound.softmax_error, 10 * SOFTMAX_ROUNDING)
        off = float(np.abs(values_NK.astype(np.float64).sum(axis=1) - 1).max())
        if not off <= allowed:
            return f"{tensor.name} whose sum differs from 1 by {off:.2e}, allowed {allowed:.2e}"
        return f"{tensor.name} below 0" if (values_NK < 0).any() else None

    def _may_differ(self, position: int, bound: Bound) -> bool:
        """Whether the label of a golden sample may be another than the reference's."""
        if bound.may_waver:
            return bool(self._wavers_G[position])
        # Each of the two best may be off by the allowed error.
        reach = 2 * (bound.scaled_error or 0) * self._largest
        return bool(self._margins_G[position] <= reach)

    def _label(self, best: int) -> str:
        return self.model.labels[best] if self.model.labels else str(best)


class Expectations:
    """Prepared requests of one or several models, and the judge of their answers.

    Attributes:
        requests: Of all golden samples; those of several models alternate.
        named: Device and variant, by the last answer judged.
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
            samples: In a request.
            form: How the models are asked.
            path: Of the URL, of a server that is not this service.

        Raises:
            PayloadError: No bundle there, or a model that cannot be asked in that form.
        """
        folders = [bundles] if isinstance(bundles, Path) else list(bundles)
        if not folders:
            raise PayloadError("no bundle is given; expected at least one folder")
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
        """Prepare the requests of a scenario's trace, if it has one, before the load begins."""
        if scenario.trace is not None:
            for event in read_trace(Path(scenario.trace)):
                self.positions(event.model, event.samples)

    def positions(self, name: str | None, samples: int) -> list[int]:
        """Where the requests of so many samples to a model are, which are made if need be.

        Args:
            name: The model's; None: the first one's.
            samples: In a request.

        Raises:
            PayloadError: No bundle of that model was given.
        """
        if (name, samples) not in self._positions:
            models = [model for model in self.models if name in (None, model.name)]
            if not models:
                known = ", ".join(model.name for model in self.models)
                raise PayloadError(
                    f"the trace asks for the model {name}; its bundle is not among those given, "
                    f"which are of {known}; add it to --bundle"
                )
            made = prepare(models[0], self._form, samples, self._path)
            first = len(self.requests)
            self.requests += made
            self._positions[name, samples] = list(range(first, len(self.requests)))
        return self._positions[name, samples]

    def complaint(self, request: Request, answer: bytes, headers: Mapping[str, str]) -> str | None:
        """What is wrong with a 200 answer; None if nothing is.

        An answer whose bytes were verified once for a request is recognised without being parsed.
        """
        key = (answer, headers.get(VARIANT))
        if key in request.known_right:
            return None
        try:
            said = read(request, answer, headers)
            complaint = self.judges[id(request.model)].complaint(request, said)
            if request.is_ours:
                self.named = (str(said.device), str(said.variant))
        except Exception as error:  # noqa: BLE001 - whatever trips the judge is no right answer
            complaint = f"malformed answer ({error!r})"
        if complaint is None and len(request.known_right) < REMEMBERED_ANSWERS:
            request.known_right.add(key)
        return None if complaint is None else f"{complaint}; it began {answer[:200]!r}"


def _margins(truth_GK: Array) -> tuple[Array, Array]:
    """How far the two best logits of each sample are apart, and whether that is a near tie."""
    best_G2 = np.sort(truth_GK, axis=1)[:, -2:]
    margins_G = best_G2[:, 1] - best_G2[:, 0]
    wavers_G = margins_G <= NEAR_TIE * (truth_GK.max(axis=1) - truth_GK.mean(axis=1))
    return margins_G, wavers_G


def _scales(eager: Array, truth: Array) -> Array:
    """The scale of each value of a sample, [1, ...]: the smaller one of its channels'.

    A channel's is its largest value, or that of the terms it sums, of which the reference's own
    rounding tells: a sum is off by some four roundings of its largest terms.
    """
    rounding = np.abs(eager.astype(np.float64) - truth) / (4 * FLOAT32_ROUNDING)
    sizes = np.maximum(np.abs(eager.astype(np.float64)), rounding)
    sizes = sizes.reshape(len(sizes), 1) if sizes.ndim == 1 else sizes
    output = float(np.abs(eager).max()) or 1.0
    scale = np.full((1, *sizes.shape[1:]), output)
    for axis in {1, sizes.ndim - 1}:  # the axes that may count channels
        others = tuple(other for other in range(sizes.ndim) if other != axis)
        largest = sizes.max(axis=others, keepdims=True)
        scale = np.minimum(scale, np.clip(largest, LEAST_SCALE * output, output))
    return scale.reshape(1, *eager.shape[1:])
