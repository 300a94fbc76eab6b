"""Measure every variant, at every batch size, on real samples, against two references.

The references are the checkpoint's outputs in float64 (the fp64 reference), and its outputs in
float32 at the same batch size (the fp32 baseline).

This module only measures; ``judge`` judges the figures, so that they can be judged again.
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from export.bundle.golden import Predict, head_error
from export.bundle.manifest import TensorSpec
from export.bundle.metrics import (
    Array,
    Arrays,
    channel_rms,
    channelled,
    compare,
    scaled_difference,
    worst_ratio,
)
from export.model.domains import LARGEST, edge_values, shuffle_values
from export.model.under_test import ModelUnderTest
from export.parity.candidates import Candidate, run_filled
from export.parity.reference import Reference, eager_predict
from export.parity.schema import ALONE, EDGE_CASES, Row, WorstSample
from export.progress import Progress
from export.worker import in_one_line

# Networks with more work per sample run fewer samples at the other batch sizes, and no batches of
# 1,024: the first run judges the outputs of all samples, the others test only the batch size.
NARROW, NARROW_LEAST = 1_000, 64
NARROW_FLOP, LARGEST_FLOP = 2e10, 5e10
ALWAYS_RUN = 256
FLOAT32 = {"onnx", "torchscript", "torchscript-frozen", "pt2"}
NEIGHBOURHOOD = 64
PROBES = 4


def operations_per_sample(subject: ModelUnderTest) -> float:
    """Floating-point operations of products, by PyTorch's count: the same on each machine."""
    example = subject.example
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        subject.module(*example)
    return max(counter.get_total_flops(), 1) / len(example[0])


def narrow_samples(operations: float) -> int:
    """The number of samples that batch sizes other than the first run over."""
    return int(min(NARROW, max(NARROW_LEAST, NARROW_FLOP / operations)))


def affordable(runs: Sequence[tuple[int, int]], operations: float) -> list[tuple[int, int]]:
    """The runs without those whose batch is too much work; up to 256 samples is always allowed."""
    return [
        (size, threads)
        for size, threads in runs
        if size <= ALWAYS_RUN or size * operations <= LARGEST_FLOP
    ]


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Set PyTorch's number of threads while the block runs: its sums depend on it."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def in_lanes(
    candidates: Mapping[str, Candidate],
    ask: Callable[[Candidate], Any],
    meanwhile: Callable[[], Any] = lambda: None,
    *,
    at_once: bool = True,
) -> tuple[dict[str, Any], dict[str, Exception], Any]:
    """Call a function for each candidate: sequentially per process, with the processes in parallel.

    Args:
        candidates: The candidates by variant.
        ask: The function to call for each.
        meanwhile: A function that this process calls at the same time.
        at_once: If False, all run sequentially, this process last. Threads that wait for each other
            are many times slower while other processes occupy the cores.

    Returns:
        The results and the errors by variant, and the result of ``meanwhile``.
    """
    with ThreadPoolExecutor(1) as onnx_lane, ThreadPoolExecutor(1) as torch_lane:
        asked = {}
        for variant, candidate in candidates.items():
            lane = torch_lane if candidate.file.needs_torch and at_once else onnx_lane
            asked[variant] = lane.submit(ask, candidate)
        if not at_once:
            wait(asked.values())
        own = meanwhile()
    answers: dict[str, Any] = {}
    errors: dict[str, Exception] = {}
    for variant, future in asked.items():
        try:
            answers[variant] = future.result()
        except Exception as error:  # noqa: BLE001 - it fails the variant
            errors[variant] = error
    return answers, errors, own


def measure_rows(
    candidates: Mapping[str, Candidate],
    reference: Reference,
    runs: Sequence[tuple[int, int]],
    narrow: int,
    baseline: Callable[[Reference, int, int, int], Arrays],
    progress: Progress,
) -> tuple[list[Row], dict[str, str]]:
    """Compare each candidate's outputs at each batch size with the reference's.

    Args:
        candidates: The candidates by variant.
        reference: Samples and the checkpoint's outputs.
        runs: Batch sizes and threads; the first runs over every sample.
        narrow: How many samples the other runs use, unless one batch takes more.
        baseline: Returns the result of ``eager_answers``, possibly cached.
        progress: Shows each run.

    Returns:
        The rows; and what happened to candidates that could not be run, which have no rows.
    """
    rows: list[Row] = []
    broken: dict[str, str] = {}
    widest: dict[str, Arrays] = {}
    for batch_size, threads in runs:
        words = [
            reference.block,
            f"batches of {batch_size}",
            f"{threads} threads" if threads > 1 else "",
        ]
        progress.step(", ".join(filter(None, words)))
        everything = (batch_size, threads) == runs[0]
        count = len(reference) if everything else min(max(narrow, batch_size), len(reference))
        run = (count, batch_size, threads)
        answers, errors, fp32 = in_lanes(
            {v: candidate for v, candidate in candidates.items() if v not in broken},
            functools.partial(_answers, run=run),
            functools.partial(baseline, reference, *run),
            at_once=threads == 1,
        )
        for variant, error in errors.items():
            broken[variant] = f"fails in batches of {batch_size}: {in_one_line(error)}"
        for variant, found in answers.items():
            row = measure_row(variant, batch_size, found, fp32, reference, widest.get(variant))
            rows.append(row.model_copy(update={"threads": threads}))
            widest.setdefault(variant, found)
    return [row for row in rows if row.variant not in broken], broken


def _answers(candidate: Candidate, run: tuple[int, int, int]) -> Arrays:
    return candidate.answers(*run)


def eager_answers(reference: Reference, count: int, batch_size: int, threads: int) -> Arrays:
    """The fp32 baseline: the checkpoint's outputs, which depend on all three numbers."""
    with torch_threads(threads):
        predict = eager_predict(reference.subject)
        return run_filled(predict, reference.first(count), batch_size)


def measure_row(
    variant: str,
    batch_size: int,
    answers: Arrays,
    fp32: Arrays,
    reference: Reference,
    widest: Arrays | None,
) -> Row:
    """The figures of one variant's outputs at one batch size.

    Args:
        variant: The variant's name.
        batch_size: The batch size of the outputs.
        answers: Outputs by name, for the first samples.
        fp32: The fp32 baseline's outputs, at the same batch size.
        reference: The fp64 reference and the targets.
        widest: The variant's outputs in the first run, if they are to be compared.
    """
    count = len(next(iter(fp32.values())))
    edge = reference.block == EDGE_CASES
    return Row(
        block=reference.block,
        variant=variant,
        batch_size=batch_size,
        samples=count,
        outputs={
            spec.name: compare(
                answers[spec.name],
                fp32[spec.name],
                reference.fp64[spec.name][:count],
                # A made-up input has no label, and no scale was fitted to it.
                logits=spec.kind == "logits" and not edge,
                targets_N=reference.targets[:count],
                edge_cases=count if edge else 0,
                floor=reference.floors.get(spec.name) if variant in FLOAT32 else None,
            )
            for spec in judged_outputs(reference)
        },
        batch_invariance=None if widest is None else _largest_difference(answers, widest, count),
        softmax_error=head_error(answers, reference.subject.outputs),
    )


def judged_outputs(reference: Reference) -> list[TensorSpec]:
    """The outputs that are compared; probabilities are checked against their own logits instead."""
    return [spec for spec in reference.subject.outputs if spec.kind != "probabilities"]


def measure_cross_sample_leakage(predict: Predict, reference: Reference) -> dict[str, float]:
    """Measure how much an output changes with the other samples in its batch.

    A few samples each take the first place in a batch of 64: with real samples, with the largest
    possible values, with noise, and alone in a batch of one.

    Returns:
        For each situation, the largest scaled difference to the output among real samples.
    """
    first = reference.first(NARROW)
    generator = np.random.default_rng(0)
    situations: dict[str, Callable[[TensorSpec, Array], Array]] = {
        "beside the largest values": lambda spec, a: np.repeat(
            edge_values(spec, a)[LARGEST][None], len(a), axis=0
        ),
        "beside noise": lambda spec, a: shuffle_values(spec, a, generator),
        ALONE: lambda _, a: a[:0],
    }
    usual = {name: np.resize(a, (NEIGHBOURHOOD, *a.shape[1:])) for name, a in first.items()}
    worst = dict.fromkeys(situations, 0.0)
    for probe in range(min(PROBES, len(reference))):
        own = {name: array[-1 - probe :][:1] for name, array in first.items()}
        among = predict({n: np.concatenate([own[n], a[1:]]) for n, a in usual.items()})
        for situation, others in situations.items():
            batch = {
                spec.name: np.concatenate([own[spec.name], others(spec, usual[spec.name][1:])])
                for spec in reference.subject.inputs
            }
            difference = _largest_difference(predict(batch), among, 1)
            worst[situation] = max(worst[situation], difference)
    return worst


def measure_variation(reference: Reference) -> dict[str, float]:
    """Measure how much each output varies over the samples, in units of float32's floor.

    It is the RMS distance from the mean, for the channel that varies most: the error of a file that
    returns the same output for all samples. Outputs without a floor are left out, and so are
    integers and booleans, which must be equal.
    """
    variation = {}
    for spec in judged_outputs(reference):
        if spec.name in reference.floors and spec.datatype.startswith("FP"):
            values = channelled(reference.fp64[spec.name])
            distance = np.abs(values - values.mean(axis=0))
            floor = reference.floors[spec.name]
            variation[spec.name] = worst_ratio(channel_rms(distance), floor.rms_C)
    return variation


def count_distinct(reference: Reference) -> int:
    """The number of distinct samples."""
    samples = zip(*reference.inputs.values(), strict=True)
    return len({b"".join(part.tobytes() for part in sample) for sample in samples})


def worst_samples(rows: Sequence[Row], reference: Reference) -> tuple[WorstSample, ...]:
    """The samples with the largest errors at the worst batch size, for display.

    Args:
        rows: A variant's rows of every block.
        reference: The reference of the proof's own samples; other blocks are not shown.
    """
    rows = [row for row in rows if not row.block]
    spec = judged_outputs(reference)[0]
    row = max(rows, key=lambda row: row.outputs[spec.name].scaled_error)
    label_N = reference.fp64[spec.name].argmax(axis=1) if spec.kind == "logits" else None
    shown = []
    for position in row.outputs[spec.name].worst:
        pictures = {
            name: array[position].tolist()
            for name, array in reference.inputs.items()
            if array.dtype == np.uint8 and array.ndim == 3  # noqa: PLR2004 - N, H, W
        }
        shown.append(
            WorstSample(
                description=f"sample {position}",
                eager_label=None if label_N is None else int(label_N[position]),
                images=pictures,
            )
        )
    return tuple(shown)


def _largest_difference(answers: Arrays, others: Arrays, count: int) -> float:
    return max(scaled_difference(answers[n][:count], others[n][:count]) for n in answers)
