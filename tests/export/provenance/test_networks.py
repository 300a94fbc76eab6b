"""Every number of an honest file is traced and every change is detected, for many networks."""

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from export.bundle.metrics import Array
from export.bundle.tolerances import FOLD_ERROR
from export.convert.onnx_export import OnnxExport
from export.provenance.figures import WeightFigures
from export.provenance.regions import split_regions, stored_tensors
from export.provenance.rules import stated
from export.provenance.trace import check_weights
from tests.export.provenance.networks import NETWORKS, copied, exported

MOST_ELEMENTS = 6  # per tensor, changed one by one


@pytest.fixture(scope="module")
def exports() -> dict[str, OnnxExport]:
    """Every network, exported once; tests must not change them."""
    return {name: exported(name) for name in NETWORKS}


def _is_killed(found: WeightFigures) -> bool:
    return bool(found.problems) or not found.error <= FOLD_ERROR


@pytest.mark.parametrize("name", NETWORKS)
def test_an_honest_file_is_traced_to_its_last_number(
    name: str, exports: dict[str, OnnxExport]
) -> None:
    """There is no false alarm, and no float number depends on samples for its proof."""
    found = check_weights(exports[name].model, exports[name].program)
    assert found.problems == ()
    assert found.error <= FOLD_ERROR / 2
    assert found.consumed > 0
    assert found.untraced == 0
    print(name, found.model_dump())  # noqa: T201 - the table of this test, with pytest -s


@pytest.mark.parametrize("name", NETWORKS)
def test_a_file_that_nobody_simplified_is_no_false_alarm(name: str) -> None:
    """Before folding, the graph has other nodes but no problem."""
    raw = exported(name, optimize=False)
    found = check_weights(raw.model, raw.program)
    assert found.problems == ()
    assert found.error <= FOLD_ERROR / 2
    assert found.untraced <= 2  # numbers from which others are computed


@pytest.mark.parametrize("name", NETWORKS)
def test_every_change_of_one_number_is_seen(name: str, exports: dict[str, OnnxExport]) -> None:
    """In every float tensor that a node uses, some elements are 1% off, one at a time."""
    export = exports[name]
    used = {
        use.name for region in split_regions(export.model, export.program) for use in region.uses
    }
    missed = []
    for tensor_name, values in stored_tensors(export.model).items():
        if tensor_name not in used or values.dtype != np.float32:
            continue
        for position in _positions(values):
            spoilt = copied(export.model)
            _replace(spoilt, tensor_name, _changed(values, position))
            if not _is_killed(check_weights(spoilt, export.program)):
                missed.append((tensor_name, position))
    assert missed == []


@pytest.mark.parametrize("name", NETWORKS)
def test_two_tensors_of_one_shape_do_not_change_places(
    name: str, exports: dict[str, OnnxExport]
) -> None:
    """Swapped tensors are detected, although every number is the checkpoint's."""
    export = exports[name]
    floats = {n: a for n, a in stored_tensors(export.model).items() if a.dtype == np.float32}
    used = {
        use.name for region in split_regions(export.model, export.program) for use in region.uses
    }
    names = sorted(used & set(floats))
    missed = []
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            one, other = floats[first], floats[second]
            if one.shape != other.shape or np.array_equal(one, other):
                continue
            spoilt = copied(export.model)
            _replace(spoilt, first, other)
            _replace(spoilt, second, one)
            if not _is_killed(check_weights(spoilt, export.program)):
                missed.append((first, second))
    assert missed == []


@pytest.mark.parametrize("name", ["normalised", "mobile", "audio", "encoder"])
def test_every_attribute_that_is_traced_is_guarded(
    name: str, exports: dict[str, OnnxExport]
) -> None:
    """Changing any float or integer attribute is a problem, or it was never counted."""
    export = exports[name]
    honest = check_weights(export.model, export.program)
    missed = 0
    for position, node in enumerate(export.model.graph.node):
        for attribute in stated(node):
            spoilt = copied(export.model)
            _spoil(next(a for a in spoilt.graph.node[position].attribute if a.name == attribute))
            missed += not _is_killed(check_weights(spoilt, export.program))
    assert missed <= honest.settings_untraced


def _positions(values: Array) -> list[int]:
    if values.size <= MOST_ELEMENTS:
        return list(range(values.size))
    generator = np.random.default_rng(0)
    inside = generator.choice(values.size - 2, MOST_ELEMENTS - 2, replace=False) + 1
    return [0, values.size - 1, *(int(i) for i in inside)]


def _changed(values: Array, position: int) -> Array:
    changed = values.copy()
    value = float(changed.flat[position])
    changed.flat[position] = value * 1.01 if np.isfinite(value) and value else 1e-3
    return changed


def _replace(model: onnx.ModelProto, name: str, values: Array) -> None:
    tensor = next(t for t in model.graph.initializer if t.name == name)
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values), name))


def _spoil(attribute: onnx.AttributeProto) -> None:
    if attribute.type == onnx.AttributeProto.FLOAT:
        attribute.f *= 1.01
    elif attribute.type == onnx.AttributeProto.INT:
        attribute.i += 1
    elif attribute.type == onnx.AttributeProto.INTS:
        attribute.ints[0] += 1
    else:
        attribute.s = b"other"
