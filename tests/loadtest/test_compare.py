"""The regression rule, the order of turns, the worktrees, and comparisons of real commits."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from loadtest.generator.expectations import Expectations
from loadtest.measure.stats import Interval, ratio_interval
from loadtest.regression.compare import (
    FIGURES,
    MANY,
    MORE,
    ONE,
    TAIL,
    Bench,
    GateError,
    HeadError,
    Plan,
    Server,
    compared,
    fault,
    orders,
    sides,
)
from loadtest.regression.verdict import (
    IMPROVEMENT,
    INCONCLUSIVE,
    NOTHING,
    REGRESSION,
    Outcome,
    Row,
)
from loadtest.server import REPOSITORY, free_port
from tests.loadtest.repositories import git, small_repository, trees
from tests.tiny import SERVED_BUNDLES

BUNDLE = SERVED_BUNDLES / "cnn"
needs_wrk = pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk is not installed")
QUIET = Interval(1.0, 0.99, 1.01)
# Code that a commit may add to batcher.py, which takes effect after the models were verified.
PLANTED = """

_made = Batcher.__init__


def _init(self, predict, **options):
    def planted(inputs):
        {fault}

    _made(self, planted, **options)


Batcher.__init__ = _init
"""
SLOW = "time.sleep(0.005); return predict(inputs)"
WRONG = "return {name: np.roll(array, 1, axis=-1) for name, array in predict(inputs).items()}"


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A clone of this repository's last commit, which tests modify."""
    if not (REPOSITORY / ".git").exists():
        pytest.skip("these files are in no git repository")
    folder = tmp_path / "clone"
    git(REPOSITORY, "clone", "--quiet", str(REPOSITORY), str(folder))
    return folder


def _commit(clone: Path, fault: str) -> None:
    with (clone / "service" / "engine" / "batcher.py").open("a") as file:
        file.write(PLANTED.format(fault=fault))
    git(clone, "commit", "--quiet", "--all", "--message", "Plant a fault")


def _plan(clone: Path, base: str, head: str, *, pairs: int = 2) -> Plan:
    bundle = clone / "tests" / "service" / "bundles" / "cnn"
    return Plan(base, head, bundle, clone, pairs=pairs, seconds=0.5, strict=True)


@pytest.mark.parametrize(
    ("throughput", "p99", "verdict"),
    [
        (Interval(0.90, 0.87, 0.949), Interval(1.2, 1.101, 1.3), REGRESSION),
        (Interval(1.10, 1.06, 1.20), Interval(0.8, 0.75, 0.90), IMPROVEMENT),
        (Interval(0.90, 0.80, 0.951), Interval(1.2, 1.099, 1.3), NOTHING),
        (Interval(1.00, 0.96, 1.04), Interval(1.0, 0.93, 1.08), NOTHING),
    ],
)
def test_only_what_is_sure_is_called_a_regression(
    throughput: Interval, p99: Interval, verdict: str
) -> None:
    """Only an interval that lies wholly beyond the bound is a regression."""
    assert ONE.verdict(QUIET, throughput) == MORE.verdict(QUIET, throughput) == verdict
    assert TAIL.verdict(QUIET, p99) == verdict


def test_where_noise_looks_like_a_regression_nothing_is_claimed() -> None:
    """If A/A exceeds a bound, only ratios beyond both the bound and the noise count."""
    for low, high in [(0.94, 1.0), (1.0, 1.06), (0.5, 1.5)]:
        floor = Interval(1.0, low, high)
        assert ONE.verdict(floor, Interval(1.0, 0.96, 1.04)) == INCONCLUSIVE
        assert ONE.verdict(floor, Interval(0.2, 0.2, 0.2)) == REGRESSION
        assert ONE.verdict(floor, Interval(5.0, 5.0, 5.0)) == IMPROVEMENT
    assert ONE.verdict(Interval(1.0, 0.5, 1.5), Interval(0.6, 0.55, 0.65)) == INCONCLUSIVE
    noisy = Interval(1.0, 0.9, 2.0)
    assert TAIL.verdict(noisy, Interval(1.5, 1.2, 1.9)) == INCONCLUSIVE
    assert TAIL.verdict(noisy, Interval(3.0, 2.5, 3.5)) == REGRESSION
    same = Interval(1.0, 1.0, 1.0)
    assert ONE.verdict(Interval(1.0, float("nan"), 1.0), same) == INCONCLUSIVE
    assert ONE.verdict(Interval(1.0, 0.951, 1.05), same) != INCONCLUSIVE
    assert TAIL.verdict(Interval(1.0, 0.92, 1.09), same) != INCONCLUSIVE


def test_pairs_become_a_geometric_mean_and_an_interval_around_it() -> None:
    """Ratios of 0.5 and 2 average to 1; the same seed gives the same interval."""
    pairs = [(2.0, 1.0), (1.0, 2.0), (3.0, 3.0), (2.1, 2.0)]
    found = ratio_interval(pairs, 1)
    assert found.estimate == pytest.approx(1.05**0.25)
    assert found.low < 1 < found.high
    assert found == ratio_interval(pairs, 1)


def _outcome(*, strict: bool, faults: tuple[str, ...] = (), problem: str = "") -> Outcome:
    same = [(1.0, 1.0), (1.01, 1.0), (0.99, 1.0)]
    noisy = [(1.0, 2.0), (2.0, 1.0), (1.0, 1.0)]
    slower = [(0.8, 1.0), (0.81, 1.0), (0.79, 1.0)]
    rows = [Row(ONE, same, slower, 0), Row(MORE, noisy, slower, 0), Row(TAIL, same, same, 0)]
    return Outcome({"seed": 0}, rows, faults, problem, strict=strict)


def test_a_regression_fails_only_where_it_is_asked_to(tmp_path: Path) -> None:
    """With strict, status 3 and a JUnit failure; without it, status 0 and the same text."""
    for strict, status in ((True, 3), (False, 0)):
        outcome = _outcome(strict=strict)
        assert outcome.status == status
        verdicts = [row.verdict for row in outcome.rows]
        assert verdicts == [REGRESSION, INCONCLUSIVE, NOTHING]
        assert "0.800 (0.790 to 0.810) | REGRESSION |" in outcome.markdown()
        outcome.write(tmp_path)
        record = json.loads((tmp_path / "compare.json").read_text())
        assert record["status"] == status
        assert record["figures"][0]["ratios"] == [0.8, 0.81, 0.79]
        suite = ET.fromstring((tmp_path / "compare.xml").read_bytes())[0]  # noqa: S314 - our own
        counted = {name: suite.get(name) for name in ("tests", "failures", "errors", "skipped")}
        failures = str(int(strict))
        assert counted == {"tests": "4", "failures": failures, "errors": "0", "skipped": "1"}


def test_wrong_answers_fail_always() -> None:
    """Wrong answers give status 1 even without strict; status 2 if nothing was measured."""
    wrong = _outcome(strict=False, faults=("wrong answers x 3",))
    assert wrong.status == 1
    assert "FAILED: head: wrong answers x 3" in wrong.markdown()
    assert "failure" in wrong.junit()
    problem = _outcome(strict=False, problem="no such\x00 commit")
    assert problem.status == 2
    assert "NOT MEASURED: no such" in problem.markdown()
    assert "no such? commit" in problem.junit()


def test_the_order_of_turns_is_drawn_and_repeatable() -> None:
    """A seed determines the order; base is first in half of the pairs."""
    drawn = orders(8, "0 A/B")
    assert drawn == orders(8, "0 A/B")
    assert len({str(orders(8, f"{seed} A/B")) for seed in range(10)}) == 10
    for figure in FIGURES:
        assert sum(turns[figure] for turns in drawn) == 4


def test_the_sides_take_as_many_turns_and_neither_is_always_second() -> None:
    """The turns are A B B A and so on, whichever side begins."""
    assert sides(1, True) == [True, False]
    assert sides(3, True) == [True, False, False, True, True, False]
    assert sides(2, False) == [False, True, True, False]


def _bench(url: str, folder: Path) -> Bench:
    """A bench whose servers are all the same one."""
    plan = Plan("HEAD", "HEAD", BUNDLE, seconds=0.5)
    asked = {samples: Expectations(BUNDLE, samples, "infer/raw") for samples in (1, MANY)}
    base, head = Server("base", url), Server("head", url)
    return Bench(plan, base, base, head, "infer/raw", asked, folder, lambda line: None, rate=40.0)


def test_pairs_have_arrivals_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both sides of a pair get the same arrivals; different pairs get different ones."""
    seeds: list[int] = []

    def p99_ms(bench: Bench, server: Server, seed: int) -> float:
        seeds.append(seed)
        return 1.0

    monkeypatch.setattr(Bench, "p99_ms", p99_ms)
    bench = _bench("http://127.0.0.1:1", tmp_path)
    for number in range(2):
        assert bench.pair(TAIL, bench.head, True, f"A/B {number}") == (1.0, 1.0)
    assert (seeds[0], seeds[2]) == (seeds[1], seeds[3])
    assert seeds[0] != seeds[2]


def test_a_fault_is_heads_or_prevents_the_measurement() -> None:
    """Faults of head are reported; with faults of base nothing can be measured."""
    head, base = (fault(Server(side, ""), "HTTP 500 x 1", "lost") for side in ("head", "base"))
    assert isinstance(head, HeadError)
    assert head.args == ("HTTP 500 x 1", "lost")
    assert isinstance(base, GateError)
    assert str(base) == "base itself gave wrong answers or errors: HTTP 500 x 1; lost"


@needs_wrk
def test_the_service_is_measured_by_both_clients(service_url: str, tmp_path: Path) -> None:
    """Throughput of small and large requests by wrk, and a p99 in milliseconds by locust."""
    bench = _bench(service_url, tmp_path)
    assert bench.throughput(ONE, bench.base) > bench.throughput(MORE, bench.base) > 1
    assert 0 < bench.p99_ms(bench.base, 0) < 10_000


@needs_wrk
def test_a_server_that_is_gone_is_a_fault(tmp_path: Path) -> None:
    """A refused connection is a fault for wrk and for locust, and gives no figure."""
    bench = _bench(f"http://127.0.0.1:{free_port()}", tmp_path)
    with pytest.raises(HeadError):
        bench.throughput(ONE, bench.head)
    with pytest.raises(HeadError, match="Connection"):
        bench.p99_ms(bench.head, 0)


def test_what_cannot_be_measured_is_status_2(tmp_path: Path) -> None:
    """An unknown commit, too few pairs or a missing bundle gives status 2 and a reason."""
    small = small_repository(tmp_path / "small")
    bundle = REPOSITORY / "tests" / "service" / "bundles" / "cnn"
    for plan, words in (
        (Plan("nowhere", "HEAD", bundle, small), "rev-parse failed"),
        (Plan("HEAD", "HEAD", bundle, small, pairs=1), "at least 2 pairs"),
        (Plan("HEAD", "HEAD", bundle, small, seconds=0), "more than 0 s"),
        (Plan("HEAD", "HEAD", small, small), "is not a bundle"),
    ):
        outcome = compared(plan)
        assert outcome.status == 2
        assert words in outcome.problem
    assert trees(small) == 1


@pytest.mark.slow
@needs_wrk
def test_a_commit_is_compared_with_itself(clone: Path, tmp_path: Path) -> None:
    """The command measures every figure and its noise, and leaves no worktree behind."""
    plan = _plan(clone, "HEAD", "HEAD")
    command = [sys.executable, "-m", "loadtest", "compare", "--base", "HEAD", "--head", "HEAD"]
    command += ["--pairs", "2", "--seconds", "0.5", "--repository", str(clone)]
    command += ["--bundle", str(plan.bundle), "--out", str(tmp_path)]
    ran = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    for figure in FIGURES:
        assert f"| {figure.name} | " in ran.stdout
    for word in ("A/A interval", "seed: 0", git(clone, "rev-parse", "--short", "HEAD")):
        assert word in ran.stdout
    assert json.loads((tmp_path / "compare.json").read_text())["faults"] == []
    assert trees(clone) == 1


@pytest.mark.slow
@needs_wrk
def test_a_slower_commit_is_found(clone: Path) -> None:
    """A sleep of 5 ms per batch is a regression, unless the noise makes it inconclusive."""
    _commit(clone, SLOW)
    outcome = compared(_plan(clone, "HEAD~1", "HEAD", pairs=3))
    assert not outcome.problem
    (slower,) = (row for row in outcome.rows if row.figure == ONE)
    assert slower.ratio.high < 0.8
    if slower.verdict != INCONCLUSIVE:
        assert slower.verdict == REGRESSION
        assert outcome.status == 3
    assert trees(clone) == 1


@pytest.mark.slow
@needs_wrk
def test_a_commit_that_answers_wrongly_fails(clone: Path) -> None:
    """A commit that shifts labels by one gives status 1, and the labels are reported."""
    _commit(clone, WRONG)
    outcome = compared(_plan(clone, "HEAD~1", "HEAD"))
    assert outcome.status == 1, outcome.problem
    assert "wrong answers" in outcome.faults[0]
    assert "labels" in outcome.faults[0]
    assert trees(clone) == 1
