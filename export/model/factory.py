"""Build a model under test from a factory function, a safetensors file and sample files."""

import dataclasses
import hashlib
import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn
from torch.nn.utils import parametrize

from export.bundle.manifest import (
    DTYPES,
    FactorySummary,
    ImagePreprocessing,
    SubjectError,
    Task,
    TensorSpec,
)
from export.bundle.metrics import Array, Arrays
from export.model.domains import require_domain
from export.model.signature import Positional, named_tensors
from export.model.sizes import Sizes, block_sizes, with_sizes
from export.model.under_test import (
    EXAMPLES,
    FIXED_SIZE,
    ModelUnderTest,
    Samples,
    read_samples,
)

LOGITS_NDIM = 2  # batch, classes
PICKLE_SUFFIXES = {".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle"}


def from_factory(
    factory: str,
    weights: Path,
    samples: Sequence[Path],
    *,
    arguments: Mapping[str, Any] | None = None,
    declared: Sequence[TensorSpec] = (),
    output_names: Sequence[str] = (),
    logits: Sequence[str] = (),
    calibration: Path | None = None,
) -> ModelUnderTest:
    """Make any module by its factory, load its weights, and pair it with samples from files.

    Args:
        factory: "package.module:function", which returns the module when it is called with
            ``arguments``; see ``export.model.signature`` for what ``forward`` may take and return.
            The first axis of each tensor is the batch.
        weights: A safetensors file for ``load_state_dict``.
        samples: An .npz with one array for each input; "targets", int [N], may be among them.
            Several files hold several sizes of the variable axes.
        arguments: The factory's arguments; they must be serializable as JSON.
        declared: What the inputs must be and which values they may have; a file that differs is
            refused. Inputs may be left out.
        output_names: Names for the outputs; default: a dict's keys, else output_0, output_1, ...
        logits: The names of the outputs whose largest value is the label.
        calibration: An .npz of other samples, to calibrate int8.

    Raises:
        SubjectError: The factory, the weights or a file cannot be used; the message says why and
            what to do.
    """
    arguments = dict(arguments or {})
    inner = _make(factory, arguments)
    digest = _load(inner, weights)
    given = read_samples(samples)
    inputs = _inputs(given[0], declared)
    for further in given[1:]:
        _inputs(further, inputs)
    asked = with_sizes(inputs, given)
    blocks = [block.arrays for block in (asked, *asked.others)]
    for spec in inputs:
        for arrays in blocks:
            require_domain(spec, arrays[spec.name])
    module = Positional(inner, list(asked.arrays))
    names, answers = _answer_blocks(module, blocks, factory)
    sizes = [block_sizes(inputs, arrays) for arrays in blocks]
    outputs = _output_specs(output_names or names, answers, logits, sizes)
    parameters = sum(p.numel() for p in inner.parameters() if p.requires_grad)
    return ModelUnderTest(
        name=factory.partition(":")[2],
        module=module,
        inputs=inputs,
        outputs=outputs,
        labels=(),
        weights=weights,
        samples=asked,
        calibration=None if calibration is None else read_samples([calibration])[0],
        factory=FactorySummary(factory=factory, arguments=arguments, parameters=parameters),
        weights_sha256=digest,
    )


def with_task(
    subject: ModelUnderTest, task: Task | None, labels: Path | None, preprocessing: Path | None
) -> ModelUnderTest:
    """Add to a subject what the service does with the model.

    Args:
        subject: From ``from_factory``.
        task: As in the manifest; None: the service derives it from the tensors.
        labels: A text file in UTF-8, one label a line; None: no labels.
        preprocessing: A JSON file with the fields of ``ImagePreprocessing``; None: no pictures.

    Raises:
        SubjectError: A file cannot be used, or image-classification lacks one of them.
    """
    if task == "image-classification" and (labels is None or preprocessing is None):
        raise SubjectError("--task image-classification needs --labels and --preprocessing")
    try:
        names = () if labels is None else tuple(labels.read_text(encoding="utf-8").splitlines())
        recorded = None
        if preprocessing is not None:
            recorded = ImagePreprocessing.model_validate_json(preprocessing.read_bytes())
    except (OSError, ValueError) as error:
        raise SubjectError(f"--labels or --preprocessing cannot be used: {error}") from error
    return dataclasses.replace(subject, task=task, labels=names, preprocessing=recorded)


def _make(factory: str, arguments: dict[str, Any]) -> nn.Module:
    module_name, _, function_name = factory.partition(":")
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError, ValueError) as error:
        raise SubjectError(
            f"--model {factory}: expected package.module:function that can be imported ({error})"
        ) from error
    try:
        module = function(**arguments)
    except TypeError as error:
        raise SubjectError(f"--model {factory} with arguments {arguments}: {error}") from error
    if not isinstance(module, nn.Module):
        raise SubjectError(
            f"{factory} returned a {type(module).__name__}, expected a torch.nn.Module"
        )
    return module.float().cpu().eval()


def _load(module: nn.Module, path: Path) -> str:
    """Load a safetensors file into a module and return the file's SHA-256; refuse pickles."""
    if not path.is_file():
        raise SubjectError(f"the weights {path} do not exist")
    content = path.read_bytes()
    if path.suffix in PICKLE_SUFFIXES or content[:2] in (b"PK", b"\x80\x02", b"\x80\x04"):
        raise SubjectError(
            f"{path} is a pickle: opening it can run any code that it contains. If you trust its "
            'author, convert it once: python -c "import torch; from safetensors.torch import '
            f"save_file; save_file(torch.load('{path}', weights_only=True), "
            f"'{path.with_suffix('.safetensors')}')\""
        )
    try:
        module.load_state_dict(load(content))
    except (SafetensorError, RuntimeError) as error:
        raise SubjectError(f"{path} does not match the module: {error}") from error
    for part in module.modules():
        if parametrize.is_parametrized(part):  # e.g. weight norm, which only training needs
            for name in list(part.parametrizations):  # type: ignore[arg-type]
                parametrize.remove_parametrizations(part, name, leave_parametrized=True)
            # These hooks are no longer needed, and they cannot be pickled for another process.
            part._load_state_dict_pre_hooks.clear()
    return hashlib.sha256(content).hexdigest()


def _spec(name: str, array: Array) -> TensorSpec:
    for datatype, dtype in DTYPES.items():
        if array.dtype == dtype:
            try:
                return TensorSpec(name=name, datatype=datatype, shape=(-1, *array.shape[1:]))
            except ValueError as error:
                raise SubjectError(f"{name!r} is not a valid name of a tensor: {error}") from error
    raise SubjectError(f"{name} has the type {array.dtype}; expected one of {', '.join(DTYPES)}")


def _answer_blocks(
    module: Positional, blocks: Sequence[Arrays], factory: str
) -> tuple[list[str], list[tuple[Tensor, ...]]]:
    """Names of the outputs, and their values for a few samples of each size."""
    try:
        with torch.no_grad():
            given = [_tensors(arrays, EXAMPLES) for arrays in blocks]
            named = dict(named_tensors(module.answer(given[0])))
            answers = [module(*tensors) for tensors in given]
            fewer = module(*_tensors(blocks[0], EXAMPLES - 1))
    except Exception as error:  # third-party modules raise anything
        raise SubjectError(
            f"{factory} cannot run its samples in float32: {error}; the arrays are passed to "
            f"forward by the names of its parameters, else in this order: {', '.join(blocks[0])}"
        ) from error
    for name, many, few in zip(named, answers[0], fewer, strict=True):
        if many.shape[:1] != (EXAMPLES,) or few.shape != (EXAMPLES - 1, *many.shape[1:]):
            raise SubjectError(
                f"the output {name} has the shape {tuple(many.shape)} for {EXAMPLES} samples and "
                f"{tuple(few.shape)} for {EXAMPLES - 1}; expected the batch on the first axis "
                f"and the same sizes on the others. {FIXED_SIZE}"
            )
    return list(named), answers


def _tensors(arrays: Arrays, count: int) -> tuple[Tensor, ...]:
    return tuple(torch.from_numpy(array[:count].copy()) for array in arrays.values())


def _output_specs(
    names: Sequence[str],
    answers: Sequence[tuple[Tensor, ...]],
    logits: Sequence[str],
    sizes: Sequence[Sizes],
) -> tuple[TensorSpec, ...]:
    """The outputs' specs, from each block's sizes and its outputs for a few samples."""
    if len(names) != len(answers[0]) or not set(logits) <= set(names):
        raise SubjectError(
            f"the module has {len(answers[0])} outputs; the names given are {', '.join(names)}"
            + (f", logits {', '.join(logits)}" if logits else "")
        )
    specs = []
    for name, *found in zip(names, *answers, strict=True):
        spec = _spec(name, found[0].numpy())
        if name in logits and found[0].ndim != LOGITS_NDIM:
            raise SubjectError(f"{spec} cannot be logits: expected [-1, classes]")
        shapes = [tuple(tensor.shape) for tensor in found]
        kind = "logits" if name in logits else "values"
        specs.append(spec.model_copy(update={"kind": kind, **_variable(shapes, sizes)}))
    return tuple(specs)


def _variable(shapes: Sequence[tuple[int, ...]], sizes: Sequence[Sizes]) -> dict[str, Any]:
    """Shape, bounds and axes of an output whose sizes depend on those of the inputs."""
    seen = {axis: [s[axis] for s in shapes] for axis in range(1, len(shapes[0]))}
    bounds = {axis: (min(s), max(s)) for axis, s in seen.items() if len(set(s)) > 1}
    axes = {
        axis: name
        for axis in bounds
        for name in sizes[0]
        if seen[axis] == [block[name] for block in sizes]
    }
    shape = tuple(
        -1 if axis == 0 or axis in bounds else size for axis, size in enumerate(shapes[0])
    )
    return {"shape": shape, "bounds": bounds, "axes": axes}


def _inputs(samples: Samples, declared: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
    """The inputs' specs: as declared, else as found in the samples.

    Raises:
        SubjectError: The samples do not match the declaration.
    """
    by_name = {spec.name: spec for spec in declared}
    inputs = []
    for name, array in samples.arrays.items():
        found = _spec(name, array)
        spec = by_name.pop(name, found)
        fits = spec.datatype == found.datatype and len(spec.shape) == len(found.shape)
        if not fits or any(
            size not in (found.shape[axis], -1) for axis, size in enumerate(spec.shape)
        ):
            raise SubjectError(f"{samples.name} has the input {found}; declared: {spec}")
        inputs.append(spec)
    if by_name:
        found_names = ", ".join(map(str, inputs))
        wanted = ", ".join(map(str, by_name.values()))
        raise SubjectError(f"{samples.name} has the inputs {found_names}; also declared: {wanted}")
    return tuple(inputs)
