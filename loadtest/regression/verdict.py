"""Decides whether one commit is slower than another, and writes the outcome.

Only ratios are reported: absolute times on one machine and day do not transfer to others.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from loadtest.measure.stats import Interval, ratio_interval
from loadtest.report.formats import Case, junit, markdown_table

LEAST_THROUGHPUT = 0.95  # head over base: an interval wholly below this is a regression
MOST_P99 = 1.10  # head over base: an interval wholly above this is a regression

REGRESSION = "REGRESSION"
IMPROVEMENT = "improvement"
NOTHING = "no regression shown"
INCONCLUSIVE = "INCONCLUSIVE (noise floor too wide)"

PASSED, FAILED, IMPOSSIBLE, SLOWER = 0, 1, 2, 3  # exit status
COLUMNS = ("figure", "A/A interval", "head / base", "verdict")
Pair = tuple[float, float]
"""A figure of one side, and base's figure."""


class Figure(NamedTuple):
    """What is measured, and the ratio of head to base beyond which it is a regression.

    Attributes:
        name: The name shown in tables.
        bound: Below 1 if larger figures are better, above 1 if smaller ones are.
    """

    name: str
    bound: float

    def verdict(self, floor: Interval, ratio: Interval) -> str:
        """Decide between regression, improvement, no regression and inconclusive.

        Args:
            floor: Interval of the ratio of base to itself: the noise of this machine.
            ratio: Interval of the ratio of head to base.
        """
        widest = max(self.bound, 1 / self.bound)
        if any(map(math.isnan, (*floor, *ratio))):
            return INCONCLUSIVE
        # A difference counts if the interval is beyond both the bound and the noise.
        worse = ratio.high < min(1 / widest, floor.low)
        better = ratio.low > max(widest, floor.high)
        if self.bound > 1:
            worse, better = better, worse
        if worse or better:
            return REGRESSION if worse else IMPROVEMENT
        return NOTHING if 1 / widest <= floor.low and floor.high <= widest else INCONCLUSIVE


@dataclass(frozen=True)
class Row:
    """The measurements of one figure.

    Attributes:
        same: Pairs of the second and the first server of base.
        pairs: Pairs of head and base.
        seed: Seed of the bootstrap.
    """

    figure: Figure
    same: Sequence[Pair]
    pairs: Sequence[Pair]
    seed: int

    @property
    def floor(self) -> Interval:
        """Interval of the ratio of base to itself."""
        return ratio_interval(self.same, self.seed)

    @property
    def ratio(self) -> Interval:
        """Interval of the ratio of head to base."""
        return ratio_interval(self.pairs, self.seed)

    @property
    def verdict(self) -> str:
        """The verdict by the rule of ``Figure.verdict``."""
        return self.figure.verdict(self.floor, self.ratio)

    def cells(self) -> list[str]:
        """The row's cells, in the order of COLUMNS."""
        floor, ratio = self.floor, self.ratio
        return [
            self.figure.name,
            f"{floor.low:.3f} to {floor.high:.3f}",
            f"{ratio.estimate:.3f} ({ratio.low:.3f} to {ratio.high:.3f})",
            self.verdict,
        ]

    def record(self) -> dict[str, Any]:
        """The row as a JSON-serializable dictionary."""
        return {
            "figure": self.figure.name,
            "bound": self.figure.bound,
            "noise_floor": self.floor._asdict(),
            "noise_floor_ratios": [again / base for again, base in self.same],
            "ratio": self.ratio._asdict(),
            "ratios": [head / base for head, base in self.pairs],
            "verdict": self.verdict,
        }


@dataclass(frozen=True)
class Outcome:
    """The outcome of a comparison, as it is published.

    Attributes:
        facts: Commits, machine, date, seed and so on, by name.
        rows: One row for each figure; empty if nothing could be measured or head had faults.
        faults: Wrong answers and errors of head, as text.
        problem: Why nothing could be measured; empty if something was.
        strict: Whether a regression sets exit status 3.
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
        """A Markdown report: the facts, the table, and how to read it."""
        lines = [f"- {name}: {fact}" for name, fact in self.facts.items()]
        if self.rows:
            lines += ["", markdown_table(COLUMNS, [row.cells() for row in self.rows])]
            lines += [
                "",
                "Geometric means of paired ratios with 95% bootstrap intervals; A/A compares base "
                "with itself. A regression is a throughput whose upper bound is below "
                f"{LEAST_THROUGHPUT:g}, or a p99 whose lower bound is above {MOST_P99:g}.",
            ]
        lines += [f"\nFAILED: head: {fault}" for fault in self.faults]
        if self.problem:
            lines += [f"\nNOT MEASURED: {self.problem}"]
        return "\n".join(lines)

    def record(self) -> dict[str, Any]:
        """The outcome as a JSON-serializable dictionary."""
        return {
            **self.facts,
            "figures": [row.record() for row in self.rows],
            "faults": list(self.faults),
            "problem": self.problem,
            "strict": self.strict,
            "status": self.status,
        }

    def junit(self) -> str:
        """JUnit XML for continuous integration: a case for the answers and one for each figure."""
        answers = Case("compare", "answers of head")
        if self.problem:
            answers = replace(answers, kind="error", message="not measured", text=self.problem)
        elif self.faults:
            words = "\n".join(self.faults)
            message = "wrong answers or errors"
            answers = replace(answers, kind="failure", message=message, text=words)
        cases = [answers]
        for row in self.rows:
            text = " | ".join(row.cells())
            case = Case("compare", row.figure.name, output=text)
            if row.verdict == REGRESSION and self.strict:
                case = replace(case, kind="failure", message=REGRESSION, text=text)
            elif row.verdict == INCONCLUSIVE:
                case = replace(case, kind="skipped", message=INCONCLUSIVE)
            cases.append(case)
        return junit("loadtest compare", cases, str(self.facts.get("date", "")))

    def write(self, folder: Path) -> None:
        """Write compare.json, compare.xml (JUnit) and compare.md."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "compare.json").write_text(json.dumps(self.record(), indent=2) + "\n")
        (folder / "compare.xml").write_text(self.junit(), encoding="utf-8")
        (folder / "compare.md").write_text(self.markdown() + "\n")
