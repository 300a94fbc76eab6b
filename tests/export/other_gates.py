"""Compares which faults of the mutation test pass the checks of other tools.

    python -m tests.export.other_gates artifacts/bundles/cnn artifacts/bundles/mlp --seeds 10

Each fault is planted in a bundle's ONNX file, and each gate checks whether the file still computes
the same as the checkpoint. The other gates get two images of random pixels and these tolerances,
which are their defaults except for numpy's atol:

numpy.allclose
    ``numpy.allclose(onnx, fp32, atol=1e-5)`` of the logits; rtol is numpy's 1e-5.
torch.onnx.testing.assert_onnx_program
    PyTorch's own check that passes or fails, of all outputs: it asserts by
    ``torch.testing.assert_close``, whose float32 defaults are rtol 1.3e-6 and atol 1e-5.
torch.onnx.export(verify=True)
    It never fails but logs a warning: where ``torch.onnx.verification.verify_onnx_program``, which
    only measures, finds an absolute difference of 5e-3 or a relative one of 0.1. "caught" here
    means that it would have warned.
Polygraphy SimpleCompareFunc()
    ``Comparator.compare_accuracy`` with its default function (each value within atol 1e-5 or rtol
    1e-5) of ONNX Runtime's outputs and eager's.

Shape suffixes: N images, H and W pixels.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnxscript import ir
from torch.onnx.testing import assert_onnx_program
from torch.onnx.verification import verify_onnx_program

from export.bundle.metrics import Array
from export.bundle.session import OnnxModel
from export.bundle.store import Bundle
from export.check import Origin, rebuild
from export.parity.mutants import Mutant, MutationTest, make_mutants
from export.parity.reference import eager_predict
from export.parity.run import ParityRun
from export.provenance.forms import find_folds
from export.provenance.state import state_arrays

try:
    from polygraphy.backend.onnxrt import OnnxrtRunner, SessionFromOnnx
    from polygraphy.comparator import Comparator, IterationResult, RunResults
    from polygraphy.logger import G_LOGGER
except ModuleNotFoundError as missing:
    raise ModuleNotFoundError(
        f"the comparison with other gates needs {missing.name}: "
        "pip install -c constraints.txt -e '.[export,dev]'"
    ) from missing

IMAGES = 2
HONEST = "none (the honest file)"
# Literals in torch.onnx.export's code, which cannot be imported.
VERIFY_ABSOLUTE, VERIFY_RELATIVE = 5e-3, 1e-1

Passes = Callable[[Array], bool]
"""A gate for one file: does the file pass with these uint8 [N, H, W] images?"""


@dataclass(frozen=True)
class Outcome:
    """Results of one fault in all gates.

    Attributes:
        fault: Its name, or ``HONEST``.
        planted: Description of the change.
        not_applicable: Why the model cannot have the fault; else None.
        caught: By gate, number of draws of random images that revealed the fault.
        caught_by: Our checks that caught it.
    """

    fault: str
    planted: str
    not_applicable: str | None
    caught: dict[str, int]
    caught_by: tuple[str, ...]


def compare_gates(bundle: Bundle, proof: ParityRun, seeds: Sequence[int]) -> list[Outcome]:
    """Run every gate on every fault, the honest file first.

    Args:
        bundle: The bundle whose ONNX file is changed, in memory.
        proof: From ``rebuild``.
        seeds: Seeds of the random images, one for each draw.
    """
    model = onnx.load(bundle.model_path("onnx"))
    allowed = bundle.manifest.tolerance("cpu", "onnx")
    checks = MutationTest(
        proof.reference,
        proof.translation.program,
        proof.inside,
        allowed,
        local=proof.local(model),
    )
    folds, state = find_folds(proof.program), state_arrays(proof.subject.module)
    draws = [random_images(proof, seed) for seed in seeds]
    return [
        _outcome(planted, proof, checks, draws)
        for planted in [Mutant(HONEST, "", model), *make_mutants(model, folds, state)]
    ]


def random_images(proof: ParityRun, seed: int) -> Array:
    """Two images of uniformly random pixels, uint8 [N, H, W]."""
    (spec,) = proof.subject.inputs
    return np.random.default_rng(seed).integers(0, 256, (IMAGES, *spec.shape[1:]), np.uint8)


def _outcome(
    planted: Mutant, proof: ParityRun, checks: MutationTest, draws: list[Array]
) -> Outcome:
    found = checks.run(planted)
    caught = {}
    if planted.model is not None:
        for name, gate in GATES.items():
            passes = gate(planted.model, proof)
            caught[name] = sum(not passes(images_NHW) for images_NHW in draws)
    return Outcome(planted.name, found.planted, found.not_applicable, caught, found.caught_by)


def _allclose(model: onnx.ModelProto, proof: ParityRun) -> Passes:
    exported, eager = OnnxModel(model.SerializeToString(), "cpu"), eager_predict(proof.subject)
    (name,) = (spec.name for spec in proof.subject.inputs)

    def passes(images_NHW: Array) -> bool:
        found, expected = exported({name: images_NHW}), eager({name: images_NHW})
        return bool(np.allclose(found["logits"], expected["logits"], atol=1e-5))

    return passes


def _torch_program(model: onnx.ModelProto, proof: ParityRun) -> torch.onnx.ONNXProgram:
    program = torch.onnx.ONNXProgram(ir.serde.deserialize_model(model), proof.program)
    # By default it requests CUDA if ONNX Runtime was built with it, even without a GPU.
    program.initialize_inference_session(
        lambda content: onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    )
    return program


def _assert_onnx_program(model: onnx.ModelProto, proof: ParityRun) -> Passes:
    program = _torch_program(model, proof)

    def passes(images_NHW: Array) -> bool:
        try:
            # strategy=None: the way of capturing the program does not matter here.
            assert_onnx_program(program, args=(torch.from_numpy(images_NHW),), strategy=None)
        except AssertionError:
            return False
        return True

    return passes


def _verify_true(model: onnx.ModelProto, proof: ParityRun) -> Passes:
    program = _torch_program(model, proof)

    def passes(images_NHW: Array) -> bool:
        infos = verify_onnx_program(program, args=(torch.from_numpy(images_NHW),))
        # As in torch.onnx.export: a difference of NaN is not ">=" and gives no warning.
        return not any(
            info.max_abs_diff >= VERIFY_ABSOLUTE or info.max_rel_diff >= VERIFY_RELATIVE
            for info in infos
        )

    return passes


def _polygraphy(model: onnx.ModelProto, proof: ParityRun) -> Passes:
    runner = OnnxrtRunner(SessionFromOnnx(model.SerializeToString()), name="onnxrt")
    eager = eager_predict(proof.subject)
    (name,) = (spec.name for spec in proof.subject.inputs)

    def passes(images_NHW: Array) -> bool:
        feed = {name: images_NHW}
        with G_LOGGER.verbosity(G_LOGGER.CRITICAL):
            # The baseline comes second: Polygraphy's rtol is a share of the second run.
            results = Comparator.run([runner], data_loader=[feed])
            results.extend(RunResults([("eager", [IterationResult(eager(feed))])]))
            return bool(Comparator.compare_accuracy(results))

    return passes


GATES: dict[str, Callable[[onnx.ModelProto, ParityRun], Passes]] = {
    "numpy.allclose": _allclose,
    "torch.onnx.testing.assert_onnx_program": _assert_onnx_program,
    "torch.onnx.export(verify=True)": _verify_true,
    "Polygraphy SimpleCompareFunc()": _polygraphy,
}


def markdown(name: str, outcomes: Sequence[Outcome], draws: int) -> str:
    """The table of one bundle, followed by the number of faults that each gate missed."""
    head = ["fault", *GATES, "this gate: caught by"]
    rows = [head, ["---"] * len(head)]
    rows += [[outcome.fault, *_cells(outcome, draws)] for outcome in outcomes]
    lines = [f"**{name}**: {IMAGES} random images, {draws} draw(s)", ""]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([*lines, "", *_summary(name, outcomes, draws)])


def _cells(outcome: Outcome, draws: int) -> list[str]:
    if outcome.not_applicable is not None:
        return [f"not applicable: {outcome.not_applicable}", *[""] * len(GATES)]
    honest = outcome.fault == HONEST
    good, bad = ("passes", "FALSE ALARM") if honest else ("PASSES", "caught")

    def cell(caught: int) -> str:
        count = "" if draws == 1 else f" {caught or draws}/{draws}"
        return (bad if caught else good) + count

    cells = [cell(caught) for caught in outcome.caught.values()]
    ours = ", ".join(outcome.caught_by)
    if honest:
        return [*cells, f"FALSE ALARM: {ours}" if ours else "passes"]
    return [*cells, ours or "PASSES"]


def _summary(name: str, outcomes: Sequence[Outcome], draws: int) -> Iterator[str]:
    faults = [o for o in outcomes if o.fault != HONEST and o.not_applicable is None]
    yield f"{name}: of {len(faults)} applicable faults let through (always / in some draws only):"
    for gate in GATES:
        always = sum(o.caught[gate] == 0 for o in faults)
        sometimes = sum(0 < o.caught[gate] < draws for o in faults)
        yield f"- {gate}: {always} / {sometimes}"
    yield f"- this gate: {sum(not o.caught_by for o in faults)}"


def main(argv: Sequence[str] | None = None) -> int:
    """Print the tables; the status is 0."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.export.other_gates",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("bundles", nargs="+", type=Path, metavar="BUNDLE")
    parser.add_argument("--data-dir", type=Path, help="the four IDX files; default: as training's")
    parser.add_argument("--seed", type=int, default=0, help="of the first draw")
    parser.add_argument("--seeds", type=int, default=1, help="draws, one seed each")
    parser.add_argument("--json", type=Path, help="write all counts there too")
    arguments = parser.parse_args(argv)
    origin = Origin(data_dir=arguments.data_dir)
    seeds = range(arguments.seed, arguments.seed + arguments.seeds)
    written: dict[str, Any] = {"images": IMAGES, "seeds": list(seeds), "bundles": {}}
    for folder in arguments.bundles:
        bundle = Bundle.open(folder)
        outcomes = compare_gates(bundle, rebuild(bundle, origin), seeds)
        print(markdown(folder.name, outcomes, len(seeds)), end="\n\n", flush=True)  # noqa: T201
        written["bundles"][folder.name] = [vars(outcome) for outcome in outcomes]
    if arguments.json:
        arguments.json.write_text(json.dumps(written, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
