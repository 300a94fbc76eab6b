"""Write a model's files, one for each format and precision, or record why one is missing."""

import contextlib
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import onnx

from export.bundle.manifest import FileEntry
from export.bundle.store import file_entry
from export.convert.onnx_export import model_bytes, set_metadata
from export.convert.precision import convert_bytes
from export.convert.pt2 import save_pt2
from export.convert.torchscript import TracingError, exported_torchscript
from export.parity.candidates import Workers
from export.parity.run import ParityRun
from export.parity.structure import OPSET
from export.progress import Progress
from export.worker import CONVERSION_S

# Each variant's file name. Some formats store the stem in the file's content.
FILES = {
    "onnx": "model.onnx",
    "onnx-fp16": "model.fp16.onnx",
    "onnx-int8": "model.int8.onnx",
    "torchscript": "model.ts",
    "torchscript-frozen": "model.frozen.ts",
    "pt2": "model.pt2",
}
VARIANTS = tuple(FILES)
TRACED = ("torchscript", "torchscript-frozen")  # one trace gives both
NO_CALIBRATION = "no calibration samples were given (--calibration)"
NOT_ASKED_FOR = "was not requested (--variants)"


def write_models(
    proof: ParityRun,
    folder: Path,
    version: str,
    variants: Collection[str],
    workers: Workers,
    progress: Progress,
) -> tuple[list[FileEntry], dict[str, str]]:
    """Write the model's files, and compute the fp64 reference meanwhile.

    Args:
        proof: The module and its program.
        folder: Where the files are written.
        version: The model's version, for the ONNX files' metadata.
        variants: Which of ``VARIANTS`` to write; onnx is always written.
        workers: The processes that run the conversions.
        progress: Shows each step.

    Returns:
        The files that were written, and the missing variants, each with the reason.
    """
    wanted = [v for v in VARIANTS if v in variants or v == "onnx"]
    missing = {v: NOT_ASKED_FOR for v in VARIANTS if v not in wanted}
    if "onnx-int8" in wanted and proof.subject.calibration is None:
        missing["onnx-int8"] = NO_CALIBRATION
    paths = {v: folder / name for v, name in FILES.items()}
    traced = [v for v in TRACED if v in wanted]
    tracing = exported_torchscript(
        proof.subject, paths["torchscript"], paths["torchscript-frozen"], workers.torch
    )
    try:
        with tracing if traced else contextlib.nullcontext(), ThreadPoolExecutor(1) as lane:
            converted = {
                v: lane.submit(_converted, proof, v, workers)
                for v in wanted
                if v.startswith("onnx") and v not in missing
            }
            if "pt2" in wanted:
                with _guarded("pt2", missing):
                    save_pt2(proof.program, paths["pt2"])
            progress.step("reference")
            proof.compute_reference()  # while the workers convert
            for variant, model in converted.items():
                progress.step(variant)
                with _guarded(variant, missing):
                    set_metadata(model.result(), proof.subject, version, variant)
                    paths[variant].write_bytes(model_bytes(model.result()))
            progress.step("torchscript")
    except TracingError as error:
        missing |= dict.fromkeys(traced, f"cannot be made: {error}")
    for variant in missing:
        paths[variant].unlink(missing_ok=True)
    return [model_entry(v, paths[v]) for v in wanted if v not in missing], missing


def _converted(proof: ParityRun, variant: str, workers: Workers) -> onnx.ModelProto:
    """The ONNX model in a variant's precision; a worker converts it, since converters may crash."""
    honest = proof.translation.model
    if variant == "onnx":
        copied = onnx.ModelProto()
        copied.CopyFrom(honest)
        return copied
    calibration = proof.subject.calibration
    arrays = calibration.arrays if calibration and variant == "onnx-int8" else None
    content: bytes = workers.onnx.call(
        convert_bytes, model_bytes(honest), arrays, timeout_s=CONVERSION_S
    )
    model: onnx.ModelProto = onnx.ModelProto.FromString(content)
    return model


@contextlib.contextmanager
def _guarded(variant: str, missing: dict[str, str]) -> Iterator[None]:
    """Record why a variant cannot be made, and leave it out; an error of onnx is raised."""
    try:
        yield
    except Exception as error:
        if variant == "onnx":
            raise
        missing[variant] = f"cannot be made: {error}"


def model_entry(variant: str, path: Path) -> FileEntry:
    """The manifest's entry for a variant's file."""
    if not variant.startswith("onnx"):
        return file_entry(path, role="model", format=variant, precision="fp32")
    precision = variant.partition("-")[2] or "fp32"
    return file_entry(path, role="model", format="onnx", precision=precision, opset=OPSET)
