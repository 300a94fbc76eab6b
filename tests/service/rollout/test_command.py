"""The commands stage versions, change the desired state, and say why they refuse."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from export.bundle.store import SIGNATURE_NAME
from service.rollout.__main__ import main
from service.versions.state import RolloutFolder
from tests.service.rollout.made_versions import NAME, flip_byte, make_version
from tests.tiny import SERVED_BUNDLES


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Bundles of some versions; "narrow" has other outputs."""
    folder = tmp_path_factory.mktemp("sources")
    made = {version: make_version(folder, version, seed) for seed, version in enumerate("abc")}
    return made | {"narrow": make_version(folder, "narrow", classes=2)}


@pytest.fixture
def bundles(tmp_path: Path, sources: dict[str, Path]) -> Path:
    """A bundles folder with the model's versions a, b and narrow; a is stable."""
    folder = tmp_path / "bundles"
    for version in ("a", "b", "narrow"):
        assert _run(folder, "stage", NAME, str(sources[version])) == 0
    return folder


def _run(bundles: Path, *arguments: str) -> int:
    return main([*arguments, "--bundles", str(bundles)])


def test_the_first_version_is_stable_and_others_wait(bundles: Path) -> None:
    """Staging a version does not serve it."""
    folder = RolloutFolder(bundles / NAME)
    desired = folder.read_desired()
    assert (desired.generation, desired.stable, desired.canary) == (1, "a", None)
    assert (folder.bundle("b") / "manifest.json").is_file()


def test_a_bundle_without_versions_becomes_the_stable_version(
    tmp_path: Path, sources: dict[str, Path]
) -> None:
    """A bundle without versions is converted when a second version is staged."""
    bundles = tmp_path / "bundles"
    shutil.copytree(sources["a"], bundles / NAME)
    assert _run(bundles, "stage", NAME, str(sources["b"])) == 0
    folder = RolloutFolder(bundles / NAME)
    assert folder.read_desired().stable == "a"
    names = {path.name for path in folder.folder.iterdir()}
    assert names == {"a", "b", "rollout.json", ".rollout"}
    assert [path.name for path in bundles.iterdir()] == [NAME]


def test_staging_again_changes_nothing_and_another_content_is_refused(
    bundles: Path, sources: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The content of a staged version never changes."""
    assert _run(bundles, "stage", NAME, str(sources["a"])) == 0
    other = make_version(tmp_path, "a", seed=9)
    assert _run(bundles, "stage", NAME, str(other)) == 2
    assert "versions never change" in capsys.readouterr().err


def test_staging_again_takes_a_signature_that_was_made_since(
    bundles: Path, sources: dict[str, Path], tmp_path: Path
) -> None:
    """Only the signature is written, and an unsigned copy does not remove it."""
    signed = shutil.copytree(sources["a"], tmp_path / "signed")
    (signed / SIGNATURE_NAME).write_text("a signature")
    assert _run(bundles, "stage", NAME, str(signed)) == 0
    assert _run(bundles, "stage", NAME, str(sources["a"])) == 0
    staged = RolloutFolder(bundles / NAME).bundle("a")
    assert (staged / SIGNATURE_NAME).read_text() == "a signature"
    names = {path.name for path in sources["a"].iterdir()}
    assert {path.name for path in staged.iterdir()} == names | {SIGNATURE_NAME}


def test_what_cannot_be_staged_is_refused(
    bundles: Path, sources: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A damaged bundle, another model's and other folders are refused and leave nothing behind."""
    damaged = Path(shutil.copytree(sources["c"], tmp_path / "damaged"))
    flip_byte(damaged)
    before = sorted(path.name for path in (bundles / NAME).iterdir())
    for source, words in (
        (damaged, "was altered"),
        (SERVED_BUNDLES / "cnn", "is a bundle of the model cnn, not tiny"),
        (tmp_path / "nowhere", "is not a bundle"),
    ):
        assert _run(bundles, "stage", NAME, str(source)) == 2
        assert words in capsys.readouterr().err
    assert sorted(path.name for path in (bundles / NAME).iterdir()) == before


def test_each_command_makes_the_next_generation(bundles: Path) -> None:
    """Canary, shadow in its place, promotion and rollback each make a generation."""
    folder = RolloutFolder(bundles / NAME)
    assert _run(bundles, "canary", NAME, "b", "--share", "0.25", "--max-p99-ratio", "3") == 0
    state = folder.read_desired()
    assert state.canary is not None
    assert (state.canary.version, state.canary.share) == ("b", 0.25)
    assert state.limits.max_p99_ratio == 3
    assert _run(bundles, "shadow", NAME, "b") == 0
    state = folder.read_desired()
    assert (state.canary, state.shadow is not None) == (None, True)
    assert _run(bundles, "promote", NAME) == 0
    state = folder.read_desired()
    assert (state.stable, state.previous, state.shadow) == ("b", "a", None)
    assert _run(bundles, "rollback", NAME) == 0
    state = folder.read_desired()
    assert (state.stable, state.previous, state.generation) == ("a", None, 5)


def test_another_contract_needs_a_word(bundles: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A changed contract is refused with exit code 1 and the difference, unless it is allowed."""
    for command in ("canary", "shadow", "promote"):
        assert _run(bundles, command, NAME, "narrow") == 1
        found = capsys.readouterr().err
        assert "logits=FP32[-1,3] became logits=FP32[-1,2]" in found
        assert "--allow-contract-change" in found
    assert _run(bundles, "canary", NAME, "narrow", "--allow-contract-change") == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["promote", NAME], "has no canary and no shadow"),
        (["promote", NAME, "a"], "is already the stable one"),
        (["promote", NAME, "z"], "no version z; staged versions: a, b, narrow"),
        (["rollback", NAME], "no previous version"),
        (["canary", NAME, "b", "--share", "2"], "less than or equal to 1"),
        (["canary", NAME, "b", "--max-p99-ratio", "0.5"], "greater than or equal to 1"),
        (["canary", NAME, "a"], "two of the roles"),
        (["canary", "other", "b"], "rollout.json is missing"),
        (["status", "other"], "rollout.json is missing"),
    ],
)
def test_wrong_use_is_explained(
    bundles: Path, arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Wrong use gives exit code 2, and nothing changes."""
    before = RolloutFolder(bundles / NAME).read_desired()
    assert _run(bundles, *arguments) == 2
    assert words in capsys.readouterr().err
    assert RolloutFolder(bundles / NAME).read_desired() == before
    assert not (bundles / "other").exists()


def test_waiting_without_a_service_ends_in_time(
    bundles: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Waiting ends with exit code 3 and asks whether the service runs."""
    assert _run(bundles, "promote", NAME, "b", "--wait", "0.2") == 3
    assert "is the service running" in capsys.readouterr().out


def test_the_status_is_printed_as_words_and_as_json(
    bundles: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both forms name the versions and the outcome."""
    assert _run(bundles, "status") == 0
    assert "versions: a, b, narrow" in capsys.readouterr().out
    assert _run(bundles, "status", NAME, "--json") == 0
    (status,) = json.loads(capsys.readouterr().out)
    assert (status["outcome"], status["workers"]) == ("pending", [])


def test_the_command_needs_no_torch_and_no_onnx_runtime() -> None:
    """The command imports neither, so it starts quickly and runs without them."""
    code = (
        "import sys, service.rollout.__main__\n"
        "assert not {'torch', 'onnxruntime', 'bentoml'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
