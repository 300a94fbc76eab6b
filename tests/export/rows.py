"""Rows of figures for a function in place of a file, without the processes of a whole run."""

from export.bundle.golden import Predict
from export.parity.candidates import FEW_RUNS, run_filled
from export.parity.measure import eager_answers, measure_row
from export.parity.reference import Reference
from export.parity.schema import Row


def few_rows(predict: Predict, block: Reference) -> list[Row]:
    """Compare a function's answers at a few batch sizes with the reference's."""
    rows = []
    for batch_size, threads in FEW_RUNS:
        baseline = eager_answers(block, len(block), batch_size, threads)
        answers = run_filled(predict, block.inputs, batch_size)
        rows.append(measure_row("onnx", batch_size, answers, baseline, block, None))
    return rows
