"""Any module as a subject: a factory makes it, safetensors fill it, a file of samples asks it."""

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
from export.bundle.metrics import Array
from export.model.under_test import EXAMPLES, ModelUnderTest, read_samples

LOGITS_NDIM = 2  # batch, classes
PICKLE_SUFFIXES = {".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle"}


def from_factory(
    factory: str,
    weights: Path,
    samples: Path,
    *,
    arguments: Mapping[str, Any] | None = None,
    declared: Sequence[TensorSpec] = (),
    output_names: Sequence[str] = (),
    logits: Sequence[str] = (),
    calibration: Path | None = None,
) -> ModelUnderTest:
    """Any module: made by a factory, filled with weights, asked samples from a file.

    Args:
        factory: "package.module:function"; called with ``arguments`` it returns the module, whose
            forward takes the inputs in the order of the file's arrays and returns a tensor, a
            tuple of tensors or a dict of tensors. The first axis of each is the batch.
        weights: A safetensors file for ``load_state_dict``.
        samples: An .npz with one array for each input; "targets", int [N], may be among them.
        arguments: For the factory; they must fit into JSON.
        declared: What the inputs must be; the file is refused if it differs. May name fewer.
        output_names: Names for the outputs; default: a dict's keys, else output_0, output_1, ...
        logits: Those of the outputs whose largest value is a label.
        calibration: Like ``samples``, other samples; for int8.

    Raises:
        SubjectError: The factory, the weights or a file cannot be used; says why and what to do.
    """
    arguments = dict(arguments or {})
    inner = _make(factory, arguments)
    digest = _load(inner, weights)
    asked = read_samples(samples)
    inputs = tuple(_spec(name, array) for name, array in asked.arrays.items())
    for spec in declared:
        if spec not in inputs:
            found = ", ".join(map(str, inputs))
            raise SubjectError(f"{samples} has the inputs {found}; declared was {spec}")
    module = Positional(inner)
    example = tuple(torch.from_numpy(a[:EXAMPLES].copy()) for a in asked.arrays.values())
    names, answers = _try(module, example, factory)
    outputs = _output_specs(output_names or names, answers, logits)
    parameters = sum(p.numel() for p in inner.parameters() if p.requires_grad)
    return ModelUnderTest(
        name=factory.partition(":")[2],
        module=module,
        inputs=inputs,
        outputs=outputs,
        labels=(),
        weights=weights,
        samples=asked,
        calibration=None if calibration is None else read_samples(calibration),
        factory=FactorySummary(factory=factory, arguments=arguments, parameters=parameters),
        weights_sha256=digest,
    )


def with_task(
    subject: ModelUnderTest, task: Task | None, labels: Path | None, preprocessing: Path | None
) -> ModelUnderTest:
    """A subject that says what the service shall do with it.

    Args:
        subject: From ``from_factory``.
        task: As in the manifest; None: the service derives it from the tensors.
        labels: A text file in UTF-8, one label a line; None: no labels.
        preprocessing: A JSON file of ``ImagePreprocessing``'s fields; None: no pictures.

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


class Positional(nn.Module):
    """Any module, its outputs as a tuple: what a graph's outputs are."""

    def __init__(self, module: nn.Module) -> None:
        """Wrap a module and put it into evaluation mode."""
        super().__init__()
        self.module = module
        self.eval()

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The inputs in their order to the outputs in theirs."""
        answer = self.module(*inputs)
        if isinstance(answer, Tensor):
            return (answer,)
        return tuple(answer.values() if isinstance(answer, dict) else answer)


def _make(factory: str, arguments: dict[str, Any]) -> nn.Module:
    module_name, _, function_name = factory.partition(":")
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError, ValueError) as error:
        raise SubjectError(
            f"--model {factory}: expected package.module:function, importable from here ({error})"
        ) from error
    try:
        module = function(**arguments)
    except TypeError as error:
        raise SubjectError(f"--model {factory} with arguments {arguments}: {error}") from error
    if not isinstance(module, nn.Module):
        raise SubjectError(f"{factory} gave a {type(module).__name__}, expected a torch.nn.Module")
    return module.float().cpu().eval()


def _load(module: nn.Module, path: Path) -> str:
    """Fill a module from a safetensors file, whose SHA-256 is returned; never open a pickle."""
    if not path.is_file():
        raise SubjectError(f"the weights {path} are not there")
    content = path.read_bytes()
    if path.suffix in PICKLE_SUFFIXES or content[:2] in (b"PK", b"\x80\x02", b"\x80\x04"):
        raise SubjectError(
            f"{path} is a pickle: whoever opens it runs whatever is in it. If you trust its "
            'author, convert it once: python -c "import torch; from safetensors.torch import '
            f"save_file; save_file(torch.load('{path}', weights_only=True), "
            f"'{path.with_suffix('.safetensors')}')\""
        )
    try:
        module.load_state_dict(load(content))
    except (SafetensorError, RuntimeError) as error:
        raise SubjectError(f"{path} does not fit the module: {error}") from error
    for part in module.modules():
        if parametrize.is_parametrized(part):  # weight norm and the like: a matter of training
            for name in list(part.parametrizations):  # type: ignore[arg-type]
                parametrize.remove_parametrizations(part, name, leave_parametrized=True)
            # Loading is done; what it left behind cannot be sent to another process.
            part._load_state_dict_pre_hooks.clear()
    return hashlib.sha256(content).hexdigest()


def _spec(name: str, array: Array) -> TensorSpec:
    for datatype, dtype in DTYPES.items():
        if array.dtype == dtype:
            try:
                return TensorSpec(name=name, datatype=datatype, shape=(-1, *array.shape[1:]))
            except ValueError as error:
                raise SubjectError(f"{name!r} is no name for a tensor: {error}") from error
    raise SubjectError(f"{name} has the type {array.dtype}; expected one of {', '.join(DTYPES)}")


def _try(
    module: Positional, example: tuple[Tensor, ...], factory: str
) -> tuple[list[str], tuple[Tensor, ...]]:
    """Names and values of the outputs."""
    try:
        with torch.no_grad():
            answer = module.module(*example)
            answers = module(*example)
    except Exception as error:  # whatever somebody else's module raises
        raise SubjectError(f"{factory} cannot answer its samples in float32: {error}") from error
    if isinstance(answer, dict):
        return [str(name) for name in answer], answers
    return [f"output_{i}" for i in range(len(answers))], answers


def _output_specs(
    names: Sequence[str], answers: tuple[Tensor, ...], logits: Sequence[str]
) -> tuple[TensorSpec, ...]:
    if len(names) != len(answers) or not set(logits) <= set(names):
        raise SubjectError(
            f"the module has {len(answers)} outputs; named were {', '.join(names)}"
            + (f", logits {', '.join(logits)}" if logits else "")
        )
    specs = []
    for name, answer in zip(names, answers, strict=True):
        spec = _spec(name, answer.numpy())
        if name in logits and answer.ndim != LOGITS_NDIM:
            raise SubjectError(f"{spec} cannot be logits: expected [-1, classes]")
        specs.append(spec.model_copy(update={"kind": "logits"} if name in logits else {}))
    return tuple(specs)
