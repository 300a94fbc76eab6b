"""The catalogue's networks are built and served over HTTP, and answer like their modules.

These tests are slow: each network is exported in every format and proven, then all are served.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from export.bundle.manifest import DTYPES, Manifest, TensorSpec
from export.bundle.metrics import Array, Arrays, scaled_difference
from export.bundle.store import Bundle
from export.formats import VARIANTS
from export.model.sizes import with_sizes
from export.model.under_test import read_samples
from export.parity.reference import eager_predict
from export.parity.schema import ParityFigures
from loadtest.server import running_service
from tests.export.catalogue import NETWORKS, network_under_test, write_samples
from tests.export.catalogue_builds import CatalogueBuild, build_network

pytestmark = pytest.mark.slow

ASKED = 5
LEAST_MUTANTS = 6
HEADER_LENGTH = "inference-header-content-length"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, CatalogueBuild]:
    """Each network, built in all variants; tests detect failures."""
    folder = tmp_path_factory.mktemp("catalogue")
    found = {}
    for name in NETWORKS:
        sources = folder / "sources" / name
        sources.mkdir(parents=True)
        found[name] = build_network(name, sources, folder / "bundles" / name)
    return found


@pytest.fixture(scope="module")
def url(
    built: dict[str, CatalogueBuild], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """A service with all bundles that were built."""
    one = next(iter(built.values()))
    settings = {
        "INFERENCE_BUNDLES": str(one.bundle.parent),
        "INFERENCE_DEVICE": "cpu",
        "INFERENCE_DEFAULT_MODEL": min(n for n, b in built.items() if b.status == 0),
    }
    log_file = tmp_path_factory.mktemp("service") / "service.log"
    with running_service(log_file, settings=settings) as running:
        yield running


@pytest.mark.parametrize("name", NETWORKS)
def test_it_is_built_and_what_is_missing_has_a_reason(
    name: str, built: dict[str, CatalogueBuild]
) -> None:
    """There is always onnx, and each other variant is proven or omitted with a reason."""
    found = built[name]
    assert found.status == 0, found.printed
    manifest = Bundle.open(found.bundle).manifest
    verdicts = {verdict.variant: verdict for verdict in manifest.parity}
    assert "onnx" in verdicts
    print(f"\n{name}: {found.seconds:.0f} s\n{found.printed}")  # noqa: T201 - with pytest -s
    for variant in VARIANTS:
        assert (variant in verdicts) != (variant in manifest.not_built), variant


@pytest.mark.parametrize("name", NETWORKS)
def test_each_mutant_of_each_onnx_file_is_killed(
    name: str, built: dict[str, CatalogueBuild]
) -> None:
    """This covers the built float32, float16 and int8 files, and most mutants apply."""
    bundle = Bundle.open(built[name].bundle)
    figures = ParityFigures.model_validate_json(bundle.path("parity").read_bytes())
    mutants = {"onnx": figures.faults, **figures.reduced_faults}
    proven = {verdict.variant for verdict in bundle.manifest.parity}
    assert set(mutants) == {v for v in proven if v.startswith("onnx")}
    for variant, faults in mutants.items():
        applied = [fault for fault in faults if not fault.not_applicable]
        assert len(applied) >= LEAST_MUTANTS, variant
        survived = [f"{variant}: {fault.name}" for fault in applied if not fault.caught_by]
        assert not survived


@pytest.mark.parametrize("name", NETWORKS)
def test_the_service_answers_as_the_module_does(
    name: str, built: dict[str, CatalogueBuild], url: str, tmp_path: Path
) -> None:
    """New samples of every size are answered within the bundle's tolerance."""
    manifest = Bundle.open(built[name].bundle).manifest
    subject = network_under_test(name, tmp_path, samples=4)
    write_samples(name, tmp_path / "asked.npz", ASKED, seed=7)
    asked = with_sizes(manifest.inputs, read_samples([tmp_path / "asked.npz"]))
    allowed = manifest.tolerance("cpu", "onnx").scaled_error or 0
    for samples in (asked, *asked.others):
        expected = eager_predict(subject)(samples.arrays)
        answer = _ask(url, manifest, samples.arrays)
        assert set(answer) == set(expected)
        for output, values in expected.items():
            if values.dtype.kind in "biu":
                assert np.array_equal(answer[output], values)
            else:
                assert scaled_difference(answer[output], values) <= allowed, (output, samples.sizes)


def _ask(url: str, manifest: Manifest, arrays: Arrays) -> Arrays:
    """Send binary tensors and read JSON."""
    tensors = [_describe(spec, arrays[spec.name]) for spec in manifest.inputs]
    header = json.dumps({"inputs": tensors}).encode()
    content = header + b"".join(arrays[spec.name].tobytes() for spec in manifest.inputs)
    answer = httpx.post(
        f"{url}/v2/models/{manifest.name}/infer",
        content=content,
        headers={HEADER_LENGTH: str(len(header))},
        timeout=60,
    )
    assert answer.status_code == 200, answer.text
    return {output["name"]: _read(output) for output in answer.json()["outputs"]}


def _describe(spec: TensorSpec, array: Array) -> dict[str, Any]:
    form = {"name": spec.name, "datatype": spec.datatype, "shape": list(array.shape)}
    return {**form, "parameters": {"binary_data_size": array.nbytes}}


def _read(output: dict[str, Any]) -> Array:
    values = np.array(output["data"], DTYPES[output["datatype"]])
    return values.reshape(output["shape"])
