"""The whole gate, from a subject and the files that were made of it to all figures.

Formats that a device cannot run are named with the reason, never left out in silence.
"""

import functools
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import torch

from export.bundle.golden import Predict
from export.bundle.manifest import BundleError
from export.bundle.session import OnnxModel
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
from export.parity.intermediates import Inside
from export.parity.measure import NARROW, measure_neighbours, measure_rows, worst_samples
from export.parity.mutants import MutationTest, plant_faults
from export.parity.provenance import (
    check_frozen,
    check_state,
    check_weights,
    program_arrays,
    state_arrays,
)
from export.parity.reduced import check_reduced
from export.parity.reference import Reference, make_reference, predict_with
from export.parity.repack import find_folds
from export.parity.schema import (
    Fault,
    FeatureFigures,
    FileFigures,
    Layer,
    ParityFigures,
    WeightFigures,
)
from export.parity.structure import structure_problems
from training.provenance import versions

# Enough for sums to show, few enough that every value inside the graph fits into memory.
INSIDE_SAMPLES = 64
FEATURE_SAMPLES = 256


@dataclass(frozen=True)
class ParityRun:
    """A subject, its exported program, and what the gate needs of both, each computed once."""

    subject: ModelUnderTest
    program: torch.export.ExportedProgram
    translation: OnnxExport

    @classmethod
    def of(cls, subject: ModelUnderTest) -> "ParityRun":
        """Export and translate a subject."""
        program = export_program(subject)
        return cls(subject, program, translate(subject, program))

    @cached_property
    def reference(self) -> Reference:
        """Samples and the checkpoint's answers."""
        return make_reference(self.subject)

    @cached_property
    def inside(self) -> Inside:
        """The checkpoint's values inside the graph."""
        outputs = [spec.name for spec in self.subject.outputs]
        count = INSIDE_SAMPLES + len(self.reference.corners)
        return Inside(self.translation.program, outputs, self.reference.first(count))

    def first_layer(self, model: onnx.ModelProto) -> FirstLayer:
        """The first layer of an ONNX model of the subject.

        Raises:
            NoFirstLayerError: The network has none to show.
        """
        return find_first_layer(model, self.translation.program, self.subject)

    def layers(self, path: Path) -> tuple[Layer, ...]:
        """Every value inside an ONNX file beside the checkpoint's."""
        return tuple(self.inside.layers(onnx.load(path)))

    def faults(self, path: Path, allowed: Tolerance) -> tuple[Fault, ...]:
        """The self-test: known faults planted in an ONNX file, and what the gate makes of them."""
        checks = MutationTest(self.reference, self.translation.program, self.inside, allowed)
        folds, state = find_folds(self.program), state_arrays(self.subject.module)
        return tuple(checks.run(planted) for planted in plant_faults(onnx.load(path), folds, state))

    def measure(
        self,
        variants: dict[str, Path],
        device: Device,
        tolerances: tuple[Tolerance, ...] = TOLERANCES,
        *,
        features: Path | None = None,
        tf32: bool = False,
        cuda_graphs: bool = False,
    ) -> ParityFigures:
        """Run the gate on files.

        Args:
            variants: The files by variant.
            device: Where they run (the reference is always the CPU).
            tolerances: The table, or a changed one; the self-test asks it.
            features: The file of the first layer, if there is one.
            tf32: On CUDA, run the fp32 file with TF32 on, as the variant onnx-tf32, and it alone.
            cuda_graphs: On CUDA, replay recorded graphs.

        Raises:
            BundleError: A file is no model that can be run.
            DeviceUnavailableError: The device is not there.
        """
        source = variants["onnx"]
        if tf32:
            variants = {"onnx-tf32": source}
        outputs = [spec.name for spec in self.subject.outputs]
        candidates, not_checked = open_candidates(
            variants, outputs, device, tf32=tf32, cuda_graphs=cuda_graphs
        )
        rows = measure_rows(candidates, self.reference)
        table = tuple(tolerance_for(variant, device, tolerances) for variant in candidates)
        main = next(iter(candidates))
        on_cpu = device == "cpu"
        return ParityFigures(
            name=self.subject.name,
            device=device,
            proof=self.subject.samples.summary(),
            corners=self.reference.corners,
            outputs=self.subject.outputs,
            tolerances=table,
            rows=tuple(rows),
            files={v: self._file(v, variants[v], source) for v in candidates},
            neighbours={v: measure_neighbours(p, self.reference) for v, p in candidates.items()},
            coverage=measure_coverage(self.program, self.reference.inputs, NARROW),
            # Inside the graph and at its faults one looks on the CPU: a second place to compute
            # tells nothing new of the file.
            layers=self.layers(source) if on_cpu else (),
            faults=self.faults(source, table[0]) if on_cpu else (),
            worst=worst_samples([row for row in rows if row.variant == main], self.reference),
            features=None if features is None else self._features(features, source, device, tf32),
            not_checked=not_checked,
            versions=versions(["torch", "onnx", "numpy"])
            | {"onnxruntime": onnxruntime.__version__},  # its distribution may be -gpu or not
        )

    def _features(self, path: Path, source: Path, device: Device, tf32: bool) -> FeatureFigures:
        model = onnx.load(source)
        inputs = self.reference.first(FEATURE_SAMPLES + len(self.reference.corners))
        try:
            first = self.first_layer(model)
        except NoFirstLayerError as error:
            raise BundleError(f"{path} is of no layer of {source.name}: {error}") from error
        opened = OnnxModel(path, device, tf32=tf32)
        return measure_first_layer(first, path, model, opened, inputs)

    def _file(self, variant: str, path: Path, source: Path) -> FileFigures:
        problems: list[str] = []
        weights: WeightFigures | None = None
        module = self.subject.module
        if variant.startswith("onnx"):
            model = onnx.load(path)
            problems = structure_problems(model, self.subject.inputs, self.subject.outputs)
            weights = (
                check_reduced(model, onnx.load(source))
                if variant in ("onnx-fp16", "onnx-int8")
                else check_weights(model, self.translation.program)
            )
        elif variant == "torchscript":
            weights = check_state(state_arrays(_load_script(path, "cpu")), state_arrays(module))
        elif variant == "torchscript-frozen":
            weights = check_frozen(_load_script(path, "cpu"), self.translation.program)
            problems = list(weights.problems)  # bundles of old have no bound for this format
        elif variant == "pt2":
            found = program_arrays(torch.export.load(path))
            weights = check_state(found, program_arrays(self.program))
        return FileFigures(
            path=path.name,
            size_bytes=path.stat().st_size,
            problems=tuple(problems),
            weights=weights,
        )


def open_candidates(
    variants: dict[str, Path],
    outputs: Sequence[str],
    device: Device,
    *,
    threads: int = 1,
    tf32: bool = False,
    cuda_graphs: bool = False,
) -> tuple[dict[str, Predict], dict[str, str]]:
    """The files as functions that run on the device, and those that cannot, each with a reason.

    Args:
        variants: The files by variant.
        outputs: The outputs' names, in order.
        device: Where they run.
        threads: Threads within an operator of ONNX Runtime, on the CPU.
        tf32: See ``OnnxModel``.
        cuda_graphs: See there.
    """
    candidates: dict[str, Predict] = {}
    not_checked: dict[str, str] = {}
    if device == "cuda":
        torch.backends.cudnn.allow_tf32 = tf32
    for variant, path in variants.items():
        if variant.startswith("onnx"):
            if device == "cuda" and variant == "onnx-int8":
                not_checked[variant] = "int8 is for the CPU: CUDA's provider would run it in fp32"
                continue
            candidates[variant] = OnnxModel(
                path, device, threads, tf32=tf32, cuda_graphs=cuda_graphs
            )
        elif variant == "pt2" and device == "cuda":
            not_checked[variant] = "the program was exported for the CPU and cannot run on cuda"
        elif variant == "pt2":
            program = _opened(path, _load_program)
            candidates[variant] = predict_with(program, outputs)
        elif variant == "torchscript-frozen" and device == "cuda":
            not_checked[variant] = "its weights are constants on the CPU and cannot run on cuda"
        else:
            script = _opened(path, functools.partial(_load_script, device=device))
            candidates[variant] = predict_with(script, outputs, device)
    return candidates, not_checked


def _load_script(path: Path, device: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # TorchScript's deprecation
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.jit.load(path, map_location=device)


def _load_program(path: Path) -> Any:
    return torch.export.load(path).module()


def _opened(path: Path, load: Callable[[Path], Any]) -> Any:
    try:
        return load(path)
    except Exception as error:  # PyTorch's loaders raise whatever they stumble on
        raise BundleError(f"{path} is no model that can be run: {error}") from error
