"""Repair a float16 or int8 file that fails its gate, by keeping some layers in float32.

If the errors of layers are independent, the error at the outputs is the sum of the errors that each
layer alone causes. Layers are ranked by that error, and as few as possible of the worst ones are
kept in float32. Only calibration samples are used: int8's ranges are fitted to one half, and the
other half judges the trials. This module does not import torch.
"""

import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

import numpy as np
import onnx

from export.bundle.golden import run_batched
from export.bundle.manifest import RepairSummary, TensorSpec
from export.bundle.metrics import Array, Arrays, Comparison, compare
from export.bundle.session import OnnxModel
from export.bundle.tolerances import STANDARD_DEVIATIONS, Tolerance, violations
from export.convert.precision import (
    Calibration,
    Ranges,
    ReducibleLayer,
    fit_ranges,
    reducible_layers,
    to_fp16,
    to_int8,
)
from export.parity.schema import RepairFigures, Trial
from export.progress import Progress
from export.worker import CONVERSION_S, Worker

REPAIRABLE = ("onnx-int8", "onnx-fp16")
MOST_TRIALS = 20
ASKED = 256  # samples that judge a trial, with a margin for sampling error
RANKED = 16  # samples that rank the layers: only the order of their pooled errors matters
BATCH = 64


@dataclass(frozen=True)
class Questions:
    """The samples that a trial runs on, which are never those of the gate.

    Attributes:
        fitted: Calibration samples that int8's ranges are fitted to.
        asked: Other calibration samples, which judge the trials.
        edge_cases: Made up from the domains of the calibration samples; may be empty.
        targets: int64 [N], the labels of ``asked``, -1 where there is none.
        judged: How many samples the gate will run.
    """

    fitted: Arrays
    asked: Arrays
    edge_cases: Arrays
    targets: Array
    judged: int

    @classmethod
    def of(
        cls, variant: str, samples: Arrays, targets: Array | None, edge_cases: Arrays, judged: int
    ) -> "Questions":
        """Split the samples: int8 is fitted to every second one and judged by the others."""
        count = len(next(iter(samples.values())))
        known = np.full(count, -1) if targets is None else targets
        asked = slice(1, None, 2) if variant == "onnx-int8" else slice(None)
        return cls(
            {name: array[::2] for name, array in samples.items()},
            {name: array[asked][:ASKED] for name, array in samples.items()},
            edge_cases,
            known[asked][:ASKED],
            judged,
        )


@dataclass(frozen=True)
class _Answers:
    """A file's content, its outputs by name, and its speed."""

    content: bytes
    asked: Arrays
    edge_cases: Arrays
    samples_per_s: float


@dataclass(frozen=True)
class Repair:
    """The search for one variant.

    Attributes:
        source: The float32 ONNX file's content. Its outputs are the expected ones: they are proven,
            and far closer to the checkpoint's than those of any reduced precision.
        variant: "onnx-int8" or "onnx-fp16".
        allowed: The variant's tolerance.
        outputs: The model's outputs; probabilities are not compared, their logits are.
        questions: The samples that the trials run on.
        worker: The process that converts and runs the files.
        helper: Another process, which ranks half of the layers.
        folder: The folder for the float32 file and the activations' ranges.
        progress: Shows each trial.
    """

    source: bytes
    variant: str
    allowed: Tolerance
    outputs: tuple[TensorSpec, ...]
    questions: Questions
    worker: Worker
    helper: Worker
    folder: Path
    progress: Progress

    def search(self) -> tuple[bytes | None, RepairFigures]:
        """Search for the file that keeps the fewest layers in float32.

        Returns:
            The file's content, None if no trial passed; and all trials.
        """
        trials: list[Trial] = []
        best: bytes | None = None
        chosen: int | None = None
        for kept, method in self._plans(trials):
            self.progress.expect(1)
            self.progress.step(f"{self.variant}: trial {len(trials) + 1}")
            trial, content = self._try(kept, method)
            trials.append(trial)
            eligible = trial.passed and not self._is_what_failed(trial)
            if eligible and (chosen is None or _rank_of(trial) > _rank_of(trials[chosen])):
                best, chosen = content, len(trials) - 1
            if len(trials) == MOST_TRIALS:
                break
        names = tuple(layer.name for layer in self.layers)
        figures = RepairFigures(
            layers=names,
            samples=len(self.questions.targets),
            fp32=_trial(names, None, self._expected, self._compare(self._expected), None),
            trials=tuple(trials),
            chosen=chosen,
        )
        return best, figures

    @cached_property
    def layers(self) -> list[ReducibleLayer]:
        """All layers that could be kept, in the order of the graph."""
        return reducible_layers(onnx.ModelProto.FromString(self.source), self.variant)

    def _plans(
        self, trials: list[Trial]
    ) -> Iterator[tuple[list[ReducibleLayer], Calibration | None]]:
        """Yield the next trial, chosen by the results so far: layers to keep, and calibration."""
        methods: tuple[Calibration | None, ...] = (None,)
        if self.variant == "onnx-int8":
            methods = get_args(Calibration)
        if not self.layers:
            return
        for method in methods:
            yield [], method
            if trials[-1].surely and not self._is_what_failed(trials[-1]):
                return
        ranked, shares = self._rank(methods[_nearest(trials)])
        fails, passes = 0, len(ranked)  # with all layers kept, nothing would be faster
        if passes == 1:
            return
        count = min(max(_expected(shares, self.allowed), 1), passes - 1)
        # The worst layers hide the differences between calibrations, so compare these again.
        for method in methods:
            yield ranked[:count], method
        alike = trials[-len(methods) :]
        method, surely = methods[_nearest(alike)], alike[_nearest(alike)].surely
        while True:
            fails, passes = (fails, count) if surely else (count, passes)
            if passes - fails == 1:
                return
            count = (fails + passes) // 2
            yield ranked[:count], method
            surely = trials[-1].surely

    def _is_what_failed(self, trial: Trial) -> bool:
        """Whether the trial makes the file that the gate refused; it is never eligible."""
        return not trial.kept and trial.calibration in (None, get_args(Calibration)[0])

    def _rank(self, method: Calibration | None) -> tuple[list[ReducibleLayer], list[float]]:
        """The layers, the worst first, and each one's error power when only it is reduced."""
        self.progress.expect(1)
        self.progress.step(f"{self.variant}: rank {len(self.layers)} layers")
        few = {name: array[:RANKED] for name, array in self.questions.asked.items()}
        expected = {name: array[:RANKED] for name, array in self._expected.asked.items()}
        ranges = None if method is None else self._ranges(method)
        waiting = iter(enumerate(self.layers))
        shares = dict[int, float]()

        def rank_some(worker: Worker) -> None:
            for position, layer in waiting:
                nodes = [n for other in self.layers if other is not layer for n in other.nodes]
                arguments = (self._path, nodes, ranges, few)
                try:
                    found = self._call(_convert_and_run, *arguments, worker=worker)
                    shares[position] = max(
                        _noise(found[s.name], expected[s.name]) for s in self._compared
                    )
                except Exception:  # noqa: BLE001 - a layer that fails ranks worst
                    shares[position] = math.inf

        with ThreadPoolExecutor(2) as lanes:
            list(lanes.map(rank_some, (self.worker, self.helper)))
        order = sorted(shares, key=lambda i: (-shares[i], i))
        return [self.layers[i] for i in order], [shares[i] for i in order]

    def _try(
        self, kept: list[ReducibleLayer], method: Calibration | None
    ) -> tuple[Trial, bytes | None]:
        """Convert the model with some layers kept in float32, and judge its outputs."""
        names = tuple(layer.name for layer in kept)
        try:
            found = self._answers(kept, method, self.questions.asked, self._edge_cases)
        except Exception as error:  # noqa: BLE001 - a failed trial, as in the gate
            died = f"cannot be made or run: {error}"
            return Trial(kept=names, calibration=method, complaint=died), None
        compared = self._compare(found)
        complaint = next(self._violations(found, compared, with_chance=False), None)
        surely = not any(self._violations(found, compared, with_chance=True))
        trial = _trial(names, method, found, compared, complaint)
        return trial.model_copy(update={"surely": surely}), found.content

    def _compare(self, found: _Answers) -> dict[str, Comparison]:
        expected, targets = self._expected.asked, self.questions.targets
        return {
            spec.name: compare(
                found.asked[spec.name],
                expected[spec.name],
                expected[spec.name],
                logits=spec.kind == "logits",
                targets_N=targets,
            )
            for spec in self._compared
        }

    def _violations(
        self, found: _Answers, compared: dict[str, Comparison], *, with_chance: bool
    ) -> Iterator[str]:
        """Violations of the tolerance; with chance, also those likely for other samples."""
        # Drop the RMS error in units of the baseline's: here the baseline itself is expected.
        allowed = self.allowed.model_copy(update={"rms_ratio": None})
        for name, figures in compared.items():
            mine, theirs = found.asked[name], self._expected.asked[name]
            tighter = dict[str, float]()
            if with_chance and allowed.scaled_error is not None:
                per_sample = mine.size // len(mine)
                growth = _growth(mine.size, self.questions.judged * per_sample)
                tighter["scaled_error"] = allowed.scaled_error / growth
            if with_chance and allowed.sqnr_db is not None:
                tighter["sqnr_db"] = allowed.sqnr_db + _chance_db(mine, theirs)
            found_violations = violations(figures, allowed.model_copy(update=tighter))
            yield from (f"{name}: {complaint}" for complaint in found_violations)
            if found.edge_cases:
                mine, theirs = found.edge_cases[name], self._expected.edge_cases[name]
                at_edges = compare(mine, theirs, theirs, edge_cases=len(mine))
                yield from (f"edge cases, {name}: {c}" for c in violations(at_edges, allowed))

    def _answers(
        self,
        kept: list[ReducibleLayer],
        method: Calibration | None,
        asked: Arrays,
        edge_cases: Arrays,
    ) -> _Answers:
        nodes = [node for layer in kept for node in layer.nodes]
        ranges = None if method is None else self._ranges(method)
        arguments = (self._path, nodes, ranges, asked, edge_cases)
        found: _Answers = self._call(_convert_and_ask, *arguments)
        return found

    @cached_property
    def _path(self) -> Path:
        """The float32 file, from which workers read the model: weights are too large for a pipe."""
        path = self.folder / "fp32.onnx"
        path.write_bytes(self.source)
        return path

    def _ranges(self, method: Calibration) -> Ranges:
        ranges = Ranges(self.folder / f"{method}.json", method)
        if not ranges.path.exists():
            self._call(fit_ranges, self.source, self.questions.fitted, ranges)
        return ranges

    @cached_property
    def _expected(self) -> _Answers:
        found: _Answers = self._call(_ask, self.source, self.questions.asked, self._edge_cases)
        return found

    @cached_property
    def _edge_cases(self) -> Arrays:
        """The edge cases for which the float32 model's outputs are finite."""
        cases = self.questions.edge_cases
        if not cases:
            return {}
        answers = self._call(_ask, self.source, cases, {}).asked
        finite_N = np.all(
            [np.isfinite(a).reshape(len(a), -1).all(axis=1) for a in answers.values()], axis=0
        )
        return {n: a[finite_N] for n, a in cases.items()} if finite_N.any() else {}

    @property
    def _compared(self) -> list[TensorSpec]:
        return [spec for spec in self.outputs if spec.kind != "probabilities"]

    def _call(
        self, function: Callable[..., Any], *arguments: Any, worker: Worker | None = None
    ) -> Any:
        return (worker or self.worker).call(function, *arguments, timeout_s=CONVERSION_S)


def summary_of(figures: RepairFigures) -> RepairSummary | None:
    """The manifest's summary of a repair; None if no trial passed."""
    if figures.chosen is None:
        return None
    trial = figures.trials[figures.chosen]
    return RepairSummary(
        layers=len(figures.layers),
        kept=trial.kept,
        calibration=trial.calibration,
        trials=len(figures.trials),
    )


def failure_of(figures: RepairFigures) -> str:
    """Explain in the manifest why a search found no file."""
    if not figures.trials:
        return "it cannot be repaired: no layer can be kept in float32 separately from the others"
    nearest = max(figures.trials, key=lambda trial: trial.sqnr_db)
    return (
        f"{len(figures.trials)} trials did not repair it, with up to "
        f"{max(len(trial.kept) for trial in figures.trials)} of {len(figures.layers)} layers kept "
        f"in float32; the best trial keeps {len(nearest.kept)}: "
        f"{nearest.complaint or 'passed, but it is the file that failed the gate'}"
    )


def refusal_of(figures: RepairFigures, judged: int) -> str:
    """Explain in the manifest what to do if the gate refuses a file that a search found.

    Args:
        figures: The search's figures.
        judged: How many samples the gate ran.
    """
    return (
        f"it passed on {figures.samples:,} calibration samples, but not on the gate's {judged:,} "
        "samples: use more calibration samples (--calibration)"
    )


def _nearest(trials: list[Trial]) -> int:
    """The position of the trial with the least error."""
    return max(range(len(trials)), key=lambda i: trials[i].sqnr_db)


def _rank_of(trial: Trial) -> tuple[bool, float]:
    """The larger, the better: sure trials rank by the layers kept, the others by their error."""
    return trial.surely, -len(trial.kept) if trial.surely else trial.sqnr_db


def _trial(
    kept: tuple[str, ...],
    method: Calibration | None,
    found: _Answers,
    compared: dict[str, Comparison],
    complaint: str | None,
) -> Trial:
    accuracies = [row.labels.accuracy for row in compared.values() if row.labels]
    return Trial(
        kept=kept,
        calibration=method,
        sqnr_db=min((row.sqnr_db for row in compared.values()), default=math.inf),
        scaled_error=max((row.scaled_error for row in compared.values()), default=0),
        accuracy=accuracies[0] if accuracies else None,
        size_bytes=len(found.content),
        samples_per_s=found.samples_per_s,
        complaint=complaint,
    )


def _expected(shares: list[float], allowed: Tolerance) -> int:
    """How many of the worst layers must be kept if errors add up; half of them if unknown.

    Args:
        shares: The layers' error powers over the outputs' power, the largest first.
        allowed: The tolerance, whose SQNR bounds the sum of the other layers' shares.
    """
    if allowed.sqnr_db is None or not math.isfinite(sum(shares)):
        return len(shares) // 2
    rest = np.cumsum(shares[::-1])[::-1]
    return int(np.count_nonzero(rest > 10 ** (-allowed.sqnr_db / 10)))


def _noise(found: Array, expected: Array) -> float:
    """The error's power over that of the expected outputs; infinite if a value is not finite."""
    error, signal = _powers(found, expected)
    noise = float(error.sum() / signal.sum()) if signal.any() else float(error.any())
    return noise if math.isfinite(noise) else math.inf


def _powers(found: Array, expected: Array) -> tuple[Array, Array]:
    """The powers of the error and of the expected outputs of each sample: float64 [N] both."""
    mine, theirs = (a.astype(np.float64).reshape(len(a), -1) for a in (found, expected))
    with np.errstate(invalid="ignore", over="ignore"):
        return np.square(mine - theirs).sum(axis=1), np.square(theirs).sum(axis=1)


def _chance_db(found: Array, expected: Array) -> float:
    """How much lower the SQNR of other samples may be: three standard deviations of the ratio.

    To first order, the variance of a ratio of two sums over N samples is the sum of
    (error_i - ratio * signal_i)^2, divided by the square of the signals' sum.
    """
    error_N, signal_N = _powers(found, expected)
    ratio = _noise(found, expected)
    if not 0 < ratio < math.inf:
        return 0.0
    deviation = math.sqrt(np.square(error_N - ratio * signal_N).sum()) / signal_N.sum()
    return 10 * math.log10(1 + STANDARD_DEVIATIONS * deviation / ratio)


def _growth(values: int, further: int) -> float:
    """How much the maximum grows with more values: for N normal ones it is about sqrt(2 ln N)."""
    return math.sqrt(max(1.0, math.log(max(further, 2)) / math.log(max(values, 2))))


# The functions below run in a worker.


def _convert(source: Path, kept: list[str], ranges: Ranges | None) -> bytes:
    model = onnx.load(source)
    converted = to_fp16(model, kept) if ranges is None else to_int8(model, None, kept, ranges)
    return bytes(converted.SerializeToString(deterministic=True))


def _convert_and_run(source: Path, kept: list[str], ranges: Ranges | None, asked: Arrays) -> Arrays:
    return run_batched(OnnxModel(_convert(source, kept, ranges), "cpu"), asked, BATCH)


def _convert_and_ask(
    source: Path, kept: list[str], ranges: Ranges | None, asked: Arrays, edge_cases: Arrays
) -> _Answers:
    return _ask(_convert(source, kept, ranges), asked, edge_cases)


def _ask(content: bytes, asked: Arrays, edge_cases: Arrays) -> _Answers:
    model = OnnxModel(content, "cpu")
    count = len(next(iter(asked.values())))
    model({name: array[:BATCH] for name, array in asked.items()})  # the first run is slower
    started = time.perf_counter()
    answers = run_batched(model, asked, BATCH)
    seconds = time.perf_counter() - started
    return _Answers(content, answers, model(edge_cases) if edge_cases else {}, count / seconds)
