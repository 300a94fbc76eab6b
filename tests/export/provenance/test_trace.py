"""Every weight of an ONNX file is compared with the checkpoint's, and every fault is detected."""

import copy
import warnings

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from export.bundle.tolerances import FOLD_ERROR
from export.parity.run import ParityRun
from export.provenance.checkpoint import Checkpoint
from export.provenance.figures import WeightFigures
from export.provenance.forms import Expected, combined, cut, find_folds
from export.provenance.state import check_state, frozen_constants, program_arrays
from export.provenance.trace import check_frozen, check_weights
from tests.export.provenance.networks import copied, export_network, exported
from tests.export.subjects import tiny_subject

MODELS = ["cnn", "bn-cnn", "mlp"]


@pytest.fixture(scope="module")
def proofs() -> dict[str, ParityRun]:
    """Tiny networks, exported once; tests must not change them."""
    return {model: ParityRun.of(tiny_subject(model)) for model in MODELS}


def _check(proof: ParityRun, model: onnx.ModelProto | None = None) -> WeightFigures:
    return check_weights(
        proof.translation.model if model is None else model, proof.translation.program
    )


def _copy(proof: ParityRun) -> onnx.ModelProto:
    return copied(proof.translation.model)


@pytest.mark.parametrize(
    ("model", "equal", "folded"), [("cnn", 8, 0), ("bn-cnn", 2, 6), ("mlp", 2, 2)]
)
def test_every_tensor_of_an_honest_export_is_accounted_for(
    model: str, equal: int, folded: int, proofs: dict[str, ParityRun]
) -> None:
    """Tensors are bit-equal, or with BatchNorm equal to the float64 fold."""
    found = _check(proofs[model])
    assert (found.equal, found.folded, found.problems) == (equal, folded, ())
    assert found.error <= FOLD_ERROR / 2
    assert found.constants == 3  # 255, mean and deviation
    assert len(find_folds(proofs[model].program)) == folded // 2


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("factor", [1.01, -1.0, float("nan")])
def test_one_changed_weight_in_any_tensor_is_named(
    model: str, factor: float, proofs: dict[str, ParityRun]
) -> None:
    """A random element that is 1% off, negated or NaN is found with its position."""
    generator = np.random.default_rng(0)
    tensors = [
        t.name for t in _copy(proofs[model]).graph.initializer if t.name.startswith("classifier.")
    ]
    assert len(tensors) >= 4
    for name in tensors:
        faulty = _copy(proofs[model])
        tensor = next(t for t in faulty.graph.initializer if t.name == name)
        values = numpy_helper.to_array(tensor).copy()
        position = tuple(int(generator.integers(size)) for size in values.shape)
        values[position] *= factor
        tensor.CopyFrom(numpy_helper.from_array(values, name))
        found = _check(proofs[model], faulty)
        words = " ".join([*found.problems, found.worst])
        assert found.problems or not found.error <= FOLD_ERROR
        assert name in words
        assert f"[{', '.join(map(str, position))}] is" in words


def test_missing_and_misshapen_tensors_are_named(proofs: dict[str, ParityRun]) -> None:
    """A dropped bias and a transposed weight are named, and unused tensors are ignored."""
    model = _copy(proofs["cnn"])
    kept = [t for t in model.graph.initializer if t.name != "classifier.head.1.bias"]
    for tensor in kept:
        if tensor.name == "classifier.head.4.weight":
            values = numpy_helper.to_array(tensor).reshape(16, 10) + 1
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    kept.append(numpy_helper.from_array(np.ones(5, np.float32), "stranger"))
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    found = _check(proofs["cnn"], model)
    assert found.constants == 3
    misshapen, missing = found.problems
    assert missing.startswith("classifier.head.1.bias is not in the file")
    assert misshapen == "classifier.head.4.weight has the shape (16, 10), expected (10, 16)"


@pytest.mark.parametrize("model", MODELS)
def test_a_tensor_that_no_node_takes_proves_nothing(
    model: str, proofs: dict[str, ParityRun]
) -> None:
    """A layer that uses a copy 1% off is detected, even if the right weight is in the file."""
    faulty = _copy(proofs[model])
    node = next(n for n in faulty.graph.node if n.op_type == "Gemm")
    tensor = next(t for t in faulty.graph.initializer if t.name == node.input[1])
    values = numpy_helper.to_array(tensor).copy()
    values[0, 0] *= 1.01
    faulty.graph.initializer.append(numpy_helper.from_array(values, "second"))
    node.input[1] = "second"
    found = _check(proofs[model], faulty)
    assert found.problems or not found.error <= FOLD_ERROR
    assert "second" in " ".join([*found.problems, found.worst])


class Gated(nn.Module):
    """A sum with zeros and a product with ones or zeros; a factor of zeros matters."""

    def __init__(self, gate: float) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(4))
        self.gate = nn.Parameter(torch.full((4,), gate))
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Float [N, 4] to float [N, 2]."""
        result: Tensor = self.head((torch.tanh(x) + self.shift) * self.gate)
        return result


@pytest.mark.parametrize(("gate", "problems"), [(1.0, 0), (0.0, 1)])
def test_only_a_zero_of_a_sum_or_a_one_of_a_product_may_be_left_out(
    gate: float, problems: int
) -> None:
    """A missing factor of zeros is a fault."""
    export = export_network(Gated(gate).eval(), torch.randn(4, 4))
    model = copied(export.model)
    for node in model.graph.node:
        if node.op_type in ("Add", "Mul"):
            kept = next(name for name in node.input if name not in ("shift", "gate"))
            node.CopyFrom(onnx.helper.make_node("Identity", [kept], list(node.output), node.name))
    found = check_weights(model, export.program)
    assert len(found.problems) == problems
    assert all("gate is not in the file" in problem for problem in found.problems)


class Prefixed(nn.Module):
    """A parameter of zeros concatenated before the inputs, like a ViT's class token."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.zeros(1, 3))

    def forward(self, x: Tensor) -> Tensor:
        """Float [5, 3] to float [6, 3]."""
        return torch.cat([self.token, x])


def test_zeros_that_are_joined_are_no_zeros_of_a_sum() -> None:
    """Omitting concatenated zeros is a fault, because it changes the result."""
    program = torch.export.export(Prefixed().eval(), (torch.randn(5, 3),))
    checkpoint = Checkpoint(program)
    nodes = {name: node for node, name in checkpoint.names.items()}
    assert not checkpoint.changes_nothing(nodes["token"])


class Mixed(nn.Module):
    """A BatchNorm over other channels than the linear layer before it, then a pixel shuffle."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(8)

    def forward(self, x: Tensor) -> Tensor:
        """Float [N, 8, 4] to float [N, 2, 4, 4]."""
        hidden: Tensor = self.norm(self.head(x))
        return torch.nn.functional.pixel_shuffle(hidden.reshape(-1, 8, 2, 2), 2)


def test_a_batchnorm_over_other_channels_is_not_folded() -> None:
    """It cannot be folded into the linear layer, and the pixel shuffle's order is traced."""
    export = export_network(Mixed().eval(), torch.randn(3, 8, 4))
    assert find_folds(export.program) == []
    honest = check_weights(export.model, export.program)
    assert (honest.problems, honest.untraced) == ((), 0)
    model = copied(export.model)
    node = next(n for n in model.graph.node if n.op_type == "DepthToSpace")
    attribute = next(a for a in node.attribute if a.name == "mode")
    assert attribute.s == b"CRD"
    attribute.s = b"DCR"
    (problem,) = check_weights(model, export.program).problems
    assert f"mode of {node.name} (DepthToSpace) is DCR, expected CRD" in problem


@pytest.fixture(scope="module")
def unfolded(proofs: dict[str, ParityRun]) -> onnx.ModelProto:
    """The network as exported by a tool that keeps BatchNorms in the graph."""
    proof = proofs["bn-cnn"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            proof.program,
            proof.subject.example,
            dynamo=True,
            opset_version=20,
            verbose=False,
            optimize=False,
        )
    assert program is not None
    return program.model_proto


def test_a_batchnorm_that_was_not_folded_is_compared_tensor_by_tensor(
    proofs: dict[str, ParityRun], unfolded: onnx.ModelProto
) -> None:
    """A BatchNorm that stays in the graph must have the checkpoint's statistics."""
    assert _check(proofs["bn-cnn"], unfolded).problems == ()
    model = copied(unfolded)
    variance = next(t for t in model.graph.initializer if t.name.endswith("running_var"))
    values = numpy_helper.to_array(variance) * np.float32(1.01)
    variance.CopyFrom(numpy_helper.from_array(values, variance.name))
    (problem,) = _check(proofs["bn-cnn"], model).problems
    assert variance.name in problem


def test_the_epsilon_of_a_batchnorm_that_was_not_folded_is_compared(
    proofs: dict[str, ParityRun], unfolded: onnx.ModelProto
) -> None:
    """Weights alone do not reveal it, and samples only where a variance is small."""
    model = copied(unfolded)
    node = next(n for n in model.graph.node if n.op_type == "BatchNormalization")
    _set(node, "epsilon", 1e-3)
    (problem,) = _check(proofs["bn-cnn"], model).problems
    assert f"epsilon of {node.name} (BatchNormalization) is 0.001, expected 1e-05" in problem


@pytest.mark.parametrize(
    ("network", "op_type", "attribute", "value"),
    [
        ("normalised", "LayerNormalization", "epsilon", 1e-5),
        ("normalised", "InstanceNormalization", "epsilon", 1e-3),
        ("normalised", "LeakyRelu", "alpha", 0.202),
        ("normalised", "Elu", "alpha", 0.707),
        ("normalised", "MaxPool", "ceil_mode", 0),
        ("normalised", "Softmax", "axis", 0),
        ("mobile", "HardSigmoid", "alpha", 1.01 / 6),
        ("mobile", "Conv", "group", 2),
    ],
)
def test_a_changed_attribute_is_named_without_a_sample(
    network: str, op_type: str, attribute: str, value: float
) -> None:
    """Attributes are compared with the arguments of the program's operators."""
    export = exported(network)
    model = copied(export.model)
    node = next(n for n in model.graph.node if n.op_type == op_type)
    _set(node, attribute, value)
    (problem,) = check_weights(model, export.program).problems
    assert f"{attribute} of {node.name} ({op_type}) is {value:.7g}, expected" in problem


@pytest.mark.parametrize(("bound", "value"), [(6.0, 60.0), (0.1307, 0.13), (0.3081, 0.31)])
def test_a_changed_number_of_the_code_is_named_without_a_sample(bound: float, value: float) -> None:
    """A ReLU6's bound that no sample reaches, and the inputs' mean and deviation, are compared."""
    export = exported("mobile")
    model = copied(export.model)
    tensor = next(
        t
        for t in model.graph.initializer
        if t.data_type == onnx.TensorProto.FLOAT
        and np.array_equal(numpy_helper.to_array(t), np.float32(bound))
    )
    tensor.CopyFrom(numpy_helper.from_array(np.full((), value, np.float32), tensor.name))
    (problem,) = check_weights(model, export.program).problems
    assert f"is {value:g}, expected {bound:g}" in problem


def test_freezing_keeps_one_of_two_equal_tensors() -> None:
    """PyTorch's encoders start with equal layers, but a tensor without any copy is missing."""
    layers = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3)).eval()
    layers[2].load_state_dict(layers[0].state_dict())
    x = torch.randn(4, 3)
    program = torch.export.export(layers, (x,))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript's deprecation
        with torch.no_grad():
            constants = frozen_constants(torch.jit.freeze(torch.jit.trace(layers, x)))
    assert len(constants) == 2
    assert check_frozen(constants, program).problems == ()
    program.state_dict["2.weight"].data[0, 0] += 1
    changed = torch.export.export(program.module(), (x,))
    assert "2.weight is not in the file" in check_frozen(constants, changed).problems


def test_the_constants_of_a_frozen_file_are_the_modules(proofs: dict[str, ParityRun]) -> None:
    """Frozen TorchScript has no names, but each number is the module's or a fold of it."""
    for model, folded in {"cnn": 0, "bn-cnn": 6, "mlp": 2}.items():
        module = copy.deepcopy(proofs[model].subject.module)
        program = proofs[model].translation.program
        honest = check_frozen(frozen_constants(_frozen(module, proofs[model])), program)
        assert (honest.problems, honest.folded) == ((), folded)
        assert honest.error <= FOLD_ERROR
        name = next(n for n, p in module.named_parameters() if p.ndim > 1)
        with torch.no_grad():
            module.get_parameter(name).view(-1)[0] *= 1.01
        spoilt = check_frozen(frozen_constants(_frozen(module, proofs[model])), program)
        assert spoilt.problems or not spoilt.error <= FOLD_ERROR


def test_what_no_rule_covers_is_counted_and_said(proofs: dict[str, ParityRun]) -> None:
    """An additional constant is a problem in a sum, and is counted after an unknown operator."""
    export = exported("rnn")
    model = copied(export.model)
    giver = next(n for n in model.graph.node if n.op_type == "Gemm")
    numbers = np.arange(1, 4, dtype=np.float32)
    model.graph.initializer.append(numpy_helper.from_array(numbers, "numbers"))
    last = giver.output[0]
    giver.output[0] = "before"
    model.graph.node.append(onnx.helper.make_node("Add", ["before", "numbers"], [last], "more"))
    found = check_weights(model, export.program)
    assert found.problems or (found.untraced == 3 and "only: 3 numbers" in found.summary())
    honest = check_weights(export.model, export.program)
    assert "100.00% of" in honest.summary()
    assert f"{honest.settings_untraced} attributes" in honest.summary()


class Chosen(nn.Module):
    """Columns selected by an integer buffer, with factors that are not in the state_dict."""

    def __init__(self) -> None:
        super().__init__()
        self.columns: Tensor
        self.factors: Tensor
        self.register_buffer("columns", torch.tensor([2, 0, 3]))
        self.register_buffer("factors", torch.rand(3), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Float [N, 4] to float [N, 3]."""
        return x[:, self.columns] * self.factors


def test_an_integer_buffer_is_compared() -> None:
    """Another column is detected, although no weight changed."""
    export = export_network(Chosen().eval(), torch.randn(4, 4))
    assert check_weights(export.model, export.program).problems == ()
    model = copied(export.model)
    tensor = next(
        t for t in model.graph.initializer if numpy_helper.to_array(t).ravel().tolist() == [2, 0, 3]
    )
    values = numpy_helper.to_array(tensor).copy()
    values.flat[0] = 1
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    (problem,) = check_weights(model, export.program).problems
    assert "columns" in problem
    assert "is 1, expected 2" in problem


def test_a_program_is_held_to_buffers_outside_its_state() -> None:
    """A .pt2 file keeps buffers outside the state_dict as constants, which are compared."""
    program = torch.export.export(Chosen().eval(), (torch.randn(4, 4),))
    arrays = program_arrays(program)
    assert check_state(arrays, arrays).problems == ()
    spoilt = {n: a * 2 if a.dtype == np.float32 else a for n, a in arrays.items()}
    (problem,) = check_state(spoilt, arrays).problems
    assert "factors" in problem


def test_a_tensor_may_be_cut_joined_and_summed() -> None:
    """An exporter may split in_proj, and concatenate or add two biases."""
    weight = Expected("w", np.arange(12, dtype=np.float32).reshape(6, 2), None, frozenset(["w"]))
    pieces = {piece.name: piece.values.tolist() for piece in cut(weight, 4)}
    assert list(pieces) == ["w[0:2]", "w[2:4]", "w[4:6]"]
    assert pieces["w[2:4]"] == [[4, 5], [6, 7]]
    first = Expected("a", np.array([0.1, 2], np.float32), None, frozenset(["a"]))
    second = Expected("b", np.array([0.3, 4], np.float32), None, frozenset(["b"]))
    joined, added = combined([first, second])
    assert joined.values.tolist() == [*first.values, *second.values]
    assert joined.sources == added.sources == {"a", "b"}
    assert added.values.tolist() == (first.values.astype(float) + second.values).tolist()


def _frozen(module: nn.Module, proof: ParityRun) -> torch.jit.ScriptModule:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript's deprecation
        traced = torch.jit.trace(module, proof.subject.example)
        frozen: torch.jit.ScriptModule = torch.jit.freeze(traced)
        return frozen


def _set(node: onnx.NodeProto, name: str, value: float) -> None:
    kept = [a for a in node.attribute if a.name != name]
    del node.attribute[:]
    node.attribute.extend([*kept, onnx.helper.make_attribute(name, value)])
