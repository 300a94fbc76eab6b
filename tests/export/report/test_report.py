"""The parity report in HTML, Markdown and JUnit XML."""

import html
import json
import math
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from export.bundle.manifest import SampleSet, TensorSpec
from export.bundle.metrics import Comparison
from export.bundle.tolerances import tolerance_for
from export.parity.judge import Judgement, judge
from export.parity.schema import (
    ALONE,
    Coverage,
    FileFigures,
    Layer,
    MutantResult,
    ParityFigures,
    Row,
    WorstSample,
)
from export.provenance.figures import WeightFigures
from export.report.cells import Timings
from export.report.report import write_report

LABELS = {
    **dict.fromkeys(("flips", "decided_flips", "largest_flip_margin", "ties", "uncertain"), 0.0),
    **dict.fromkeys(("accuracy", "eager_accuracy"), 0.9),
    "samples": 10,
    "smallest_margin": 0.01,
    "largest_error": 1e-5,
}
ENDLESS = dict.fromkeys(("scaled_error", "max_abs_error", "rms_ratio"), math.inf)


class _Tags(HTMLParser):
    """Collects every tag of a page with its attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, {name: value or "" for name, value in attrs}))


def _row(variant: str, batch_size: int, **changes: Any) -> Row:
    figures: dict[str, Any] = {
        "samples": 12,
        "non_finite": 0,
        "max_abs_error": 3e-6,
        "scaled_error": 0 if variant == "torchscript" else 1e-7,
        "largest_value": 30,
        "rms_ratio": 1,
        "sqnr_db": 130,
        "worst": (2, 0),
        "labels": LABELS,
    }
    return Row(
        variant=variant,
        batch_size=batch_size,
        samples=12,
        outputs={"logits": Comparison.model_validate(figures | changes)},
        batch_invariance=1e-7 if variant == "onnx" and batch_size == 1 else None,
        softmax_error=1e-7,
    )


def _layer(value: str, error: float, *, exact: bool = False) -> Layer:
    return Layer(
        value=value,
        node=f"node_{value}",
        op="Sub",
        module="",
        source="models/tiny.py:3",
        code="x = a < b",
        scaled_error=error,
        rms_ratio=1,
        max_abs_error=error,
        exact=exact,
    )


def _figures(**changes: Any) -> ParityFigures:
    """Two variants that pass at two batch sizes, with some of every kind of figure."""
    weights = WeightFigures(
        equal=2, folded=1, converted=0, constants=3, error=1e-8, worst="w[0] is 1", problems=()
    )
    faults = (
        MutantResult(
            name="a bias dropped",
            planted="bias is 0",
            figures={"scaled_error": 0.1, "weights": math.inf},
            caught_by=("weights",),
        ),
        MutantResult(
            name="epsilon",
            planted="",
            figures={},
            caught_by=(),
            not_applicable="the model has no BatchNorm",
        ),
    )
    files = {
        "onnx": FileFigures(path="model.onnx", size_bytes=4_000, problems=(), weights=weights),
        "torchscript": FileFigures(path="model.ts", size_bytes=5_000, problems=()),
    }
    sample = WorstSample(description="sample 1", eager_label=7, images={"x": [[0, 255], [9, 0]]})
    figures = ParityFigures(
        name="tiny",
        device="cpu",
        proof=SampleSet(name="ten digits", samples=10, sha256="ab" * 32),
        edge_cases=("empty", "full"),
        outputs=(TensorSpec(name="logits", datatype="FP32", shape=(-1, 10), kind="logits"),),
        tolerances=tuple(tolerance_for(variant, "cpu") for variant in files),
        rows=tuple(_row(variant, size) for size in (4, 1) for variant in files),
        files=files,
        neighbours={variant: {"beside noise": 0.0, ALONE: 0.0} for variant in files},
        coverage=Coverage(samples=12, units=8, active_in_all=8, active=8, by_layer={"a": (8, 8)}),
        layers=(_layer("sub", 0, exact=True), _layer("linear", 1e-7)),
        faults=faults,
        worst=(sample,),
        not_checked={},
        versions={"onnx": "1.0"},
    )
    return figures.model_copy(update=changes)


def _written(
    folder: Path, figures: ParityFigures, timings: Timings | None = None
) -> tuple[Judgement, dict[str, str]]:
    """The judgement, and the report's files by extension."""
    judgement = judge(figures, figures.tolerances)
    path = write_report(folder / "report", figures, judgement, timings)
    assert path.name == "parity.html"
    return judgement, {file.suffix[1:]: file.read_text() for file in path.parent.iterdir()}


def _suite(text: str) -> ElementTree.Element:
    return ElementTree.fromstring(text)  # noqa: S314 - written a moment ago


def test_the_report_says_what_was_found(tmp_path: Path) -> None:
    """The page has verdict, figures with bounds, certificate, mutants and layers."""
    judgement, texts = _written(tmp_path, _figures())
    assert judgement.passed
    assert set(texts) == {"json", "html", "md", "xml"}
    assert ParityFigures.model_validate_json(texts["json"]) == _figures()
    for words in (
        *("PASSED", "1,000 times the largest error", "deprecated by PyTorch", "bit-equal"),
        *("1 of 1 mutants killed", "not applicable: the model has no BatchNorm"),
        *("≤ 2.0e-06", "w[0] is 1", "SHA-256 abababababab", "sample 1, label 7", "not measured"),
    ):
        assert words in html.unescape(texts["html"])
    assert "FAILED" not in texts["html"]
    assert "Parity of tiny: PASSED" in texts["md"]


def test_the_page_stands_alone_and_escapes_what_it_shows(tmp_path: Path) -> None:
    """Hostile names are escaped, nothing is fetched or run, and images have alt text."""
    figures = _figures(
        name='<script src="http://x">|',
        not_checked={"pt2": "<img src=x>"},
        layers=(_layer('"><marquee>', 0),),
    )
    _, texts = _written(tmp_path, figures)
    tags = _Tags(texts["html"]).found
    assert not {"script", "link", "iframe", "object", "marquee"} & {tag for tag, _ in tags}
    assert [attributes for tag, attributes in tags if tag == "img"]
    for tag, attributes in tags:
        assert not {name for name in attributes if name.startswith("on")}
        for fetched in {"src", "srcset", "href", "data"} & set(attributes):
            assert attributes[fetched].startswith("data:")
        assert tag != "img" or attributes["alt"]
    assert not any(fetching in texts["html"] for fetching in ("url(", "@import"))
    assert "<script" not in texts["md"]
    assert "\\|" in texts["md"]
    assert "<script" in (_suite(texts["xml"])[0].get("name") or "")


def test_failures_are_told_in_all_three_outputs(tmp_path: Path) -> None:
    """A bad variant, an inexact value, dead units and a surviving mutant are reported."""
    figures = _figures()
    missed = figures.faults[0].model_copy(update={"figures": {"weights": 0.0}})
    figures = _figures(
        rows=(_row("onnx", 4, scaled_error=0.5), *figures.rows[1:]),
        coverage=figures.coverage.model_copy(update={"active": 1}),
        layers=(_layer("sub", 1e-7, exact=True),),
        faults=(missed, figures.faults[0].model_copy(update={"name": "x"}), figures.faults[1]),
    )
    judgement, texts = _written(tmp_path, figures)
    assert len(judgement.failures) == 4
    suite = _suite(texts["xml"])
    told = "\n".join(failure.text or "" for failure in suite.iter("failure"))
    for failure in judgement.failures:
        assert failure in html.unescape(texts["html"])
        assert failure in html.unescape(texts["md"])
        assert failure in told
    assert suite.get("failures") == "4"
    assert "FAILED" in texts["html"]
    assert "NOT KILLED" in texts["html"]


def test_junit_counts_what_the_judgement_counts(tmp_path: Path) -> None:
    """Each variant, each of the gate's own checks and each mutant is a test case."""
    figures = _figures(
        rows=(_row("onnx", 4, scaled_error=0.5, rms_ratio=99), *_figures().rows[1:]),
        not_checked={"pt2": "not on this device"},
    )
    judgement, texts = _written(tmp_path, figures)
    suite = _suite(texts["xml"])
    assert (suite.tag, suite.get("name")) == ("testsuite", "parity")
    names = [(case.get("name") or "").removeprefix("tiny on cpu: ") for case in suite]
    faults = {fault.name for fault in figures.faults}
    assert set(names) == faults | {
        "onnx",
        "torchscript",
        "pt2",
        "coverage",
        "evidence",
        "exact values",
    }
    failed = [case for case in suite if case.find("failure") is not None]
    assert [case.get("name") for case in failed] == ["tiny on cpu: onnx"]
    assert len((failed[0].findtext("failure") or "").splitlines()) == len(judgement.failures) == 2
    skipped = [skip.get("message") for skip in suite.iter("skipped")]
    assert skipped == ["not on this device", "the model has no BatchNorm"]
    assert [suite.get(name) for name in ("tests", "failures", "skipped")] == ["8", "1", "2"]


def test_a_fault_that_is_not_judged_is_no_passed_test(tmp_path: Path) -> None:
    """If weights are not judged, mutants of weights are skipped with the reason."""
    onnx, script = _figures().tolerances
    missed = _figures().faults[0].model_copy(update={"figures": {"weights": 1.0}})
    seen = _figures().faults[0].model_copy(update={"name": "another"})
    blind = (onnx.model_copy(update={"weights": None}), script)
    judgement, texts = _written(tmp_path, _figures(faults=(missed, seen), tolerances=blind))
    assert judgement.passed
    (skipped,) = _suite(texts["xml"]).iter("skipped")
    assert "not killed" in (skipped.get("message") or "")
    assert "NOT KILLED" in texts["html"]


def test_markdown_has_a_row_for_each_variant(tmp_path: Path) -> None:
    """All rows, measured or not, have as many cells as the header; loosenings are listed below."""
    loosened = "rms_ratio: 99 instead of 8 because a test"
    onnx, script = _figures().tolerances
    figures = _figures(
        tolerances=(onnx.model_copy(update={"loosened": loosened}), script),
        not_checked={"pt2": "not\non|this device"},
    )
    _, texts = _written(tmp_path, figures)
    lines = [line for line in texts["md"].splitlines() if line.startswith("| ")]
    assert len({line.replace("\\|", "").count("|") for line in lines}) == 1
    named = [line.split("|")[1].split()[0] for line in lines]
    assert named == ["variant", "---", "onnx", "torchscript", "pt2"]
    assert "not checked: not on\\|this device" in lines[-1]
    assert f"loosened: onnx: {loosened}" in texts["md"]
    assert loosened in texts["html"]


def test_figures_without_end_do_not_crash_the_report(tmp_path: Path) -> None:
    """Infinities and NaN in rows, layers and mutants are shown and can be read back."""
    lost = LABELS | {"largest_error": math.inf, "uncertain": 10}
    rows = (_row("onnx", 4, **ENDLESS, sqnr_db=math.nan, labels=lost), *_figures().rows[1:])
    layers = (_layer("sub", math.inf, exact=True), _layer("linear", 1e308), _layer("x", math.nan))
    judgement, texts = _written(tmp_path, _figures(rows=rows, layers=layers))
    assert not judgement.passed
    assert "∞" in texts["html"]
    assert "10 of 10 samples are uncertain" in texts["html"]
    assert json.loads(texts["json"])["layers"][0]["scaled_error"] == "Infinity"


def test_a_variant_that_died_late_keeps_its_file_in_the_report(tmp_path: Path) -> None:
    """Without rows and verdict, its failure and its file's contents are on the page."""
    figures = _figures(
        rows=tuple(row for row in _figures().rows if row.variant == "onnx"),
        neighbours={"onnx": {ALONE: 0.0}},
        broken={"torchscript": "fails in a batch with other samples: SIGSEGV"},
    )
    _, texts = _written(tmp_path, figures)
    assert "torchscript: fails in a batch with other samples: SIGSEGV" in texts["html"]
    assert "model.ts" in texts["html"]


def test_what_a_model_does_not_have_is_left_out(tmp_path: Path) -> None:
    """Labels, targets, pictures, activations and, on CUDA, layers and mutants may be missing."""
    figures = _figures(
        rows=tuple(_row(row.variant, row.batch_size, labels=None) for row in _figures().rows),
        worst=(WorstSample(description="sample 1", eager_label=None, images={}),),
        coverage=Coverage(samples=12, units=0, active_in_all=0, active=0, by_layer={}),
        layers=(),
        faults=(),
        neighbours={},
    )
    _, texts = _written(tmp_path, figures)
    assert "not known" in texts["html"]
    assert "only on the CPU" in texts["html"]
    for absent in ("Certificate of", "Worst samples", "<img", "Error by layer", "Batch neighbours"):
        assert absent not in texts["html"]
    (skipped,) = _suite(texts["xml"]).iter("skipped")
    assert skipped.get("message") == "no value was compared that must be bit-equal"


@pytest.mark.parametrize(("device", "shown"), [("cpu", False), ("cuda", True)])
def test_microseconds_are_shown_on_cuda_alone(device: Any, shown: bool, tmp_path: Path) -> None:
    """A CPU's times are only shown as ratios, and a variant without any is marked."""
    table = tuple(tolerance_for(variant, device) for variant in ("onnx", "torchscript"))
    figures = _figures(device=device, tolerances=table)
    timings = {"onnx": {1: 40.0, 64: 8.0}, "torchscript": {1: 60.0}}
    _, texts = _written(tmp_path, figures, timings)
    assert "1.50 x onnx" in texts["html"]
    assert "not measured" in texts["html"]
    assert ("60.0 µs" in texts["html"]) is shown
