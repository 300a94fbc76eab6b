"""Spoils or observes models in the processes of a service whose PYTHONPATH holds this folder.

Python imports this file when a process starts. As soon as the process imports what is named below,
it is changed there; the environment says where to look and where to write.

    INJECTED_SPOILT_PID     a file with the pid of the process whose logits are multiplied by 1.01;
                            beside it, .spoilt is made when the first answer was
    INJECTED_SESSION_PIDS   a file that gets the pid of each process that opens an ONNX session
"""

import os
import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

FACTOR = 1.01


def _spoil_answers(module: ModuleType) -> None:
    target = Path(os.environ["INJECTED_SPOILT_PID"])
    proven_call = module.OnnxModel.__call__

    def call(self: object, inputs: Any) -> Any:
        outputs = proven_call(self, inputs)
        if "logits" in outputs and target.exists() and target.read_text() == str(os.getpid()):
            target.with_suffix(".spoilt").touch()
            return outputs | {"logits": outputs["logits"] * FACTOR}
        return outputs

    module.OnnxModel.__call__ = call


def _record_sessions(module: ModuleType) -> None:
    session = module.InferenceSession
    proven_init = session.__init__

    def init(self: object, *args: Any, **options: Any) -> None:
        with Path(os.environ["INJECTED_SESSION_PIDS"]).open("a") as file:
            file.write(f"{os.getpid()}\n")
        proven_init(self, *args, **options)

    session.__init__ = init


CHANGES: dict[str, Callable[[ModuleType], None]] = {
    "export.bundle.session": _spoil_answers,
    "onnxruntime": _record_sessions,
}


class _Changing(Loader):
    """A module's own loader, followed by the change."""

    def __init__(self, loader: Loader, change: Callable[[ModuleType], None]) -> None:
        self._loader, self._change = loader, change

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        self._change(module)


class _Finder(MetaPathFinder):
    """Finds what is changed, where Python would have found it."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in CHANGES:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Changing(spec.loader, CHANGES[fullname])
        return spec


if "INJECTED_SPOILT_PID" in os.environ:
    sys.meta_path.insert(0, _Finder())
