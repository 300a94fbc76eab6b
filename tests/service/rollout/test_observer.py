"""Counts for each version, and the comparison of a shadow's answers."""

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from loadtest.server import REPOSITORY
from service.models.loader import VerifiedModel, load_version
from service.rollout.comparison import KEPT_SAMPLES, AnswerComparer, WorstSamples
from service.settings import Settings
from service.versions.state import Limits, RolloutError
from tests.service.rollout.made_versions import (
    NAME,
    make_digits_version,
    make_version,
    samples,
    weights,
)


def _load(tmp_path: Path, version: str, seed: int) -> VerifiedModel:
    source = make_version(tmp_path / "sources", version, seed)
    folder = tmp_path / NAME / version
    folder.parent.mkdir(exist_ok=True)
    source.rename(folder)
    return load_version(folder, Settings(bundles=tmp_path, device="cpu"), NAME)


def test_other_weights_are_compared_by_their_labels(tmp_path: Path) -> None:
    """Each label that differs counts as one disagreement."""
    stable, other = (_load(tmp_path, v, seed) for v, seed in (("a", 0), ("b", 1)))
    comparer = AnswerComparer(stable, other, Limits())
    assert not comparer.same_weights
    inputs = samples(100, seed=5)
    expected, answers = ({"logits": inputs @ weights(seed)} for seed in (0, 1))
    found = list(comparer.compare(expected, answers))
    differ = expected["logits"].argmax(axis=1) != answers["logits"].argmax(axis=1)
    assert [one.is_disagreement for one in found] == differ.tolist()
    assert 0 < differ.sum() < 100
    first = found[int(np.flatnonzero(differ)[0])]
    assert "became" in first.words
    broken = {"logits": np.full_like(answers["logits"], np.nan)}
    assert all(one.is_disagreement for one in comparer.compare(expected, broken))


def test_a_largest_difference_may_be_set(tmp_path: Path) -> None:
    """With this setting, values are compared relative to the largest golden answer."""
    stable, other = (_load(tmp_path, v, seed) for v, seed in (("a", 0), ("b", 1)))
    comparer = AnswerComparer(stable, other, Limits(max_difference=0.1))
    scale = float(np.abs(stable.samples.fp32["logits"]).max())
    expected = {"logits": np.zeros((2, 3), np.float32)}
    answers = {"logits": np.array([[0.09 * scale, 0, 0], [0, 0.11 * scale, 0]], np.float32)}
    found = [one.is_disagreement for one in comparer.compare(expected, answers)]
    assert found == [False, True]


def test_the_same_weights_are_held_to_the_tolerance(tmp_path: Path) -> None:
    """Answers may differ by the sum of both versions' tolerances, and no more."""
    for version in ("v1", "v2"):
        make_digits_version(tmp_path / "cnn", version)
    settings = Settings(bundles=tmp_path, device="cpu")
    one, two = (load_version(tmp_path / "cnn" / v, settings, "cnn") for v in ("v1", "v2"))
    comparer = AnswerComparer(one, two, Limits())
    assert comparer.same_weights
    golden = one.samples.fp32["logits"]
    bound = 2 * float(one.tolerance.scaled_error or 0) * float(np.abs(golden).max())
    for factor, wrong in ((0.5, False), (2.0, True)):
        moved = golden.copy()
        moved[3, 4] += np.float32(factor * bound)
        found = [c.is_disagreement for c in comparer.compare({"logits": golden}, {"logits": moved})]
        assert found == [wrong and i == 3 for i in range(len(golden))]


def test_values_without_labels_need_a_largest_difference(tmp_path: Path) -> None:
    """Without it, nothing limits how much a retrained regression may differ."""
    pair = [_load(tmp_path, v, seed) for v, seed in (("a", 0), ("b", 1))]
    for model in pair:
        (output,) = model.manifest.outputs
        values = output.model_copy(update={"kind": "values"})
        object.__setattr__(
            model, "manifest", model.manifest.model_copy(update={"outputs": (values,)})
        )
    with pytest.raises(RolloutError, match="--max-difference"):
        AnswerComparer(pair[0], pair[1], Limits())


def test_the_worst_samples_are_kept() -> None:
    """The worst samples that fit are kept, worst first, and the file contains them."""
    worst = WorstSamples()
    assert worst.take_changes() is None
    generator = np.random.default_rng(0)
    differences = generator.random(100)
    for difference in differences:
        array = np.full(3, difference, np.float32)
        worst.add(float(difference), {"x": array}, {"y": array}, {"y": -array})
    worst.add(9.0, {"x": np.zeros(100_000)}, {}, {})  # too large to keep
    content = worst.take_changes()
    assert content is not None
    assert worst.take_changes() is None
    with np.load(io.BytesIO(content)) as arrays:
        kept = [float(arrays[f"{i}/difference"]) for i in range(KEPT_SAMPLES)]
        assert f"{KEPT_SAMPLES}/difference" not in arrays.files
        assert arrays["0/shadow/y"][0] == -np.float32(kept[0])
    assert kept == sorted(differences, reverse=True)[:KEPT_SAMPLES]


def test_a_canary_that_hangs_is_slow() -> None:
    """Requests that get no answer in time count with their durations."""
    code = """
import asyncio, tempfile, time
from pathlib import Path
from service.core.handler import Handler
from service.core.messages import Request, Target
from service.models.health import HealthMonitor
from service.models.loader import load_version
from service.models.registry import ModelRegistry, ModelVersions
from service.observability.metrics import Metrics
from service.rollout.observer import VersionObserver
from service.settings import Settings
from service.versions.state import DesiredState
from tests.service.rollout.made_versions import make_version, samples

folder = Path(tempfile.mkdtemp())
settings = Settings(bundles=folder, device="cpu", timeout_s=0.2, engine="thread")
for version in ("a", "b"):
    (folder / "tiny").mkdir(exist_ok=True)
    make_version(folder / "sources", version).rename(folder / "tiny" / version)
a, b = (load_version(folder / "tiny" / v, settings, "tiny") for v in ("a", "b"))
metrics = Metrics()
models = ModelRegistry([a], settings, metrics)
canary = models.prepare(b)
canary.batcher._predict = lambda inputs: time.sleep(1)
stable = models.get("tiny")
canary_of_all = {"version": "b", "share": 1}
state = DesiredState(generation=2, stable="a", canary=canary_of_all, reason="", changed_s=0)
metrics.set_rollout("tiny", 2, state.versions)
observer = VersionObserver(state, stable, None, metrics)
models.replace("tiny", ModelVersions(stable, canary, 1.0, None, observer))

async def main():
    handler = Handler(models, settings, HealthMonitor(models, metrics, 60), metrics)
    done = asyncio.get_running_loop().create_future()
    body = samples(1).tobytes()
    now_s = time.perf_counter()
    request = Request(Target("infer", "tiny"), body, "", "0", b"1", now_s, lambda: True)
    handler.handle(request, done.set_result)
    response = await done
    assert response.status == 504, response
    found = observer.snapshot()["b"]
    assert sum(found.durations) == 1 and found.requests == 0

asyncio.run(main())
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=REPOSITORY)
