"""What the tests of exports do once instead of in each export, because it takes seconds."""

import copy
import multiprocessing
from collections.abc import Iterator

import pytest
from torch.onnx._internal.exporter import _registration

import export.worker


@pytest.fixture(scope="session", autouse=True)
def forked_workers() -> Iterator[None]:
    """Fork workers from a process that has imported PyTorch, which takes 2 to 3 s otherwise.

    The commands that tests start in a process of their own use workers as users do.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "export.parity.candidates", "export.convert.repair"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export.worker, "CONTEXT", context)
        yield


@pytest.fixture(scope="session", autouse=True)
def torchlib_parsed_once() -> Iterator[None]:
    """Parse the source of PyTorch's operators for ONNX once: each export does so for a second."""
    read = _registration.ONNXRegistry.from_torchlib
    registries: dict[int, _registration.ONNXRegistry] = {}

    def read_once(opset_version: int) -> _registration.ONNXRegistry:
        if opset_version not in registries:
            registries[opset_version] = read(opset_version)
        registry = copy.copy(registries[opset_version])
        registry.functions = {name: list(metas) for name, metas in registry.functions.items()}
        return registry

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_registration.ONNXRegistry, "from_torchlib", staticmethod(read_once))
        yield
