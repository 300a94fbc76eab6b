"""The report of the whole chain: serves the built bundles, load-tests them and shows all results.

The results of training and export are read from the files that these stages wrote.
"""

import json
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loadtest.machine import machine
from loadtest.measure.result import Result
from loadtest.measure.run import run_scenario
from loadtest.report.formats import Page, Picture, Section, Table
from loadtest.report.plots import latency_figure, seconds_figure
from loadtest.report.points import result_section
from loadtest.report.words import labels
from loadtest.scenarios import load_profile, load_scenario
from loadtest.server import running_service

SCENARIOS = ("Concurrency", "Offline")
PARITY = ("model", "variant", "verdict", "scaled error", "allowed", "labels that differ")
COLUMNS = (
    *("model", "parameters", "test accuracy", "exports"),
    *("requests/s", "p50 ms", "p99 ms", "wrong answers"),
)


@dataclass(frozen=True)
class ModelStory:
    """All results of one model, from its training to its answers under load."""

    manifest: dict[str, Any]
    checkpoint: dict[str, Any]
    checkpoint_folder: Path
    results: list[Result]

    def cells(self) -> list[str]:
        """The model's row of the table whose header is ``COLUMNS``."""
        training, first = self.manifest["training"], self.results[0]
        verdicts = self.manifest["parity"]
        passed = sum(verdict["passed"] for verdict in verdicts)
        return [
            self.manifest["name"],
            f"{training['parameters']:,}",
            f"{100 * training['test_accuracy']:.2f}%",
            f"{passed} of {len(verdicts)} proven",
            f"{first.requests_per_s:,.0f}",
            f"{first.latency_ms['p50']:.2f}",
            f"{first.latency_ms['p99']:.2f}",
            str(sum(result.wrong_answers for result in self.results)),
        ]


def demonstrate(
    bundles: Path, checkpoints: Path, out: Path, image: Path, duration_s: float
) -> list[ModelStory]:
    """Serve every bundle, classify one image over HTTP, and load-test each model.

    Args:
        bundles: A folder of bundles.
        checkpoints: The folder of their checkpoints, whose folders have the same names.
        out: The folder for the service's log.
        image: The PNG file of a digit to send.
        duration_s: Duration of each load test, in seconds.
    """
    out.mkdir(parents=True, exist_ok=True)
    stories = []
    settings = {"INFERENCE_BUNDLES": str(bundles.resolve())}
    with running_service(out / "service.log", settings=settings) as url:
        for folder in sorted(path.parent for path in bundles.glob("[!.]*/manifest.json")):
            manifest = json.loads((folder / "manifest.json").read_text())
            answer = _ask(f"{url}/predict/image?model={manifest['name']}", image)
            best = answer["predictions"][0]
            print(
                f"{image} classified by {answer['model']} on {answer['device']}: {best['label']} "
                f"(probability {max(best['probabilities']):.6f})"
            )
            profile = load_profile("smoke", duration_s=duration_s, warmup_s=1)
            results = [
                run_scenario(load_scenario(name), url, [folder], profile) for name in SCENARIOS
            ]
            home = checkpoints / folder.name
            stories.append(
                ModelStory(
                    manifest=manifest,
                    checkpoint=json.loads((home / "checkpoint.json").read_text()),
                    checkpoint_folder=home,
                    results=results,
                )
            )
    return stories


def chain_report(stories: Sequence[ModelStory]) -> str:
    """The HTML page: one table, then one section for each stage."""
    results = [result for story in stories for result in story.results]
    data = {story.checkpoint["test"]["images_name"] for story in stories}
    training = "training images are augmented and dropout is active, so their error is higher"
    parity = (
        "largest difference from the checkpoint's output, divided by the largest logit, over all "
        "batch sizes; float32 rounding is near 5e-7; every ONNX weight equals the checkpoint's"
    )
    return Page(
        title="From training to a proven service",
        note=f"Accuracy on {' and '.join(sorted(data))}. {machine()}; service and load generator "
        "share these cores: the rates can be compared between models, not between machines.",
        sections=[
            Section("", tables=[Table(COLUMNS, [s.cells() for s in stories], bad=["FAILED"])]),
            *(_training(story, training) for story in stories),
            Section("Parity", [parity], tables=[_parity(story) for story in stories]),
            Section(
                "Latency under load",
                ["closed loop; every answer is compared with the reference"],
                _load_pictures(results),
            ),
            result_section("Figures", results, labels(results)),
        ],
    ).html()


def _load_pictures(results: Sequence[Result]) -> list[Picture]:
    return [
        Picture(latency_figure(results), "latency by percentile"),
        *(
            Picture(seconds_figure(result, name), f"answers over time: {name}")
            for result, name in zip(results, labels(results), strict=True)
        ),
    ]


def _training(story: ModelStory, note: str) -> Section:
    home, test = story.checkpoint_folder, story.checkpoint["test"]
    name = story.manifest["name"]
    calibration = 100 * test["expected_calibration_error"]
    heading = (
        f"Training {name}: {100 * test['accuracy']:.2f}%, expected calibration error "
        f"{calibration:.2f}%"
    )
    pictures = [
        Picture(home / "curves.png", f"{name}: loss and error by epoch"),
        Picture(home / "confusion.png", f"{name}: confusion matrix"),
        Picture(home / "misclassified.png", f"{name}: misclassified digits"),
    ]
    return Section(heading, [note], pictures)


def _parity(story: ModelStory) -> Table:
    """The largest error of each variant and its tolerance; without one, other figures decide."""
    rows = []
    for verdict in story.manifest["parity"]:
        tolerance = verdict["tolerance"]
        name = f"{verdict['format']} {verdict['precision']}"
        allowed = tolerance["scaled_error"]
        rows.append(
            [
                *(story.manifest["name"], name, "passed" if verdict["passed"] else "FAILED"),
                f"{verdict['scaled_error']:.1e}",
                "not checked" if allowed is None else f"{allowed:.0e}",
                str(verdict["label_flips"]),
            ]
        )
    return Table(PARITY, rows, bad=["FAILED"])


def _ask(url: str, image: Path) -> dict[str, Any]:
    request = urllib.request.Request(  # noqa: S310 - our own service
        url, data=image.read_bytes(), headers={"Content-Type": "image/png"}
    )
    with urllib.request.urlopen(request, timeout=30) as response:  # noqa: S310
        answer: dict[str, Any] = json.loads(response.read())
    return answer
