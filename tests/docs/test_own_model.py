"""The commands of docs/your-own-model.md, run exactly as written; this takes minutes."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from loadtest.server import running_service
from tests.docs.pages import ROOT, Block, find_blocks

PAGE = ROOT / "docs" / "your-own-model.md"
SERVE = "bentoml serve"
pytestmark = pytest.mark.slow


def _bash(program: str, folder: Path) -> str:
    ran = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", program],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, f"{program}\n{ran.stdout}\n{ran.stderr}"
    return ran.stdout


def test_the_page_leads_from_weights_to_verified_answers(workspace: Path) -> None:
    """Both networks are exported, verified, served and load-tested, block by block."""
    later: list[Block] = []
    for block in find_blocks(PAGE):
        if SERVE in block.text:
            later.append(block)
        else:
            _bash(block.text, workspace)
    bundles = workspace / "artifacts" / "own" / "bundles"
    assert {path.name for path in bundles.iterdir()} == {"resnet18", "texts", "series"}
    (block,) = later
    settings = {"INFERENCE_BUNDLES": str(bundles), "INFERENCE_DEVICE": "cpu"}
    with running_service(workspace / "service.log", settings=settings) as url:
        for statement in block.statements():
            if SERVE in statement:
                continue
            command = statement.replace("curl localhost:3000", f"curl --fail --silent {url}")
            answer = _bash(re.sub(r"(loadtest run)", rf"\1 --url {url}", command), workspace)
            assert "predict" not in statement or '"outputs"' in answer
