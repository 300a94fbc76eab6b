"""The stages know of each other what the house plan allows, and importing does nothing."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
STAGES = ("training", "export", "service", "loadtest")
SOURCES = sorted(path for stage in STAGES for path in (ROOT / stage).rglob("*.py"))
MODULES = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in SOURCES]


def _python(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("module", "forbidden"),
    [
        ("service.app", ["torch", "torchvision", "training", "onnx", "safetensors", "loadtest"]),
        ("service.app", ["ray", "pyarrow", "service.score"]),
        ("service.score.cli", ["torch", "training", "onnx", "loadtest", "bentoml"]),
        ("export.bundle.store", ["torch", "training", "onnx", "onnxruntime"]),
        ("export.bundle.golden", ["torch", "training", "onnx", "onnxruntime"]),
        ("loadtest.__main__", ["torch", "training", "export", "service", "onnxruntime"]),
        ("training.__main__", ["export", "service", "loadtest", "onnx", "onnxruntime"]),
    ],
)
def test_importing_a_stage_does_not_bring_in_what_it_must_not_know(
    module: str, forbidden: list[str]
) -> None:
    """A fresh process that imported the module has none of the forbidden packages loaded."""
    ran = _python(
        f"import sys, {module}\nprint([n for n in {forbidden} if n in sys.modules], end='')"
    )
    assert (ran.returncode, ran.stdout) == (0, "[]"), ran.stderr


def test_importing_any_module_says_and_writes_nothing() -> None:
    """All modules of all stages import without a word on either stream."""
    wanted = [name for name in MODULES if not name.endswith(("__main__", "locustfile"))]
    ran = _python(f"import importlib\nfor name in {wanted}: importlib.import_module(name)")
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")


def test_the_declared_contracts_hold() -> None:
    """The import contracts of pyproject.toml are kept, through any number of steps."""
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout
    assert "8 kept, 0 broken" in ran.stdout


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_functions_stay_small(path: Path) -> None:
    """A function stays under 60 lines."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno < 60, node.name
