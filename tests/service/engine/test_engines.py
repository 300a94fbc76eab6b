"""Every served variant is verified first, on whichever runtime."""

import importlib
import importlib.util
import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from export.bundle.golden import Golden, check_golden
from export.bundle.manifest import BundleError
from export.bundle.metrics import Arrays
from export.bundle.session import OnnxModel
from export.bundle.store import Bundle
from service.engine import engines
from service.engine.engines import BucketedEngine, batch_buckets, open_engine, required_tolerance
from service.models.loader import VerificationError, load_verified_models
from service.settings import Settings
from tests.rehash import rehash
from tests.tiny import SERVED_BUNDLES

BUNDLE = Bundle.open(SERVED_BUNDLES / "cnn")
GOLDEN = Golden.load(BUNDLE.path("golden"))
IMAGES = GOLDEN.inputs["images"]
VARIANTS = ["onnx", "onnx-fp16", "onnx-int8", "torchscript", "torchscript-frozen"]
without_torch = pytest.mark.skipif(
    importlib.util.find_spec("torch") is not None, reason="PyTorch is installed here"
)
with_torch = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None, reason="needs PyTorch, which the service does not"
)


@pytest.fixture(autouse=True)
def _threads_as_before() -> Iterator[None]:
    """Restore PyTorch's thread count, which the TorchScript engine sets for the whole process."""
    if importlib.util.find_spec("torch") is None:
        yield
        return
    torch = importlib.import_module("torch")
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def _settings(bundles: Path = SERVED_BUNDLES, **fields: object) -> Settings:
    return Settings.model_validate({"bundles": bundles, "device": "cpu", **fields})


@pytest.mark.parametrize(
    "variant", [pytest.param(v, marks=with_torch if v[:5] == "torch" else ()) for v in VARIANTS]
)
def test_each_variant_is_proven_and_named(variant: str) -> None:
    """Each variant answers its golden samples within its own tolerance and reports its name."""
    models = load_verified_models(_settings(variant=variant))
    assert [model.variant for model in models] == [variant] * 2
    assert all(model.golden.passed for model in models)
    provider = "TorchScript-CPU" if variant.startswith("torch") else "CPUExecutionProvider"
    assert {model.engine.provider for model in models} == {provider}


def test_a_reduced_variant_is_held_to_its_own_tolerance() -> None:
    """int8 and fp16 have their own tolerances, and the exact file's is far tighter."""
    bounds = {
        variant: required_tolerance(BUNDLE.manifest, "cpu", _settings(variant=variant)).scaled_error
        for variant in ("onnx", "onnx-fp16", "onnx-int8", "torchscript")
    }
    assert bounds["onnx"] == bounds["torchscript"] == 2e-6
    assert bounds["onnx-fp16"] == 2e-3
    assert bounds["onnx-int8"] is None  # judged by its signal-to-noise ratio
    tf32 = required_tolerance(BUNDLE.manifest, "cuda", _settings(tf32=True))
    assert tf32.variant == "onnx-tf32"


def test_a_reduced_variant_in_place_of_the_exact_one_stops_the_start(served_bundle: Path) -> None:
    """Golden samples reveal the int8 file under the exact file's name."""
    (served_bundle / "model.onnx").write_bytes((served_bundle / "model.int8.onnx").read_bytes())
    rehash(served_bundle, "model.onnx")
    with pytest.raises(VerificationError, match=r"cnn \(onnx\) fails its golden samples"):
        load_verified_models(_settings(served_bundle.parent))


def test_a_variant_that_the_bundle_lacks_stops_the_start(served_bundle: Path) -> None:
    """The message gives the bundle's reason or the available variants."""
    path = served_bundle / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["files"] = [f for f in manifest["files"] if f["path"] != "model.int8.onnx"]
    manifest["not_built"] = {"onnx-int8": "no samples to calibrate with"}
    path.write_text(json.dumps(manifest))
    (served_bundle / "model.int8.onnx").unlink()
    with pytest.raises(BundleError, match="has no onnx-int8 model: no samples to calibrate"):
        load_verified_models(_settings(served_bundle.parent, variant="onnx-int8"))


def test_a_variant_without_its_own_verdict_is_not_served(served_bundle: Path) -> None:
    """The exact file's verdict does not cover other variants."""
    path = served_bundle / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["parity"] = [v for v in manifest["parity"] if v["precision"] != "int8"]
    path.write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="no passed parity verdict for its onnx-int8 model"):
        load_verified_models(_settings(served_bundle.parent, variant="onnx-int8"))
    assert load_verified_models(_settings(served_bundle.parent))


@without_torch
def test_torchscript_without_pytorch_is_refused_in_words() -> None:
    """The message names the missing package and the variants that could be served instead."""
    with pytest.raises(BundleError, match="pip install torch, or serve the variant onnx"):
        load_verified_models(_settings(variant="torchscript"))


def test_int8_is_not_served_on_cuda() -> None:
    """int8 is refused on CUDA, whose provider would compute in fp32."""
    with pytest.raises(BundleError, match="onnx-int8 is only for the CPU"):
        open_engine(BUNDLE, "cuda", _settings(variant="onnx-int8"))


class _Remembering:
    """The real engine, which records the batch sizes that it runs."""

    def __init__(self, *, fixed_buffers: bool) -> None:
        self._model = OnnxModel(BUNDLE.model_path("onnx"), "cpu", fixed_buffers=fixed_buffers)
        self.device, self.provider = self._model.device, self._model.provider
        self.sizes: list[int] = []

    def __call__(self, inputs: Arrays) -> Arrays:
        self.sizes.append(len(inputs["images"]))
        return self._model(inputs)


@pytest.mark.parametrize("fixed_buffers", [False, True])
def test_batches_are_filled_up_to_a_few_sizes(fixed_buffers: bool) -> None:
    """As on CUDA, batches are padded with zeros or split, without changing any answer."""
    engine = _Remembering(fixed_buffers=fixed_buffers)
    bucketed = BucketedEngine(engine, batch_buckets(16))
    exact = OnnxModel(BUNDLE.model_path("onnx"), "cpu")
    answers = {count: bucketed({"images": IMAGES[:count]}) for count in (3, 16, 5, 40)}
    assert engine.sizes == [4, 16, 8, 16, 16, 8]
    for count, answer in answers.items():  # a reused buffer does not overwrite earlier answers
        expected = exact({"images": IMAGES[:count]})["logits"]
        assert answer["logits"].shape == expected.shape
        bound = 2e-6 * np.abs(expected).max()
        assert np.abs(answer["logits"] - expected).max() <= bound


def test_threads_are_two_where_each_worker_has_two_cores(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The default follows the CPU affinity and the cgroup quota; a setting overrides it."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(4)))
    quota = tmp_path / "cpu.max"
    monkeypatch.setattr(engines, "CPU_QUOTA", quota)
    assert engines.count_cores() == 4
    assert [engines.choose_threads(_settings(workers=n)) for n in (1, 2, 3, 4)] == [2, 2, 1, 1]
    for text, cores, threads in (("150000 100000", 1, 1), ("300000 100000", 3, 2), ("max 1", 4, 2)):
        quota.write_text(f"{text}\n")
        assert engines.count_cores() == cores
        assert engines.choose_threads(_settings()) == threads
    assert engines.choose_threads(_settings(threads=0)) == 0
    assert engines.choose_threads(_settings(threads=7, workers=9)) == 7


def test_both_sessions_of_two_threads_are_held_to_the_golden_samples(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Batches of 1 and 7 run in one session, batches of 64 in the other, all answers right."""
    monkeypatch.setattr(engines, "count_cores", lambda: 2)
    monkeypatch.setattr(engines, "WORTH_TWO_THREADS_S", 0.0)
    engine = open_engine(BUNDLE, "cpu", _settings())
    assert isinstance(engine, engines.TwoThreadEngine)
    used = []
    for name in ("_single", "_double"):
        session = getattr(engine, name)

        def remember(inputs: Arrays, name: str = name, session: OnnxModel = session) -> Arrays:
            used.append((name, len(inputs["images"])))
            return session(inputs)

        monkeypatch.setattr(engine, name, remember)
    tolerance = required_tolerance(BUNDLE.manifest, "cpu", _settings())
    assert check_golden(GOLDEN, engine, BUNDLE.manifest.outputs, tolerance).passed
    assert ("_single", 1) in used
    assert ("_single", 7) in used
    assert ("_double", len(GOLDEN)) in used
    assert isinstance(open_engine(BUNDLE, "cpu", _settings(threads=2)), OnnxModel)


def test_two_threads_run_batches_that_take_long_enough_in_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The second session starts at the smallest batch size that takes .3 ms, if there is one."""
    monkeypatch.setattr(engines, "count_cores", lambda: 2)
    s_per_sample = 0.0
    times_s = lambda engine, batch: s_per_sample * len(batch["images"])  # noqa: E731
    monkeypatch.setattr(engines, "_shortest_s", times_s)
    smallest = {}
    for s_per_sample in (1e-3, 0.3e-3 / 16, 0.29e-3 / 16, 0.29e-3 / 32):
        engine = open_engine(BUNDLE, "cpu", _settings())
        smallest[s_per_sample] = engines.count_to_check(engine)
        assert isinstance(engine, engines.TwoThreadEngine | OnnxModel)
    assert list(smallest.values()) == [8, 16, 32, 1]
    assert len(GOLDEN) >= max(smallest.values())


def test_buckets_are_powers_of_two_and_the_largest_batch() -> None:
    """The warmed-up batch sizes are those that run later."""
    assert batch_buckets(64) == [1, 2, 4, 8, 16, 32, 64]
    assert batch_buckets(48) == [1, 2, 4, 8, 16, 32, 48]
    assert batch_buckets(1) == [1]
