"""Export and prove the first layer: the part of an ONNX file up to the first activation.

Its output shows what the network computes first: a picture for each channel of a convolution, a
number for each unit of a dense layer. The file is cut from the proven file, with the same nodes and
tensors; ``cut_problems`` checks this for any such file. Its values are also compared with the
checkpoint's own values, because a runtime might compute the cut file differently.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import onnx
from onnx import ModelProto, NodeProto, TensorProto
from onnx.utils import Extractor
from torch.fx import Node

from export.bundle.golden import BATCH_SIZES, Golden, Predict, run_batched
from export.bundle.manifest import FileEntry, TensorSpec
from export.bundle.metrics import Arrays, compare
from export.bundle.store import file_entry
from export.convert.onnx_export import OnnxExport, model_bytes, set_metadata
from export.mnist.servable import INPUTS
from export.model.program import Program, named_nodes
from export.model.under_test import ModelUnderTest
from export.parity.intermediates import module_of
from export.parity.interpreter import node_values
from export.parity.schema import FeatureFigures
from export.parity.structure import OPSET, structure_problems
from export.provenance.rules import PRODUCTS

FEATURES_NAME, GOLDEN_NAME = "model.features.onnx", "golden.features.npz"
# Each has a float32 and a float64 copy of every value: a convolution has tens of thousands.
GOLDEN_SAMPLES = 4
# ONNX's names of activation functions.
ACTIVATIONS = {
    "Relu",
    "LeakyRelu",
    "PRelu",
    "Elu",
    "Celu",
    "Selu",
    "Gelu",
    "Mish",
    "HardSwish",
    "Clip",
    "Sigmoid",
    "HardSigmoid",
    "Tanh",
    "Softplus",
    "Softsign",
}
UNITS_NDIM = 2  # samples, units


class NoFirstLayerError(ValueError):
    """The network has no such layer; the message says why."""


@dataclass(frozen=True)
class FirstLayer:
    """The output of the first layer, which is a value inside a network.

    Attributes:
        layer: A description of the layer.
        output: The value as an output: FP32 [-1, channels, ...] or [-1, units].
        node: The node of the checkpoint's program that computes it.
        program: The program that has the node.
    """

    layer: str
    output: TensorSpec
    node: Node
    program: Program

    def values(self, inputs: Arrays, *, double: bool) -> Arrays:
        """The checkpoint's values of the layer, in float64 or in float32."""
        return node_values(self.program, {self.output.name: self.node}, inputs, double=double)


def find_first_layer(model: ModelProto, program: Program, subject: ModelUnderTest) -> FirstLayer:
    """Find the first activation after a convolution or a dense layer, in the graph's order.

    Args:
        model: The fp32 ONNX model.
        program: The exporter's program, whose nodes have the names of the model's values.
        subject: The subject that both were made from.

    Raises:
        NoFirstLayerError: The network's input is not one image, or it has no such activation.
    """
    if subject.inputs != INPUTS:
        raise NoFirstLayerError(f"they need a network whose only input is {INPUTS[0]}")
    activation, product = _first_activation(model)
    name = activation.output[0]
    nodes = named_nodes(program, [spec.name for spec in subject.outputs])
    shape = _shape(model, name)
    if name not in nodes or len(shape) < UNITS_NDIM or min(shape[1:]) < 1:
        raise NoFirstLayerError(
            f"the first activation, {name} {shape}, is not a layer of the PyTorch module"
        )
    if product.op_type == "MatMul" and len(shape) > UNITS_NDIM:
        raise NoFirstLayerError(f"the axes of {name} {shape} are not channel, height and width")
    where = module_of(nodes[name])
    if subject.training is not None:
        where = where.partition(".")[2]  # the path inside the network, without the wrapper
    kind = activation.op_type.replace("Relu", "ReLU")
    words = f"{kind} after {_words(model, product, shape)}"
    return FirstLayer(
        layer=f"{where} ({words})" if where else words,
        output=TensorSpec(name=name, datatype="FP32", shape=shape),
        node=nodes[name],
        program=program,
    )


def cut(model: ModelProto, output: TensorSpec) -> ModelProto:
    """Cut out the part of a model that computes one of its values, which is the only output."""
    inputs = [value.name for value in model.graph.input]
    part: ModelProto = Extractor(model).extract_model(inputs, [output.name])
    onnx.checker.check_model(part, full_check=True)
    return part


def cut_problems(part: ModelProto, model: ModelProto, output: TensorSpec) -> list[str]:
    """Describe differences between a file and a fresh cut of the model; nothing is run.

    Args:
        part: The file's content.
        model: The fp32 ONNX model of the bundle, which is proven separately.
        output: The expected output of the part.
    """
    expected = cut(model, output).graph
    problems = structure_problems(part, INPUTS, [output])
    for kind, found, wanted in (
        ("node", part.graph.node, expected.node),
        ("tensor", part.graph.initializer, expected.initializer),
    ):
        ours, theirs = _by_name(found), _by_name(wanted)
        problems += [
            f"{kind} {name} differs from the ONNX file that it was cut from"
            for name in sorted(ours.keys() | theirs.keys())
            if ours.get(name) != theirs.get(name)
        ]
    return problems


def golden_features(first: FirstLayer, golden: Golden) -> Golden:
    """A few golden samples with the checkpoint's values in the first layer."""
    asked = golden.first(GOLDEN_SAMPLES)
    fp32, fp64 = (first.values(asked.inputs, double=double) for double in (False, True))
    return Golden(asked.inputs, fp32, fp64, asked.targets)


def write_features(
    export: OnnxExport, subject: ModelUnderTest, golden: Golden, folder: Path, version: str
) -> list[FileEntry]:
    """Write the file of the first layer and its golden samples.

    Args:
        export: The fp32 ONNX model and its program.
        subject: The subject that both were made from.
        golden: The bundle's golden samples, of which a few are used.
        folder: The folder to write to.
        version: The model's version, for the file's metadata.

    Raises:
        NoFirstLayerError: The network has no such layer.
    """
    first = find_first_layer(export.model, export.program, subject)
    model = cut(export.model, first.output)
    set_metadata(model, replace(subject, outputs=(first.output,)), version, "features")
    (folder / FEATURES_NAME).write_bytes(model_bytes(model))
    golden_features(first, golden).save(folder / GOLDEN_NAME)
    return [
        file_entry(folder / FEATURES_NAME, role="features", opset=OPSET),
        file_entry(folder / GOLDEN_NAME, role="features-golden"),
    ]


def measure_first_layer(
    first: FirstLayer, path: Path, model: ModelProto, predict: Predict, inputs: Arrays
) -> FeatureFigures:
    """Compare the file's values with the checkpoint's, and its graph with the model's.

    Args:
        first: The first layer.
        path: The file.
        model: The fp32 ONNX model of the bundle.
        predict: The file, opened on the device under test.
        inputs: Samples.
    """
    fp32, fp64 = (
        first.values(inputs, double=double)[first.output.name] for double in (False, True)
    )
    problems = cut_problems(onnx.load(path), model, first.output)
    by_batch = {}
    for batch_size in BATCH_SIZES:
        found = run_batched(predict, inputs, batch_size).get(first.output.name)
        if found is None or found.shape != fp32.shape:
            problems.append(
                f"has shape {None if found is None else found.shape}, expected {fp32.shape}"
            )
        else:
            by_batch[batch_size] = compare(found, fp32, fp64, one_scale=True)
    return FeatureFigures(
        layer=first.layer,
        output=first.output,
        path=path.name,
        problems=tuple(problems),
        by_batch=by_batch,
    )


def _first_activation(model: ModelProto) -> tuple[NodeProto, NodeProto]:
    """The first activation's node, and the last convolution or dense layer before it."""
    behind: dict[str, NodeProto] = {}
    for node in model.graph.node:
        products = [behind[name] for name in node.input if name in behind]
        if node.op_type in ACTIVATIONS and products:
            return node, products[0]
        if node.op_type in PRODUCTS or products:
            product = node if node.op_type in PRODUCTS else products[0]
            behind.update(dict.fromkeys(node.output, product))
    raise NoFirstLayerError("there is no activation after a convolution or a dense layer")


def _words(model: ModelProto, product: NodeProto, shape: Sequence[int]) -> str:
    """Describe a layer, e.g. "Conv 5x5, 16 channels" or "dense layer, 512 units"."""
    if len(shape) == UNITS_NDIM:
        return f"dense layer, {shape[1]} units"
    kernel = next((list(a.ints) for a in product.attribute if a.name == "kernel_shape"), None)
    if kernel is None:  # ONNX infers it from the weight
        weight = next(t for t in model.graph.initializer if t.name == product.input[1])
        kernel = list(weight.dims)[2:]
    return f"{product.op_type} {'x'.join(map(str, kernel))}, {shape[1]} channels"


def _shape(model: ModelProto, name: str) -> tuple[int, ...]:
    """A value's shape: -1 for the batch axis, 0 for an axis that is free or not known."""
    values = {v.name: v for v in (*model.graph.value_info, *model.graph.output)}
    axes = values[name].type.tensor_type.shape.dim if name in values else ()
    return tuple(-1 if i == 0 else axis.dim_value for i, axis in enumerate(axes))


def _by_name(parts: Iterable[NodeProto | TensorProto]) -> dict[str, bytes]:
    return {part.name: part.SerializeToString(deterministic=True) for part in parts}
