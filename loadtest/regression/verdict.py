"""What may be said of one commit's speed beside another's, and how it is written down.

Ratios only: seconds of one machine on one day say nothing on another.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree as ET

from loadtest.measure.stats import ratio_interval

LEAST_THROUGHPUT = 0.95  # head over base: surely less is a regression
MOST_P99 = 1.10  # surely more is one

REGRESSION = "REGRESSION"
IMPROVEMENT = "improvement"
NOTHING = "no regression shown"
INCONCLUSIVE = "INCONCLUSIVE (noise floor too wide)"

PASSED, FAILED, IMPOSSIBLE, SLOWER = 0, 1, 2, 3  # exit status
COLUMNS = ("figure", "A/A interval", "head / base", "verdict")
Pair = tuple[float, float]
"""A measure and base's."""


class Interval(NamedTuple):
    """A ratio, and where it lies with a probability of 95 %."""

    estimate: float
    low: float
    high: float


class Figure(NamedTuple):
    """What is measured, and the ratio of head to base that is too bad.

    Attributes:
        name: For a table.
        bound: Below 1 where more is better, above where less is.
    """

    name: str
    bound: float

    def verdict(self, floor: Interval, ratio: Interval) -> str:
        """The rule.

        Args:
            floor: Of base to itself: what this machine calls a difference where there is none.
            ratio: Of head to base.
        """
        widest = max(self.bound, 1 / self.bound)
        if any(map(math.isnan, (*floor, *ratio))):
            return INCONCLUSIVE
        # A difference counts where it is beyond the bound and beyond the noise as well.
        worse = ratio.high < min(1 / widest, floor.low)
        better = ratio.low > max(widest, floor.high)
        if self.bound > 1:
            worse, better = better, worse
        if worse or better:
            return REGRESSION if worse else IMPROVEMENT
        return NOTHING if 1 / widest <= floor.low and floor.high <= widest else INCONCLUSIVE


@dataclass(frozen=True)
class Row:
    """What came of a figure.

    Attributes:
        same: Of base again and base, in each pair.
        pairs: Of head and base.
        seed: Of the bootstrap.
    """

    figure: Figure
    same: Sequence[Pair]
    pairs: Sequence[Pair]
    seed: int

    @property
    def floor(self) -> Interval:
        """Of base to itself."""
        return interval(self.same, self.seed)

    @property
    def ratio(self) -> Interval:
        """Of head to base."""
        return interval(self.pairs, self.seed)

    @property
    def verdict(self) -> str:
        """By the rule."""
        return self.figure.verdict(self.floor, self.ratio)

    def cells(self) -> list[str]:
        """In the order of COLUMNS."""
        floor, ratio = self.floor, self.ratio
        return [
            self.figure.name,
            f"{floor.low:.3f} to {floor.high:.3f}",
            f"{ratio.estimate:.3f} ({ratio.low:.3f} to {ratio.high:.3f})",
            self.verdict,
        ]

    def record(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "figure": self.figure.name,
            "bound": self.figure.bound,
            "noise_floor": self.floor._asdict(),
            "noise_floor_ratios": [again / base for again, base in self.same],
            "ratio": self.ratio._asdict(),
            "ratios": [head / base for head, base in self.pairs],
            "verdict": self.verdict,
        }


def interval(pairs: Sequence[Pair], seed: int) -> Interval:
    """The geometric mean of the ratios and its interval; see ``statistics``."""
    return Interval(*ratio_interval(pairs, seed))


@dataclass(frozen=True)
class Outcome:
    """What is published.

    Attributes:
        facts: Commits, machine, date, seed and so on, by name.
        rows: Empty if nothing could be measured.
        faults: Wrong answers and errors of head, in words.
        problem: Why nothing could be measured; empty if it could.
        strict: Shall a regression fail?
    """

    facts: dict[str, str | int | float]
    rows: Sequence[Row] = ()
    faults: Sequence[str] = ()
    problem: str = ""
    strict: bool = False

    @property
    def status(self) -> int:
        """The exit status."""
        if self.problem:
            return IMPOSSIBLE
        if self.faults:
            return FAILED
        slower = any(row.verdict == REGRESSION for row in self.rows)
        return SLOWER if slower and self.strict else PASSED

    def markdown(self) -> str:
        """A table, and all that it takes to read it."""
        lines = [f"- {name}: {fact}" for name, fact in self.facts.items()]
        if self.rows:
            lines += ["", f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
            lines += [f"| {' | '.join(row.cells())} |" for row in self.rows]
            lines += [
                "",
                "Geometric means of paired ratios with bootstrapped 95 % intervals; A/A is base "
                "beside itself. A regression is a throughput whose upper bound is below "
                f"{LEAST_THROUGHPUT:g}, or a p99 whose lower bound is above {MOST_P99:g}.",
            ]
        lines += [f"\nFAILED: head: {fault}" for fault in self.faults]
        if self.problem:
            lines += [f"\nNOT MEASURED: {self.problem}"]
        return "\n".join(lines)

    def record(self) -> dict[str, Any]:
        """For JSON."""
        return {
            **self.facts,
            "figures": [row.record() for row in self.rows],
            "faults": list(self.faults),
            "problem": self.problem,
            "strict": self.strict,
            "status": self.status,
        }

    def junit(self) -> str:
        """For continuous integration; a case for the answers and one for each figure."""
        suite = ET.Element("testsuite", name="loadtest compare")
        answers = ET.SubElement(suite, "testcase", classname="compare", name="answers of head")
        if self.problem:
            ET.SubElement(answers, "error", message="not measured").text = _allowed(self.problem)
        elif self.faults:
            words = _allowed("\n".join(self.faults))
            ET.SubElement(answers, "failure", message="wrong answers or errors").text = words
        for row in self.rows:
            name, text = row.figure.name, " | ".join(row.cells())
            case = ET.SubElement(suite, "testcase", classname="compare", name=name)
            if row.verdict == REGRESSION and self.strict:
                ET.SubElement(case, "failure", message=REGRESSION).text = text
            elif row.verdict == INCONCLUSIVE:
                ET.SubElement(case, "skipped", message=INCONCLUSIVE)
            ET.SubElement(case, "system-out").text = text
        for kind, name in (("failure", "failures"), ("error", "errors"), ("skipped", "skipped")):
            suite.set(name, str(len(suite.findall(f"*/{kind}"))))
        suite.set("tests", str(len(suite.findall("testcase"))))
        ET.indent(suite)
        return ET.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"

    def write(self, folder: Path) -> None:
        """Write compare.json, compare.xml (JUnit) and compare.md."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "compare.json").write_text(json.dumps(self.record(), indent=2) + "\n")
        (folder / "compare.xml").write_text(self.junit(), encoding="utf-8")
        (folder / "compare.md").write_text(self.markdown() + "\n")


def _allowed(text: str) -> str:
    """Without the control characters that XML cannot say."""
    return "".join(c if c.isprintable() or c in "\n\t" else "?" for c in text)
