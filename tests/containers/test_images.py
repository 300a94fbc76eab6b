"""The images hold what they run and nothing more."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.containers.files import DOCKERFILES, ROOT, copied, files, instructions

SERVICE = ROOT / "service" / "Dockerfile"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
BUILD = PROJECT["tool"]["bentoml"]["build"]
BASES = {"python:3.11-slim-bookworm", "debian:bookworm-slim"}
each_dockerfile = pytest.mark.parametrize(
    "dockerfile", DOCKERFILES, ids=lambda path: str(path.relative_to(ROOT))
)


def test_the_image_and_a_bento_hold_the_same_files() -> None:
    """What the Dockerfile copies is what pyproject.toml packs, but for the bundles."""
    packed = {
        p for pattern in BUILD["include"] if "artifacts" not in pattern for p in files(pattern)
    }
    assert copied(SERVICE) == packed


def test_the_service_needs_nothing_else(tmp_path: Path) -> None:
    """Where these files alone are, it is imported and all its modules are among them."""
    for path in copied(SERVICE):
        target = tmp_path / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    program = (
        "import sys; sys.path.insert(0, '.'); import service.app\n"
        "ours = [m for m in sys.modules.values() if m and m.__name__.split('.')[0] in "
        "('service', 'export', 'training', 'loadtest', 'tests')]\n"
        "print([m.__name__ for m in ours if getattr(m, '__file__', None) and "
        f"not m.__file__.startswith({str(tmp_path)!r})])"
    )
    command = [sys.executable, "-P", "-c", program]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (ran.returncode, ran.stdout) == (0, "[]\n"), ran.stderr


@each_dockerfile
def test_what_is_copied_reaches_the_build(dockerfile: Path) -> None:
    """Each COPY names files that exist, and .dockerignore lets them through."""
    ignore = (ROOT / ".dockerignore").read_text().splitlines()
    assert ignore[0] == "*"
    through = {line[1:] for line in ignore if line.startswith("!")}
    for name, words in instructions(dockerfile):
        if name == "COPY" and not words[0].startswith("--from"):
            for source in words[:-1]:
                assert files(source), source
                assert source.split("/")[0] in through, source


@each_dockerfile
def test_an_image_is_pinned_and_runs_without_rights(dockerfile: Path) -> None:
    """Bases have a tag that names a release, packages the versions of constraints.txt, a user."""
    said = instructions(dockerfile)
    arguments = dict(words[0].partition("=")[::2] for name, words in said if name == "ARG")
    for name, words in said:
        if name == "FROM":
            base = arguments.get(words[0].strip("${}"), words[0])
            assert base.removeprefix("docker.io/library/") in BASES
        if name == "RUN" and "install" in words and "pip" in words:
            assert words[words.index("-c") + 1] == "constraints.txt"
    (user,) = [words for name, words in said if name == "USER"]
    assert user[0] in ("digits", "haproxy")


def test_only_training_installs_torch() -> None:
    """The extras that the other images install do not name it."""
    extras = PROJECT["project"]["optional-dependencies"]
    for dockerfile in DOCKERFILES:
        text = dockerfile.read_text()
        for further in re.findall(r"^ARG EXTRAS=(\S+)", text, re.MULTILINE):
            text = text.replace("$EXTRAS", further)
        named = set(re.findall(r"['\"]\.\[([\w,-]+)\]['\"]", text))
        assert named or "constraints.txt" not in text, dockerfile
        wanted = {word for found in named for word in found.split(",")}
        packages = " ".join(package for extra in wanted for package in extras[extra])
        trains = any(word in packages for word in ("torch", "[train]", "[export-core]"))
        assert trains == (dockerfile.parent.name == "training"), dockerfile


def test_the_small_image_runs_the_release_that_was_proven() -> None:
    """Its ONNX Runtime is the pinned one, built for the CPU: one line of constraints.txt."""
    (rule,) = re.findall(r"sed -n '(.*?)'", SERVICE.read_text())
    found = re.fullmatch(r"s/(.*)/(.*)/p", rule)
    assert found
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    named = [re.sub(found[1], found[2], line) for line in lines if re.match(found[1], line)]
    assert len(named) == 1
    assert re.fullmatch(r"onnxruntime==\d+\.\d+\.\d+", named[0])


def test_a_container_without_bundles_says_what_to_do_and_waits(tmp_path: Path) -> None:
    """It starts the service as soon as there is a bundle, and never ends to be restarted."""
    bundles, programs = tmp_path / "bundles", tmp_path / "bin"
    for folder in (bundles, programs):
        folder.mkdir()
    stub = programs / "bentoml"
    stub.write_text('#!/bin/sh\necho "started: $*"\n')
    stub.chmod(0o755)
    (command,) = re.findall(r"^CMD (until .*?)\Z", SERVICE.read_text(), re.MULTILINE | re.DOTALL)
    environment = {
        "PATH": f"{programs}:{os.environ['PATH']}",
        "INFERENCE_BUNDLES": str(bundles),
        "BUNDLES_POLL_S": "0.01",
    }
    with subprocess.Popen(
        ["sh", "-c", command], env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        said = process.stdout.readline()
        assert f"no bundle in {bundles}" in said
        assert "make bundles" in said
        assert "sudo chown -R $USER artifacts" in said
        assert process.poll() is None
        (bundles / "cnn").mkdir()
        (bundles / "cnn" / "manifest.json").touch()
        *_, last = process.stdout.read().splitlines()
    assert last.startswith("started: serve service.app:DigitClassifier")
