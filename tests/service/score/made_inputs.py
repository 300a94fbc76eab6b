"""Small inputs for scoring, and functions that read the results."""

import json
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from export.bundle.golden import Golden
from export.bundle.metrics import Array
from export.bundle.session import OnnxModel
from service.score.run import Options
from tests.tiny import SERVED_BUNDLES

CNN = SERVED_BUNDLES / "cnn"
GOLDEN = Golden.load(CNN / "golden.npz")
PIXELS = 784
BATCH = 64


def make_digits(count: int) -> Array:
    """Golden samples made distinct by a pixel that counts, uint8 [N, 28, 28]."""
    images = GOLDEN.inputs["images"][np.arange(count) % len(GOLDEN)].copy()
    images[:, 0, :4] = np.arange(count, dtype="<u4").view(np.uint8).reshape(count, 4)
    return images


def as_binary(images: Array) -> pa.Array:
    """A column of fixed-size binary."""
    return pa.array([image.tobytes() for image in images], pa.binary(PIXELS))


def as_lists(images: Array) -> pa.Array:
    """A column of fixed-size lists."""
    return pa.FixedSizeListArray.from_arrays(pa.array(images.reshape(-1)), PIXELS)


def write_parquet(path: Path, columns: dict[str, Any], row_group_size: int = 100) -> Path:
    """Write a Parquet file of several row groups, and return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, row_group_size=row_group_size)
    return path


def write_idx(path: Path, values: Array, rows: int | None = None) -> Path:
    """Write an IDX file of bytes; its header may announce another number of rows."""
    shape = (len(values) if rows is None else rows, *values.shape[1:])
    path.parent.mkdir(parents=True, exist_ok=True)
    head = struct.pack(f">BBBB{len(shape)}I", 0, 0, 8, len(shape), *shape)
    path.write_bytes(head + values.tobytes())
    return path


def make_options(input_: Path | str, output: Path | str, **further: Any) -> Options:
    """Options of a run with the CNN, one thread per actor and no progress bar."""
    given: dict[str, Any] = {"bundle": CNN, "inputs": {}, "threads": 1, "device": "cpu"}
    return Options(
        input=str(input_), output=str(output), **{**given, "show_progress": False, **further}
    )


def ask_model(images: Array, batch: int = BATCH) -> Array:
    """The CNN's probabilities, computed by the service's session code, float32 [N, 10]."""
    model = OnnxModel(CNN / "model.onnx", "cpu", 1)
    parts = [model({"images": images[i : i + batch]}) for i in range(0, len(images), batch)]
    return np.concatenate([part["probabilities"] for part in parts])


def read_output(folder: Path) -> pa.Table:
    """All answers, in the order of the parts."""
    return pq.read_table(folder)


def read_probabilities(table: pa.Table) -> Array:
    """The column of probabilities, float32 [N, 10]."""
    column = table["probabilities"].combine_chunks()
    return np.asarray(column.flatten().to_numpy().reshape(len(table), -1))


def read_quarantine(folder: Path) -> Sequence[dict[str, Any]]:
    """The quarantined rows; empty if there is no such file."""
    path = folder / "_quarantine.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
