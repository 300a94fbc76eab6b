"""Run the whole gate: measure all figures of a subject and the files made from it."""

import dataclasses
import itertools
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import torch

from export.bundle.manifest import BundleError
from export.bundle.metrics import Arrays, Floor
from export.bundle.session import DeviceUnavailableError
from export.bundle.tolerances import TOLERANCES, Device, Tolerance, tolerance_for
from export.convert.onnx_export import OnnxExport, translate
from export.convert.pt2 import export_program
from export.mnist.feature_maps import (
    FirstLayer,
    NoFirstLayerError,
    find_first_layer,
    measure_first_layer,
)
from export.model.under_test import ModelUnderTest
from export.parity.adequacy import measure_coverage
from export.parity.candidates import (
    FEW_RUNS,
    Candidate,
    ModelFile,
    Setting,
    Workers,
    choose_files,
    store_samples,
)
from export.parity.intermediates import Compared, Inside
from export.parity.judge import is_inexact
from export.parity.limits import LocalCheck, derived, is_float32, with_local
from export.parity.measure import (
    affordable,
    count_distinct,
    eager_answers,
    in_lanes,
    measure_cross_sample_leakage,
    measure_rows,
    measure_variation,
    narrow_samples,
    operations_per_sample,
    torch_threads,
    worst_samples,
)
from export.parity.mutants import Mutant, MutationTest, make_mutants, make_reduced_mutants
from export.parity.noise import measure_floor
from export.parity.reference import Reference, make_edge_reference, make_reference
from export.parity.saturation import bound_saturation
from export.parity.schema import (
    EDGE_CASES,
    Coverage,
    FeatureFigures,
    FileFigures,
    MutantResult,
    ParityFigures,
    Row,
)
from export.parity.structure import structure_problems
from export.progress import Progress
from export.provenance.figures import WeightFigures
from export.provenance.forms import find_folds
from export.provenance.reduced import check_reduced
from export.provenance.state import check_state, program_arrays, state_arrays
from export.provenance.trace import check_frozen, check_weights
from export.worker import DiedError, in_one_line
from training.provenance import versions

# Enough to show errors of sums, few enough that all values inside the graph fit into memory.
INSIDE_SAMPLES = 64
LOCAL_SAMPLES = 16  # each of them is computed five times in float64
FEATURE_SAMPLES = 256
AT_ONCE = 2  # mutants run at once: each is a copy of the model
REDUCED = ("onnx-fp16", "onnx-int8")


@dataclass(frozen=True)
class ParityRun:
    """A subject, its exported program, and results that the gate needs, each computed once."""

    subject: ModelUnderTest
    program: torch.export.ExportedProgram
    translation: OnnxExport

    @classmethod
    def of(
        cls, subject: ModelUnderTest, program: torch.export.ExportedProgram | None = None
    ) -> "ParityRun":
        """Export a subject, unless its program is given, and translate it."""
        program = program or export_program(subject)
        return cls(subject, program, translate(subject, program))

    def compute_reference(self) -> None:
        """Compute the reference now, instead of at its first use."""
        _ = self._timed_blocks

    @property
    def reference(self) -> Reference:
        """The proof's samples and the checkpoint's outputs."""
        return self._timed_blocks[0][0]

    @property
    def edge_cases(self) -> tuple[Reference | None, dict[str, str]]:
        """The reference for edge cases, and the cases that are left out, each with the reason."""
        blocks, left_out, _ = self._timed_blocks
        return blocks[-1] if blocks[-1].block == EDGE_CASES else None, left_out

    @property
    def blocks(self) -> tuple[Reference, ...]:
        """The references for the proof's samples, for those of other sizes and for edge cases."""
        return self._timed_blocks[0]

    @cached_property
    def _timed_blocks(self) -> tuple[tuple[Reference, ...], dict[str, str], float]:
        """The blocks, the edge cases that are left out, and the seconds that this took."""
        started = time.perf_counter()
        blocks = [
            make_reference(dataclasses.replace(self.subject, samples=samples), self.program)
            for samples in (self.subject.samples, *self.subject.samples.others)
        ]
        edge_cases, left_out = make_edge_reference(self.subject, self.program)
        if edge_cases is not None:
            blocks.append(edge_cases)
        took_s = time.perf_counter() - started
        return tuple(self._with_floors(blocks)), left_out, took_s

    def _with_floors(self, blocks: list[Reference]) -> Iterator[Reference]:
        """Add to each block its floors, which are float32's own errors."""
        usual: dict[str, Floor] = {}
        for block in blocks:
            floors = measure_floor(block, self.program, self.narrow)
            usual = usual or floors
            if block.block == EDGE_CASES:
                floors = {n: floor.of_edge_cases(usual[n]) for n, floor in floors.items()}
            yield dataclasses.replace(block, floors=floors)

    @cached_property
    def inside(self) -> Inside:
        """The checkpoint's values inside the graph."""
        outputs = [spec.name for spec in self.subject.outputs]
        return Inside(self.translation.program, outputs, self.reference.first(INSIDE_SAMPLES))

    def first_layer(self, model: onnx.ModelProto) -> FirstLayer:
        """The first layer of an ONNX model of the subject.

        Raises:
            NoFirstLayerError: The network has no such layer.
        """
        return find_first_layer(model, self.translation.program, self.subject)

    def layers(self, path: Path, local: LocalCheck | None = None) -> Compared:
        """Compare every value inside an ONNX file with the checkpoint's.

        Args:
            path: The file.
            local: The result of ``local`` for a float32 file, if it was computed already.
        """
        model = onnx.load(path)
        found = self.inside.compare(model)
        if not is_float32(model):
            return found
        figures = (local or self.local(model)).figures(model)
        return dataclasses.replace(found, layers=with_local(found.layers, figures))

    def local(self, model: onnx.ModelProto) -> LocalCheck:
        """The check that compares a float32 ONNX file's operators one by one."""
        outputs = [spec.name for spec in self.subject.outputs]
        inputs = self.reference.first(LOCAL_SAMPLES)
        return LocalCheck(self.translation.program, outputs, inputs, model)

    def faults(self, path: Path, allowed: Tolerance, local: LocalCheck) -> tuple[MutantResult, ...]:
        """Make mutants of the fp32 ONNX file and run the gate's checks on them."""
        model = onnx.load(path)
        checks = MutationTest(
            self._few, self.translation.program, self.inside, allowed, local=local
        )
        folds, state = find_folds(self.program), state_arrays(self.subject.module)
        return _killed(checks, make_mutants(model, folds, state))

    def reduced_faults(
        self, path: Path, source: Path, allowed: Tolerance
    ) -> tuple[MutantResult, ...]:
        """Make mutants of a reduced-precision ONNX file and run the gate's checks on them.

        Args:
            path: The file.
            source: The fp32 ONNX file.
            allowed: The tolerance of the correct file.
        """
        checks = MutationTest(
            self._few,
            self.translation.program,
            self.inside,
            allowed,
            source=onnx.load(source),
        )
        return _killed(checks, make_reduced_mutants(onnx.load(path)))

    @cached_property
    def _few(self) -> Reference:
        """The reference for the samples that every batch size runs over."""
        reference = self.reference
        return dataclasses.replace(
            reference,
            inputs=reference.first(self.narrow),
            fp64={name: array[: self.narrow] for name, array in reference.fp64.items()},
            targets=reference.targets[: self.narrow],
        )

    def measure(
        self,
        variants: dict[str, Path],
        setting: Setting,
        tolerances: tuple[Tolerance, ...] = TOLERANCES,
        *,
        workers: Workers,
        features: Path | None = None,
        again: bool = False,
        progress: Progress | None = None,
    ) -> ParityFigures:
        """Run the gate on files.

        Args:
            variants: The files by variant.
            setting: Where and how they run.
            tolerances: The table, or a changed one; the mutation test uses it.
            workers: The processes that open and run the files.
            features: The file of the first layer, if there is one.
            again: The fp32 file was measured before: measure only the others.
            progress: Shows each step.

        Raises:
            BundleError: The fp32 file cannot be run; with ``setting.strict``, any file.
            DeviceUnavailableError: The device is not available.
        """
        source, progress = variants["onnx"], progress or Progress()
        variants = {"onnx-tf32": source} if setting.tf32 else {"onnx": source, **variants}
        if again:
            variants = {v: path for v, path in variants.items() if v != "onnx"}
        outputs = tuple(spec.name for spec in self.subject.outputs)
        files, not_checked = choose_files(variants, outputs, setting)
        table = tuple(tolerance_for(file.variant, setting.device, tolerances) for file in files)
        progress.expect(len(setting.runs) + len(FEW_RUNS) * (len(self.blocks) - 1) + 3)
        progress.step("reference")
        with torch_threads(1), tempfile.TemporaryDirectory() as folder:
            candidates = self._candidates(files, workers, Path(folder))
            answered = self._ask(candidates, setting, None if again else files[0].variant, progress)
            shown = None
            if features is not None:
                part = dataclasses.replace(files[0], path=features)
                shown = self._features(candidates[0][files[0].variant].with_file(part), source)
            progress.step("intermediate values, mutants")
            # Values inside the graph and mutants are checked only on the CPU: another device
            # would reveal nothing new about the file.
            on_cpu = setting.device == "cpu"
            table = tuple(self._derived(row, answered.rows) for row in table)
            nothing: dict[str, Any] = {"layers": (), "faults": ()}
            inside = self._inside(source, table[0]) if on_cpu and not again else nothing
            reduced = _reduced_within(table, answered) if on_cpu else ()
            inside["reduced_faults"] = {
                row.variant: self.reduced_faults(variants[row.variant], source, row)
                for row in reduced
            }
            inside |= {"features": shown, "not_checked": not_checked, "tolerances": table}
            return self._figures(variants, source, answered, device=setting.device, **inside)

    def _inside(self, source: Path, allowed: Tolerance) -> dict[str, Any]:
        """The values inside the fp32 file and its mutants, as fields of ``ParityFigures``."""
        local = self.local(onnx.load(source))
        compared = self.layers(source, local)
        return {
            "layers": compared.layers,
            "unmatched": compared.unmatched,
            "faults": self.faults(source, allowed, local),
        }

    def _candidates(
        self, files: list[ModelFile], workers: Workers, folder: Path
    ) -> list[dict[str, Candidate]]:
        """Store each block's samples below a folder; return its candidates by variant."""
        blocks = []
        for position, block in enumerate(self.blocks):
            stored = folder / str(position)
            store_samples(block.inputs, stored)
            blocks.append(
                {f.variant: Candidate(f, workers, stored, self.patience_s) for f in files}
            )
        return blocks

    def _figures(
        self, variants: dict[str, Path], source: Path, answered: "_Answered", **found: Any
    ) -> ParityFigures:
        """Put all figures together; ``found`` are fields of ``ParityFigures``."""
        main = [row for row in answered.rows if row.variant == answered.main]
        edge_cases, left_out = self.edge_cases
        return ParityFigures(
            name=self.subject.name,
            proof=self.subject.samples.summary(),
            edge_cases=() if edge_cases is None else edge_cases.edge_cases,
            edge_cases_left_out=left_out,
            outputs=self.subject.outputs,
            rows=answered.rows,
            files={
                v: self._file(v, variants[v], source, state) for v, state in answered.states.items()
            },
            neighbours=answered.neighbours,
            coverage=answered.coverage,
            variation=measure_variation(self.reference),
            distinct=count_distinct(self.reference),
            worst=worst_samples(main, self.reference) if main else (),
            broken=answered.broken,
            versions=versions(["torch", "onnx", "numpy"])
            | {"onnxruntime": onnxruntime.__version__},  # its distribution may be -gpu or not
            **found,
        )

    def _ask(
        self,
        candidates: list[dict[str, Candidate]],
        setting: Setting,
        main: str | None,
        progress: Progress,
    ) -> "_Answered":
        """Open the files and measure everything for which they must be run.

        Args:
            candidates: The files by variant, for each block.
            setting: Where and how they run.
            main: The variant that must run, if any.
            progress: Shows each step.

        Raises:
            BundleError: The main variant cannot be opened or run.
        """
        rows = list[Row]()
        states, broken = _open_all(candidates[0], strict=setting.strict)
        for block, all_of_it in zip(self._blocks_on(setting.device), candidates, strict=True):
            if main in broken:
                raise BundleError(f"{main}: {broken[main]}")
            alive = {v: candidate for v, candidate in all_of_it.items() if v not in broken}
            runs = FEW_RUNS if block.block else affordable(setting.runs, self.operations)
            found, died = measure_rows(alive, block, runs, self.narrow, self._baseline, progress)
            rows += found
            broken |= died
        if main in broken:
            raise BundleError(f"{main}: {broken[main]}")
        progress.step("neighbours, coverage")
        alive = {v: candidate for v, candidate in candidates[0].items() if v not in broken}
        neighbours, errors, coverage = in_lanes(
            alive,
            lambda candidate: measure_cross_sample_leakage(candidate, self.reference),
            lambda: self._coverage,
        )
        broken |= {
            v: f"fails in a batch with other samples: {error}" for v, error in errors.items()
        }
        if main in broken:
            raise BundleError(f"{main}: {broken[main]}")
        kept = tuple(row for row in rows if row.variant not in broken)
        return _Answered(main, kept, states, neighbours, coverage, broken)

    def _blocks_on(self, device: Device) -> tuple[Reference, ...]:
        """The blocks; only the CPU's have floors, since other devices round differently."""
        if device == "cpu":
            return self.blocks
        return tuple(dataclasses.replace(block, floors={}) for block in self.blocks)

    def _baseline(self, block: Reference, count: int, batch_size: int, threads: int) -> Arrays:
        """The checkpoint's own outputs, cached for files that are made later."""
        key = (block.block, count, batch_size, threads)
        if key not in self._baselines:
            self._baselines[key] = eager_answers(block, count, batch_size, threads)
        return self._baselines[key]

    @cached_property
    def _baselines(self) -> dict[tuple[str, int, int, int], Arrays]:
        return {}

    @cached_property
    def _coverage(self) -> Coverage:
        return measure_coverage(self.program, self.reference.inputs, self.narrow)

    def _derived(self, row: Tolerance, rows: Sequence[Row]) -> Tolerance:
        """A tolerance, widened as far as the network's own rounding errors require."""
        found = [part for part in rows if part.variant == row.variant]
        return derived(row, found, self._blocks_on(row.device))

    @cached_property
    def operations(self) -> float:
        """Floating-point operations of one sample."""
        return operations_per_sample(self.subject)

    @cached_property
    def narrow(self) -> int:
        """How many samples every batch size runs over."""
        return narrow_samples(self.operations)

    @cached_property
    def patience_s(self) -> float:
        """The timeout of a run over the samples: 60 s plus 50 times the time of the reference."""
        return 60 + 50 * self._timed_blocks[2]

    def _features(self, opened: Candidate, source: Path) -> FeatureFigures:
        model, path = onnx.load(source), opened.file.path
        inputs = self.reference.first(FEATURE_SAMPLES)
        try:
            first = self.first_layer(model)
        except NoFirstLayerError as error:
            raise BundleError(f"{path} is not a layer of {source.name}: {error}") from error
        return measure_first_layer(first, path, model, opened, inputs)

    def _file(self, variant: str, path: Path, source: Path, tensors: Arrays | None) -> FileFigures:
        problems: list[str] = []
        weights: WeightFigures | None = None
        if variant.startswith("onnx"):
            model = onnx.load(path)
            problems = structure_problems(model, self.subject.inputs, self.subject.outputs)
            weights = (
                check_reduced(model, onnx.load(source))
                if variant in REDUCED
                else check_weights(model, self.translation.program)
            )
        elif variant == "torchscript" and tensors is not None:
            weights = check_state(tensors, state_arrays(self.subject.module))
        elif variant == "torchscript-frozen" and tensors is not None:
            weights = check_frozen(tensors, self.translation.program)
            problems = list(weights.problems)  # older bundles have no bound for this format
        elif variant == "pt2" and tensors is not None:
            weights = check_state(tensors, program_arrays(self.program))
        return FileFigures(
            path=path.name,
            size_bytes=path.stat().st_size,
            problems=tuple(problems),
            weights=weights,
            saturation=bound_saturation(onnx.load(path)) if variant == "onnx-int8" else None,
        )


def _killed(checks: MutationTest, planted: Iterator[Mutant]) -> tuple[MutantResult, ...]:
    """Run the checks on mutants, a few at once."""
    found = list[MutantResult]()
    with ThreadPoolExecutor(AT_ONCE) as pool:
        while some := list(itertools.islice(planted, AT_ONCE)):
            found += pool.map(checks.run, some)
    return tuple(found)


@dataclass(frozen=True)
class _Answered:
    """The results of running the files; variants in ``broken`` have no rows.

    Attributes:
        main: The variant that must run, if there is one.
        states: The tensors of PyTorch's files by variant; None for ONNX files.
    """

    main: str | None
    rows: tuple[Row, ...]
    states: dict[str, Arrays | None]
    neighbours: dict[str, dict[str, float]]
    coverage: Coverage
    broken: dict[str, str]


def _reduced_within(table: tuple[Tolerance, ...], answered: _Answered) -> list[Tolerance]:
    """The rows of reduced precision whose files run and are within their tolerance.

    A file that exceeds its tolerance is left out of the bundle or replaced. That its mutants exceed
    it too would show nothing.
    """
    return [
        allowed
        for allowed in table
        if allowed.variant in REDUCED
        and allowed.variant not in answered.broken
        and not any(is_inexact(r, allowed) for r in answered.rows if r.variant == allowed.variant)
    ]


def _open_all(
    candidates: dict[str, Candidate], *, strict: bool
) -> tuple[dict[str, Arrays | None], dict[str, str]]:
    """Open all files; return the tensors of each file that opens, and the others' errors."""
    states, errors, _ = in_lanes(candidates, Candidate.open)
    broken = {}
    for variant, error in errors.items():
        if strict and not isinstance(error, DiedError):
            raise error
        if isinstance(error, DeviceUnavailableError):
            raise error
        broken[variant] = (
            f"cannot be opened: {error}" if isinstance(error, DiedError) else in_one_line(error)
        )
    return states, broken
