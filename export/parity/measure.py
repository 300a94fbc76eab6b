"""The gate: every variant, at every batch size, on real samples, against truth and yardstick.

It measures and does not judge (``judge`` does), so that figures can be judged again.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from tqdm import tqdm

from export.bundle.golden import Predict, head_error, run_batched
from export.bundle.manifest import TensorSpec
from export.bundle.metrics import Array, Arrays, compare, scaled_difference
from export.parity.reference import Reference, extremes_of
from export.parity.schema import ALONE, Row, WorstSample

# One, odd ones, powers of two and their neighbours (kernels switch there). The largest runs over
# every sample, the others over the first NARROW, which leaves a remainder for most.
BATCH_SIZES = (256, 128, 64, 33, 32, 31, 16, 8, 7, 3, 2, 1)
NARROW = 1_000
NEIGHBOURHOOD = 64
PROBES = 4


def measure_rows(candidates: dict[str, Predict], reference: Reference) -> list[Row]:
    """Each candidate's answers at each batch size, compared with the reference's.

    Args:
        candidates: The variants, each as a function that runs it.
        reference: Samples and the checkpoint's answers.
    """
    return list(
        tqdm(
            _rows(candidates, reference),
            desc="parity",
            total=len(candidates) * len(BATCH_SIZES),
            unit="row",
            leave=False,
            disable=None,
        )
    )


def _rows(candidates: dict[str, Predict], reference: Reference) -> Iterator[Row]:
    widest: dict[str, Arrays] = {}
    for batch_size in BATCH_SIZES:
        wide = batch_size == BATCH_SIZES[0]
        count = len(reference) if wide else min(NARROW, len(reference))
        eager = reference.eager(count, batch_size)
        for variant, predict in candidates.items():
            answers = run_batched(predict, reference.first(count), batch_size)
            yield measure_row(variant, batch_size, answers, eager, reference, widest.get(variant))
            widest.setdefault(variant, answers)


def measure_row(
    variant: str,
    batch_size: int,
    answers: Arrays,
    eager: Arrays,
    reference: Reference,
    widest: Arrays | None,
) -> Row:
    """One variant's answers at one batch size.

    Args:
        variant: Its name.
        batch_size: At which the answers were given.
        answers: Outputs by name, for the first samples.
        eager: The yardstick's, at the same batch size.
        reference: Truth and targets.
        widest: The variant's answers in the largest batches, if they are to be compared.
    """
    count = len(next(iter(eager.values())))
    return Row(
        variant=variant,
        batch_size=batch_size,
        samples=count,
        outputs={
            spec.name: compare(
                answers[spec.name],
                eager[spec.name],
                reference.truth[spec.name][:count],
                logits=spec.kind == "logits",
                targets_N=reference.targets[:count],
                corners=len(reference.corners),
            )
            for spec in judged_outputs(reference)
        },
        batch_invariance=None if widest is None else _largest_difference(answers, widest, count),
        softmax_error=head_error(answers, reference.subject.outputs),
    )


def judged_outputs(reference: Reference) -> list[TensorSpec]:
    """The outputs that are compared; probabilities are held against their own logits instead."""
    return [spec for spec in reference.subject.outputs if spec.kind != "probabilities"]


def measure_neighbours(predict: Predict, reference: Reference) -> dict[str, float]:
    """How much an answer changes with what else is in its batch.

    A few samples each take the first place in a batch of 64: among real samples, beside the
    largest values there can be, beside noise, and alone.

    Returns:
        Situation to the largest scaled difference to the answer among real samples.
    """
    first = reference.first(NARROW)
    generator = np.random.default_rng(0)
    situations: dict[str, Callable[[Array], Array]] = {
        "beside the largest values": lambda a: np.repeat(extremes_of(a)[1:], len(a), axis=0),
        "beside noise": lambda a: generator.permuted(a.reshape(len(a), -1), axis=1).reshape(
            a.shape
        ),
        ALONE: lambda a: a[:0],
    }
    usual = {name: np.resize(a, (NEIGHBOURHOOD, *a.shape[1:])) for name, a in first.items()}
    worst = dict.fromkeys(situations, 0.0)
    for probe in range(min(PROBES, len(reference))):
        own = {name: array[-1 - probe :][:1] for name, array in first.items()}
        among = predict({n: np.concatenate([own[n], a[1:]]) for n, a in usual.items()})
        for situation, others in situations.items():
            batch = {n: np.concatenate([own[n], others(a[1:])]) for n, a in usual.items()}
            difference = _largest_difference(predict(batch), among, 1)
            worst[situation] = max(worst[situation], difference)
    return worst


def worst_samples(rows: Sequence[Row], reference: Reference) -> tuple[WorstSample, ...]:
    """The samples with the largest errors at the worst batch size, as a person can look at them."""
    spec = judged_outputs(reference)[0]
    row = max(rows, key=lambda row: row.outputs[spec.name].scaled_error)
    label_N = reference.truth[spec.name].argmax(axis=1) if spec.kind == "logits" else None
    names = [*reference.corners, *(f"sample {i}" for i in range(len(reference.subject.samples)))]
    shown = []
    for position in row.outputs[spec.name].worst:
        pictures = {
            name: array[position].tolist()
            for name, array in reference.inputs.items()
            if array.dtype == np.uint8 and array.ndim == 3  # noqa: PLR2004 - N, H, W
        }
        shown.append(
            WorstSample(
                description=names[position],
                eager_label=None if label_N is None else int(label_N[position]),
                images=pictures,
            )
        )
    return tuple(shown)


def _largest_difference(answers: Arrays, others: Arrays, count: int) -> float:
    return max(scaled_difference(answers[n][:count], others[n][:count]) for n in answers)
