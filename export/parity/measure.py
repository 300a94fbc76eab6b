"""The gate: every variant, at every batch size, on real samples, against truth and yardstick.

It measures and does not judge (``judge`` does), so that figures can be judged again.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from tqdm import tqdm

from export.bundle.golden import Predict, head_error, run_batched
from export.bundle.manifest import TensorSpec
from export.bundle.metrics import Array, Arrays, compare, scaled_difference
from export.model.domains import LARGEST, edge_values, shuffle_values
from export.parity.reference import Reference
from export.parity.schema import ALONE, EDGE_CASES, Row, WorstSample

# One, odd ones, powers of two and their neighbours (kernels switch there). The largest runs over
# every sample, the others over the first NARROW, which leaves a remainder for most.
BATCH_SIZES = (256, 128, 64, 33, 32, 31, 16, 8, 7, 3, 2, 1)
NARROW = 1_000
# Of further blocks: whether an answer depends on the batch size is asked of the first.
FEW_BATCH_SIZES = (64, 7, 1)
NEIGHBOURHOOD = 64
PROBES = 4


def measure_rows(
    candidates: dict[str, Predict],
    reference: Reference,
    batch_sizes: Sequence[int] = BATCH_SIZES,
) -> list[Row]:
    """Each candidate's answers at each batch size, compared with the reference's.

    Args:
        candidates: The variants, each as a function that runs it.
        reference: Samples and the checkpoint's answers.
        batch_sizes: The largest first, which runs over every sample.
    """
    return list(
        tqdm(
            _rows(candidates, reference, batch_sizes),
            desc=" ".join(filter(None, ("parity", reference.block))),
            total=len(candidates) * len(batch_sizes),
            unit="row",
            leave=False,
            disable=None,
        )
    )


def _rows(
    candidates: dict[str, Predict], reference: Reference, batch_sizes: Sequence[int]
) -> Iterator[Row]:
    widest: dict[str, Arrays] = {}
    for batch_size in batch_sizes:
        wide = batch_size == batch_sizes[0]
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
    edge = reference.block == EDGE_CASES
    return Row(
        block=reference.block,
        variant=variant,
        batch_size=batch_size,
        samples=count,
        outputs={
            spec.name: compare(
                answers[spec.name],
                eager[spec.name],
                reference.truth[spec.name][:count],
                # A made-up input has no label, and no scale was fitted to it.
                logits=spec.kind == "logits" and not edge,
                targets_N=reference.targets[:count],
                corners=count if edge else 0,
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


def worst_samples(rows: Sequence[Row], reference: Reference) -> tuple[WorstSample, ...]:
    """The samples with the largest errors at the worst batch size, as a person can look at them.

    Args:
        rows: A variant's, of every block.
        reference: Of the proof's own samples; those of other blocks are not shown.
    """
    rows = [row for row in rows if not row.block]
    spec = judged_outputs(reference)[0]
    row = max(rows, key=lambda row: row.outputs[spec.name].scaled_error)
    label_N = reference.truth[spec.name].argmax(axis=1) if spec.kind == "logits" else None
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
