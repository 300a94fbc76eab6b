"""The pages of a load test: right figures, no INVALID headlines, and no external references."""

from html.parser import HTMLParser

import pytest

from loadtest.measure.result import Result
from loadtest.report.points import run_report, sweep_report
from loadtest.report.server import level
from loadtest.report.words import labels, sweep_verdict
from tests.loadtest.points import point, sample, sweep_of

EVIL = "<script src=http://evil.example/x.js></script>\"'&"


class _Page(HTMLParser):
    """A parsed page: its tags, the cells of its tables, and its texts by tag."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self.texts: list[tuple[str, str]] = []
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag
        if tag == "tr":
            self.rows.append([])

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        self.texts.append((self._inside, data))
        if self._inside in ("td", "th"):
            self.rows[-1].append(data)

    def cells(self, name: str, column: str) -> list[str]:
        """All cells of a column, for the rows that begin with a name."""
        found: list[str] = []
        head: list[str] = []
        for row in self.rows:
            head = row if column in row and row[0] == "point" else head
            if row[0] == name and column in head:
                found.append(row[head.index(column)])
                head = []
        return found

    def tiles(self) -> dict[str, str]:
        """The headline figures, by name."""
        values = [text for tag, text in self.texts if tag == "b"]
        return dict(zip((text for tag, text in self.texts if tag == "small"), values, strict=True))

    def all_text(self) -> str:
        return " ".join(text for tag, text in self.texts if tag != "style")


def test_the_figures_are_those_of_the_result() -> None:
    """Rates, latencies, goodput, cost, errors and lag are in the right places."""
    tally = {"errors": {"HTTP 429": 3, "HTTP 500": 1}, "no_room": 7}
    result = point(latencies_ms=[1, 2, 3, 40], price=0.72, tally=tally)
    page = _Page(run_report([result], []))
    (name,) = labels([result])
    expected = {
        "requests/s": "4",
        "samples/s": "4",
        "goodput/s": "3",  # 40 ms is over the scenario's bound of 20 ms
        "p50 ms": f"{result.latency_ms['p50']:,.2f}",
        "p99.9 ms": f"{result.latency_ms['p99.9']:,.2f}",
        "cost per million samples": "50",  # 0.72 an hour is 0.0002 a second or 0.00005 a sample
        "errors": "HTTP 429: 3, HTTP 500: 1",
        "HTTP 500": "1",
        "not sent": "7",
        "server CPU, cores": "0.75",
        "server memory, MiB": "256",
        "generator CPU, share of a core": "25%",
        "send delay p99 ms": "0.12",
        "ceiling, requests/s": "1,000",
        "share of it used": "0%",
    }
    assert {column: page.cells(name, column) for column in expected} == {
        column: [value] for column, value in expected.items()
    }
    tiles = page.tiles()
    assert tiles["goodput within 20 ms"] == "3/s"
    assert tiles["p99"] == f"{result.latency_ms['p99']:,.2f} ms"
    for words in ("a machine of 2 cores", "locust 2.47.0", "abc1234", "Server: open loop", "2026-"):
        assert words in page.all_text()


def test_an_invalid_point_is_marked_and_enters_no_headline() -> None:
    """Only the valid point has headline figures; both points are in the table."""
    good = point(rate=100)
    bad = point(rate=900, latencies_ms=[77] * 9, invalid=["the generator took 99% of a core"])
    text = run_report([good, bad], [])
    page = _Page(text)
    assert list(page.tiles().values()) == ["4/s"]
    assert "1 of 2 points are INVALID" in page.all_text()
    assert page.cells("900/s, INVALID", "verdict") == ["INVALID"]
    assert page.cells("900/s, INVALID", "p99 ms") == [f"{bad.latency_ms['p99']:.2f}"]
    assert text.count('<tr class="dim">') == 3  # one row in each table
    assert "the generator took 99% of a core" in page.all_text()
    assert "<h1>Load test</h1>" in text


def test_without_a_valid_point_the_whole_page_is_invalid() -> None:
    """There is no headline figure, and the title says INVALID."""
    text = run_report([point(invalid=["measured 1.0 s, expected 10 s"])], [])
    assert '<h1>Load test <span class="bad">INVALID</span></h1>' in text
    assert "<b>" not in text
    assert "INVALID, the figures below do not describe the service: measured 1.0 s" in text


def test_missed_thresholds_are_the_verdict() -> None:
    """The first sentence names the missed thresholds."""
    page = run_report([point()], ["p99 8.00 ms > 1 ms"])
    assert '<p class="verdict bad">FAILED: p99 8.00 ms &gt; 1 ms</p>' in page


def _hostile(rate: float) -> Result:
    return point(
        rate=rate,
        invalid=[EVIL],
        tally={"errors": {EVIL: 3}, "wrong_answers": 1},
        wrong_answer_examples=[EVIL],
        model=f"cnn{EVIL}",
        scenario="Server",
        variant=EVIL,
    )


@pytest.mark.parametrize("search", [False, True])
def test_the_page_runs_nothing_and_asks_nobody(search: bool) -> None:
    """Texts are escaped, pictures are embedded, and a content security policy blocks the rest."""
    points = [_hostile(100), _hostile(200)]
    text = sweep_report(sweep_of(points, None)) if search else run_report(points, [EVIL])
    page = _Page(text)
    allowed = {"html", "meta", "title", "style", "h1", "h2", "p", "span", "div", "b", "small"}
    allowed |= {"dl", "dt", "dd", "img", "table", "tr", "th", "td"}
    assert {tag for tag, _ in page.tags} <= allowed
    pictures = [attributes for tag, attributes in page.tags if tag == "img"]
    assert pictures
    for attributes in pictures:
        assert str(attributes["src"]).startswith("data:image/png;base64,")
        assert attributes["alt"]
    assert not any({"href", "onload", "onerror"} & attributes.keys() for _, attributes in page.tags)
    assert "default-src 'none'" in text
    assert "color-scheme: light dark" in text
    assert "url(" not in text
    assert EVIL in page.all_text()


def test_a_server_that_says_nothing_is_said() -> None:
    """Without samples, the server's figures are reported as unknown and no plot is drawn."""
    silent = _Page(run_report([point(samples=[])], []))
    (name,) = labels([point(samples=[])])
    assert "The server reported no counters" in silent.all_text()
    assert silent.cells(name, "server CPU, cores") == ["not known"]
    assert silent.cells(name, "server GPU") == ["not known"]
    spoken = _Page(run_report([point()], []))
    assert "reported no counters" not in spoken.all_text()
    count = [sum(tag == "img" for tag, _ in page.tags) for page in (silent, spoken)]
    assert count == [2, 5]


def test_what_only_some_samples_know_is_shown() -> None:
    """A remote server has counters but no processes: batches are drawn, CPU is unknown."""
    elsewhere = [sample(1.0 + i, cpu_cores=None, rss_bytes=None) for i in range(3)]
    page = _Page(run_report([point(samples=elsewhere)], []))
    assert "reported no counters" not in page.all_text()
    assert page.cells("cnn, Server, 100/s", "server CPU, cores") == ["not known"]
    assert sum(tag == "img" for tag, _ in page.tags) == 4


def test_idle_seconds_and_the_warm_up_are_left_out() -> None:
    """Samples before the first request, in the warm-up and after the end do not count."""
    idle = {"requests_per_s": 0.0, "batches_per_s": 0.0, "cpu_cores": 0.0}
    seen = [
        sample(1, **idle),
        sample(2, cpu_cores=9.0),
        sample(3, cpu_cores=7.0),
        sample(4, cpu_cores=1.0),
        sample(5, cpu_cores=2.0, batch_sizes={"1": 10, "2": 0, "4": 0, "8": 10, "+Inf": 0}),
        sample(6, **idle),
    ]
    found = level(point(samples=seen, warmup_s=1.0))
    assert found["cpu_cores"] == pytest.approx(1.5)
    assert found["sizes"] == pytest.approx(
        {"1": 40 / 70, "2": 10 / 70, "3-4": 10 / 70, "5-8": 1 / 7}
    )


@pytest.mark.parametrize(
    ("capacity", "above", "words"),
    [
        (1, [], "no higher rate was offered, so it may be higher"),
        (1, [["late"]], "every higher point is INVALID, so it may be higher"),
        (1, [["late"], []], "at 301/s the bound was missed"),
        (None, [["late"]], "No capacity: at no valid point were 99% of the requests answered"),
    ],
)
def test_a_capacity_is_no_more_certain_than_what_lies_above_it(
    capacity: int | None, above: list[list[str]], words: str
) -> None:
    """Only a valid point at a higher rate shows that the service cannot do more."""
    points = [point(rate=100), point(rate=200)]
    points += [
        point(rate=300 + i, latencies_ms=[90], invalid=reasons) for i, reasons in enumerate(above)
    ]
    sentence, _ = sweep_verdict(sweep_of(points, capacity))
    assert words in sentence
    assert words.replace("'", "&#39;") in sweep_report(sweep_of(points, capacity))


def test_a_sweep_shows_the_capacity_and_every_point() -> None:
    """The capacity is a headline and marked in the tables; unanswered points are shown too."""
    dead = point(rate=900, latencies_ms=[], invalid=["no correct answer"])
    points = [point(rate=100), point(rate=300), point(rate=600, latencies_ms=[80]), dead]
    page = _Page(sweep_report(sweep_of(points, 1)))
    tiles = page.tiles()
    assert tiles["capacity (goodput)"] == "4/s"
    assert tiles["offered at the capacity"] == "300/s"
    assert tiles["generator ceiling"] == "1,000/s"
    for name in ("100/s", "300/s (capacity)", "600/s", "900/s, INVALID"):
        assert len(page.cells(name, "requests/s")) == 1
    assert sum(tag == "img" for tag, _ in page.tags) == 7


def test_a_sweep_leaves_out_what_was_repeated_validly() -> None:
    """An INVALID measurement is left out if the same rate also has a valid one."""
    points = [point(invalid=["late"]), point(), point(rate=300, invalid=["late"])]
    page = _Page(sweep_report(sweep_of(points, 1)))
    assert "1 INVALID measurements that were repeated are not shown" in page.all_text()
    assert len(page.cells("100/s (capacity)", "requests/s")) == 1
    assert len(page.cells("300/s, INVALID", "requests/s")) == 1


def test_an_overload_shows_its_refusals() -> None:
    """Refused requests are counted by kind, and a second without answers is plotted too."""
    tally = {"errors": {"HTTP 429": 40}, "refused_each_window": [0, 30, 10, 0], "sent": 56}
    result = point(scenario="Overload", rate=2000, tally=tally, p99_each_window_ms=[5, 0, 300, 6])
    page = _Page(run_report([result], []))
    assert page.cells("cnn, Overload, 2,000/s", "HTTP 429") == ["40"]
    assert "71% refused" in page.all_text()


def test_names_tell_points_apart() -> None:
    """Labels are as short as possible; equal ones are numbered."""
    assert labels([point()]) == ["cnn, Server, 100/s"]
    assert labels([point(rate=5), point(rate=1500, invalid=["late"])]) == [
        "5/s",
        "1,500/s, INVALID",
    ]
    assert labels([point(), point()]) == ["cnn, Server, 100/s (1)", "cnn, Server, 100/s (2)"]
    assert labels([point(), point(variant="int8")]) == ["onnx", "int8"]
