"""Opening or checking a bundle of unknown origin never runs code from it."""

import json
import pickle
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import save_file

from export.__main__ import main
from export.bundle.store import Bundle
from service.models.loader import load_verified_models
from service.settings import Settings
from tests.export.subjects import pair, pair_samples
from tests.rehash import rehash

PAIR = ["--model", "tests.export.subjects:pair", "--arguments", '{"width": 4}']


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The samples that the bundle below is proven on."""
    path = tmp_path_factory.mktemp("samples") / "samples.npz"
    np.savez(path, **pair_samples(300, seed=0))  # type: ignore[arg-type]
    return path


@pytest.fixture(scope="module")
def honest(samples: Path) -> Path:
    """A bundle of a user's module, as ONNX and as a program; tests must not change it."""
    save_file(pair(4).state_dict(), samples.parent / "pair.safetensors")
    command = ["build", *PAIR, "--checkpoint", str(samples.parent / "pair.safetensors")]
    command += ["--inputs", str(samples), "--out", str(samples.parent / "bundles" / "pair")]
    assert main([*command, "--variants", "onnx,torchscript,pt2"]) == 0
    return samples.parent / "bundles" / "pair"


@pytest.fixture
def pair_bundle(honest: Path, tmp_path: Path) -> Path:
    """A copy of the bundle for tests to damage."""
    return shutil.copytree(honest, tmp_path / "bundles" / "pair")


def _name_in_manifest(bundle: Path, factory: str, arguments: dict[str, str]) -> None:
    path = bundle / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["factory"] |= {"factory": factory, "arguments": arguments}
    path.write_text(json.dumps(manifest))


@pytest.mark.parametrize("command", ["check", "check --quick", "check --trust", "bisect"])
def test_what_a_manifest_names_is_never_called(
    command: str, pair_bundle: Path, samples: Path, tmp_path: Path
) -> None:
    """A factory "os:system" is never run, whatever the command."""
    trace = tmp_path / "called"
    _name_in_manifest(pair_bundle, "os:system", {"command": f"touch {trace}"})
    name, *options = command.split()
    status = main([name, str(pair_bundle), "--inputs", str(samples), *options])
    assert not trace.exists()
    assert status == (0 if options else 64)
    settings = Settings(bundles=pair_bundle.parent, device="cpu")
    assert [model.manifest.name for model in load_verified_models(settings)] == ["pair"]
    assert not trace.exists()


def test_without_a_module_the_caller_is_told_which_one_it_was(
    pair_bundle: Path, samples: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The status is 64 with the bundle's recorded module and the two alternatives."""
    assert main(["check", str(pair_bundle), "--inputs", str(samples)]) == 64
    error = capsys.readouterr().err
    assert "--model tests.export.subjects:pair --arguments '{\"width\": 4}'" in error
    assert "--trust" in error


@pytest.mark.parametrize("command", ["check", "bisect"])
def test_the_caller_names_the_module(command: str, pair_bundle: Path, samples: Path) -> None:
    """With --model and --arguments, a bundle is proven against exactly that module."""
    line = [command, str(pair_bundle), "--inputs", str(samples)]
    assert main([*line, *PAIR]) == 0
    assert main([*line, *PAIR[:3], '{"width": 8}']) == 64


def test_a_trusted_bundle_is_proven_against_its_own_program(
    pair_bundle: Path, samples: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """--trust uses model.pt2 as the module if it has exactly the bundle's weights."""
    line = ["check", str(pair_bundle), "--inputs", str(samples), "--trust"]
    assert main(line) == 0
    assert "pt2 " in capsys.readouterr().out
    other = pair(4).state_dict()
    other["head.weight"][0, 0] += 1
    save_file(other, pair_bundle / "weights.safetensors")
    rehash(pair_bundle, "weights.safetensors")
    assert main(line) == 2
    assert "head.weight" in capsys.readouterr().err


class _Evil:
    """Creates a file when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self._trace = trace

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self._trace,)


def _poison(path: Path, trace: Path) -> None:
    """Replace the program's sample inputs by a pickle that runs code."""
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, content in records.items():
            spoilt = "sample_inputs" in name
            archive.writestr(name, pickle.dumps(_Evil(trace)) if spoilt else content)


def test_a_program_that_runs_code_is_not_opened_unless_it_is_trusted(
    pair_bundle: Path, samples: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A .pt2 file unlike the module's own is not opened, with a note."""
    trace = tmp_path / "called"
    _poison(pair_bundle / "model.pt2", trace)
    rehash(pair_bundle, "model.pt2")
    assert main(["check", str(pair_bundle), "--inputs", str(samples), *PAIR]) == 0
    said = capsys.readouterr().out
    assert "pt2                NOT CHECKED" in said
    assert "torchscript        cpu: passed" in said  # byte-identical to the module's own
    assert main(["benchmark", str(pair_bundle), "--rounds", "1"]) == 0
    assert not trace.exists()
    main(["check", str(pair_bundle), "--inputs", str(samples), *PAIR, "--trust"])
    assert trace.exists(), "PyTorch no longer unpickles it: --trust may have become unnecessary"


def test_open_reads_no_more_than_names_and_hashes(pair_bundle: Path, tmp_path: Path) -> None:
    """Opening a bundle unpickles nothing and imports nothing that its manifest names."""
    trace = tmp_path / "called"
    _poison(pair_bundle / "model.pt2", trace)
    rehash(pair_bundle, "model.pt2")
    _name_in_manifest(pair_bundle, "os:system", {"command": f"touch {trace}"})
    Bundle.open(pair_bundle)
    assert not trace.exists()
