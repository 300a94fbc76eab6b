"""The output columns of scored rows: ``AnswerColumns``. Shape suffixes: N rows, K labels."""

import numpy as np
import pyarrow as pa

from export.bundle.manifest import Manifest, TensorSpec
from export.bundle.metrics import Array, Arrays
from service.adapters.digits import PROBABILITIES
from service.adapters.image_classification import find_scores, to_probabilities
from service.score.columns import takes_pictures

NAMES = pa.dictionary(pa.int32(), pa.string())
NOT_FINITE = "the model's output contains NaN or infinity; check the row's values"


class AnswerColumns:
    """Converts a model's outputs to Arrow columns.

    Classifiers get ``label``, ``probabilities`` and their outputs that are neither logits nor
    probabilities; other models get all outputs. Then come ``model``, ``version`` and ``proof``.
    """

    def __init__(self, manifest: Manifest, proof: str, id_schema: pa.Schema) -> None:
        """Make the schema from the manifest, the proof's id and the columns that identify a row."""
        self._scores = _find_scores(manifest) if takes_pictures(manifest) else None
        self._outputs = [
            spec for spec in manifest.outputs if self._scores is None or spec.kind == "values"
        ]
        if self._scores is not None and self._scores in self._outputs:
            self._outputs.remove(self._scores)
        self._labels = pa.array(manifest.labels, pa.string())
        self._names = {"model": manifest.name, "version": manifest.version, "proof": proof}
        self.schema = pa.schema([*id_schema, *self._fields()])

    def encode(self, ids: pa.RecordBatch, outputs: Arrays) -> tuple[pa.RecordBatch, Array]:
        """Assemble the columns of a batch.

        Returns:
            The columns of the rows whose outputs are finite, and a mask of these rows, bool [N].
        """
        used = [*self._outputs, *([self._scores] if self._scores else [])]
        finite = _find_finite([outputs[spec.name] for spec in used])
        if not finite.all():
            outputs = {name: array[finite] for name, array in outputs.items()}
            ids = ids.filter(pa.array(finite))
        columns: list[pa.Array] = [*ids.columns]
        if self._scores is not None:
            probabilities_NK = to_probabilities(outputs[self._scores.name], self._scores)
            best_N = probabilities_NK.argmax(axis=1).astype(np.int32)
            columns.append(pa.DictionaryArray.from_arrays(pa.array(best_N), self._labels))
            columns.append(_encode_values(probabilities_NK, self._scores))
        columns += [_encode_values(outputs[spec.name], spec) for spec in self._outputs]
        indices = pa.array(np.zeros(len(ids), np.int32))
        columns += [
            pa.DictionaryArray.from_arrays(indices, pa.array([name]))
            for name in self._names.values()
        ]
        return pa.RecordBatch.from_arrays(columns, schema=self.schema), finite

    def _fields(self) -> list[pa.Field]:
        fields = []
        if self._scores is not None:
            is_given = self._scores.kind == "probabilities" or self._scores.name == PROBABILITIES
            dtype = self._scores.dtype if is_given else np.dtype(np.float64)
            type_ = pa.list_(pa.from_numpy_dtype(dtype), len(self._labels))
            fields += [pa.field("label", NAMES), pa.field("probabilities", type_)]
        fields += [pa.field(spec.name, _arrow_type(spec)) for spec in self._outputs]
        return fields + [pa.field(name, NAMES) for name in self._names]


def _find_scores(manifest: Manifest) -> TensorSpec:
    """Return the output whose largest value gives the label, as in the service's adapters."""
    for spec in manifest.outputs:
        if spec.name == PROBABILITIES and spec.shape == (-1, len(manifest.labels)):
            return spec.model_copy(update={"kind": "probabilities"})
    return find_scores(manifest)


def _arrow_type(spec: TensorSpec) -> pa.DataType:
    found = pa.from_numpy_dtype(spec.dtype)
    for size in reversed(spec.shape[1:]):
        found = pa.list_(found, size) if not spec.bounds else pa.list_(found)
    return found


def _encode_values(array: Array, spec: TensorSpec) -> pa.Array:
    """Convert values [N, ...] to numbers, or to lists nested like their shape."""
    found = pa.array(np.ascontiguousarray(array).reshape(-1))
    for axis in range(array.ndim - 1, 0, -1):
        size = array.shape[axis]
        if spec.bounds:
            offsets = np.arange(0, len(found) + 1, size, dtype=np.int32)
            found = pa.ListArray.from_arrays(pa.array(offsets), found)
        else:
            found = pa.FixedSizeListArray.from_arrays(found, size)
    return found


def _find_finite(arrays: list[Array]) -> Array:
    """Return a mask, bool [N], of the rows without NaN or infinity in values [N, ...]."""
    found = np.ones(len(arrays[0]), np.bool_)
    for array in arrays:
        if array.dtype.kind == "f":
            finite = np.isfinite(array)
            if not finite.all():
                found &= finite.reshape(len(array), -1).all(axis=1)
    return found
