"""Which builds of PyTorch and ONNX Runtime `make install` takes, with programs that do nothing."""

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PINS = dict(re.findall(r"^([\w-]+)==([^ ;\n]+)", (ROOT / "constraints.txt").read_text(), re.M))
HASHED = "install --quiet --require-hashes --no-deps -r requirements.txt"
CPU_WHEELS = f"torch ({PINS['torch']}+cpu) torchvision ({PINS['torchvision']}+cpu)"
# Of a make that runs these tests, and of the user.
OUTER = {"DEVICE", "TORCH_CPU_INDEX", "MAKEFLAGS", "MAKEOVERRIDES", "MFLAGS", "MAKELEVEL"}
# Writes down how it was called; makes an environment, and answers what the index offers.
PYTHON = """#!/bin/sh
echo "$*" >> "$CALLS"
case "$*" in
  "-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
  *"index versions"*) echo "$OFFERED" ;;
esac
"""
NVIDIA_SMI = '#!/bin/sh\nprintf "%s" "$GPUS"\n'


class Install:
    """`make install` into a temporary folder.

    Attributes:
        said: What it printed.
        commands: What was called in the environment, pip's above all.
        status: The exit status.
    """

    def __init__(
        self, folder: Path, *, gpus: str = "", offered: str = "", **variables: str
    ) -> None:
        """Run it.

        Args:
            folder: A temporary one, which may hold an environment already.
            gpus: What nvidia-smi lists.
            offered: What the index of CPU wheels lists.
            variables: Of make.
        """
        calls, programs = folder / "calls", folder / "bin"
        programs.mkdir(exist_ok=True)
        for name, text in (("python", PYTHON), ("nvidia-smi", NVIDIA_SMI)):
            (programs / name).write_text(text)
            (programs / name).chmod(0o755)
        environment = {
            **{name: value for name, value in os.environ.items() if name not in OUTER},
            "PATH": f"{programs}:{os.environ['PATH']}",
            "CALLS": str(calls),
            "GPUS": gpus,
            "OFFERED": offered,
        }
        command = ["make", "install", f"PYTHON={programs / 'python'}", f"VENV={folder / 'venv'}"]
        command += [f"{name}={value}" for name, value in variables.items()]
        ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        self.said, self.status = ran.stdout + ran.stderr, ran.returncode
        self.commands = calls.read_text() if calls.exists() else ""


def test_a_gpu_brings_the_default_builds(tmp_path: Path) -> None:
    """Where nvidia-smi lists one, no index of CPU wheels is asked; the choice is recorded."""
    found = Install(tmp_path, gpus="GPU 0: H100")
    assert found.status == 0
    assert HASHED in found.commands
    assert "index versions" not in found.commands
    assert "DEVICE=cuda" in found.said
    assert (tmp_path / "venv" / "installed").read_text() == "cuda\n"


def test_cpu_wheels_are_taken_where_both_are_offered(tmp_path: Path) -> None:
    """Without a GPU: the pinned versions of torch and torchvision, and ONNX Runtime for CPUs."""
    found = Install(tmp_path, offered=CPU_WHEELS, TORCH_CPU_INDEX="https://wheels.example")
    assert found.status == 0
    (installed,) = re.findall(r"^.* install .*$", found.commands, re.MULTILINE)
    assert "--extra-index-url https://wheels.example" in installed
    assert f"torch=={PINS['torch']}+cpu torchvision=={PINS['torchvision']}+cpu" in installed
    assert f"onnxruntime=={PINS['onnxruntime-gpu']}" in installed
    assert "uninstall" not in found.commands
    assert "DEVICE=cuda" not in found.said
    assert "or cuda" in found.said


@pytest.mark.parametrize("offered", ["", f"torch ({PINS['torch']}+cpu)", "torch (1.0+cpu)"])
def test_without_cpu_wheels_the_default_builds_lose_what_a_cpu_never_loads(
    offered: str, tmp_path: Path
) -> None:
    """Nothing, or not both in the pinned versions: it says what it looked for and left out."""
    found = Install(tmp_path, offered=offered, DEVICE="cpu")
    assert found.status == 0
    assert "+cpu" not in found.commands
    assert "export-core]" in found.commands
    assert "uninstall --quiet --yes triton" in found.commands
    assert "without triton and ONNX Runtime's GPU build" in found.said
    assert "TORCH_CPU_INDEX" in found.said


def test_an_environment_keeps_its_builds(tmp_path: Path) -> None:
    """A renewed environment stays as it was; an empty record is one of the default builds."""
    (tmp_path / "venv").mkdir()
    record = tmp_path / "venv" / "installed"
    record.touch()
    os.utime(record, (0, 0))
    assert HASHED in Install(tmp_path).commands
    assert record.read_text() == "cuda\n"


def test_an_unknown_device_is_refused(tmp_path: Path) -> None:
    """Before anything is made; the message names the possible ones."""
    found = Install(tmp_path, DEVICE="tpu")
    assert found.status != 0
    assert "expected auto, cpu or cuda" in found.said
    assert found.commands == ""


def test_every_pinned_package_has_its_hashes() -> None:
    """requirements.txt pins the versions of constraints.txt, each with the SHA-256 of its files."""
    text = (ROOT / "requirements.txt").read_text().replace(" \\\n", " ")
    hashed = {}
    for line in text.splitlines():
        name, version = re.match(r"([\w.-]+)==([^ ;]+)", line).groups()  # type: ignore[union-attr]
        hashed[name] = version
        assert re.search(r"--hash=sha256:[0-9a-f]{64}\b", line), name
    assert hashed == PINS


def test_the_development_container_installs_by_make_and_has_the_services_python() -> None:
    """Its command is a target of the Makefile; its Python is that of the service's image."""
    container = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text())
    make, target = container["postCreateCommand"].split()
    assert make == "make"
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.M)
    base = re.search(r"BASE=(\S+)", (ROOT / "service" / "Dockerfile").read_text())
    assert base is not None
    assert container["image"] == base.group(1).replace("-slim", "")
    settings = container["customizations"]["vscode"]["settings"]
    assert settings["python.defaultInterpreterPath"] == ".venv/bin/python"
