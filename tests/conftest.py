"""Fixtures made once: a tiny data set, tiny checkpoints, their bundles, the real service."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from loadtest.server import free_port, running_service
from tests.tiny import SERVED_BUNDLES, train_tiny, write_idx_files

# The official files, where somebody has them: see `official_mnist`. The processes that pytest-xdist
# starts inherit this environment without MNIST_DIR.
OFFICIAL_MNIST = os.environ.get("MNIST_DIR") or os.environ.get("OFFICIAL_MNIST", "")
os.environ["OFFICIAL_MNIST"] = OFFICIAL_MNIST

# Processes that share the cores compute by one thread each: threads that wait for one another while
# other processes hold their cores took a training test four times as long. PyTorch reads it when it
# is imported, and processes that tests start inherit it.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# No test may depend on what this machine's environment happens to say.
for variable in [
    name for name in os.environ if name.startswith(("INFERENCE_", "DIGITS_", "MNIST_"))
]:
    del os.environ[variable]


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 1,500 + 300 real MNIST images as IDX files."""
    return write_idx_files(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def official_mnist() -> Path:
    """The folder of the official MNIST files, if MNIST_DIR named one when the tests began."""
    if not OFFICIAL_MNIST:
        pytest.skip("MNIST_DIR does not name the official MNIST files")
    return Path(OFFICIAL_MNIST)


@pytest.fixture(scope="session")
def checkpoints(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny checkpoint of each model; not to be changed."""
    folder = tmp_path_factory.mktemp("checkpoints")
    for model in ("cnn", "mlp"):
        train_tiny(model, data_dir, folder / model)
    return folder


@pytest.fixture(scope="session")
def bundles(checkpoints: Path, data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a bundle of each tiny checkpoint; not to be changed."""
    from export.__main__ import main  # noqa: PLC0415 - not there without the export extra

    folder = tmp_path_factory.mktemp("bundles")
    for model in ("cnn", "mlp"):
        command = ["build", str(checkpoints / model), "--out", str(folder / model)]
        assert main([*command, "--data-dir", str(data_dir)]) == 0
    return folder


@pytest.fixture
def bundle(bundles: Path, tmp_path: Path) -> Path:
    """A copy of the CNN's bundle, to be spoilt."""
    return shutil.copytree(bundles / "cnn", tmp_path / "cnn")


@pytest.fixture
def served_bundle(tmp_path: Path) -> Path:
    """A copy of the CNN's bundle from the repository, to be spoilt; needs no torch."""
    return shutil.copytree(SERVED_BUNDLES / "cnn", tmp_path / "served" / "cnn")


@pytest.fixture(scope="session")
def grpc_port() -> int:
    """The port at which the service of ``service_url`` speaks gRPC."""
    return free_port()


@pytest.fixture(scope="session")
def service_url(grpc_port: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The real service, serving the repository's tiny bundles."""
    log_file = tmp_path_factory.mktemp("service") / "service.log"
    settings = {
        "INFERENCE_BUNDLES": str(SERVED_BUNDLES),
        "INFERENCE_DEVICE": "cpu",
        "INFERENCE_GRPC_PORT": str(grpc_port),
        "INFERENCE_MAX_REQUEST_SAMPLES": "100",
        "INFERENCE_MAX_BODY_BYTES": "1000000",
        "INFERENCE_MAX_IMAGE_PIXELS": "1000000",
        # Golden samples are batches too: none shall fall into those that a test counts.
        "INFERENCE_GOLDEN_CHECK_S": "3600",
    }
    with running_service(log_file, settings=settings) as url:
        yield url
