"""The page in a real Chromium: what a person does with it, and what goes wrong meanwhile."""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
import pytest

from tests.service.browser import INSTALL_LINE, NOTHING, ONE, SEVEN, STATUS, Server, Visit, chromium

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page, Request, Route

DIGIT = Path(__file__).with_name("digit.png")
KEY = "a key of moderate length"
PHONE = {"viewport": {"width": 375, "height": 812}, "has_touch": True, "is_mobile": True}
Visitor = Callable[..., Visit]


@pytest.fixture(scope="module")
def browser() -> "Iterator[Browser]":
    """One Chromium for all tests."""
    playwright = pytest.importorskip("playwright.sync_api", reason=f"no Playwright: {INSTALL_LINE}")
    path = chromium()
    if path is None:
        pytest.skip(f"no Chromium to open the page in: {INSTALL_LINE}")
    with playwright.sync_playwright() as driver:
        # No sandbox: as root, as in CI, Chromium starts in none.
        opened = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def server(browser: "Browser", tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The service, started once there is a browser to open its page in."""
    started = Server(tmp_path_factory.mktemp("page"))
    started.start()
    yield started
    started.stop()


@pytest.fixture
def visit(browser: "Browser", server: Server) -> Iterator[Visit]:
    """A visit in which the browser meets nothing but the service and has nothing to complain of."""
    opened = Visit(browser, server.url)
    yield opened
    opened.close()


@pytest.fixture
def refused_visit(browser: "Browser", server: Server) -> Iterator[Visit]:
    """A visit in which answers are refusals, which the browser's console names."""
    opened = Visit(browser, server.url)
    yield opened
    opened.close(expected=STATUS)


def test_a_drawing_is_read_by_every_model(visit: Visit, server: Server) -> None:
    """A 1 is read as the service reads the shown pixels, with its bars, time and batch."""
    visit.draw(ONE)
    visit.settled()
    assert visit.given().max() > 200
    for model, label in visit.readings().items():
        body = {"images": visit.given().tolist(), "model": model}
        truth = httpx.post(f"{server.url}/predict", json=body).json()["predictions"][0]
        assert label == truth["label"]
        card = visit.page.locator(f".model[data-model={model}]")
        shares = card.locator(".bars li").evaluate_all(
            "rows => rows.map(row => Number(row.style.getPropertyValue('--share')))"
        )
        assert shares == truth["probabilities"]
        assert card.locator(".time").inner_text().endswith(" ms")
        assert card.locator(".compute").inner_text().endswith(" ms")
        assert int(card.locator(".batch").inner_text()) >= 1
    assert visit.readings()["cnn"] == "1"
    assert set(visit.readings()) == {"cnn", "mlp"}


def test_readings_come_while_drawing_one_request_at_a_time(visit: Visit) -> None:
    """With the mouse still down each model has answered, and never was asked twice at once."""
    in_flight: Counter[str] = Counter()
    most: Counter[str] = Counter()

    def begun(request: "Request") -> None:
        in_flight[request.url] += 1
        most[request.url] = max(most[request.url], in_flight[request.url])

    visit.page.on("request", begun)
    for end in ("requestfinished", "requestfailed"):
        visit.page.on(end, lambda request: in_flight.subtract([request.url]))
    box = visit.page.locator("#drawing").bounding_box()
    assert box is not None
    visit.page.mouse.move(box["x"] + 150, box["y"] + 60)
    visit.page.mouse.down()
    for step in range(60):
        visit.page.mouse.move(box["x"] + 150, box["y"] + 60 + 3 * step)
    visit.settled()
    assert len(visit.asked("cnn")) > 1
    assert {count for url, count in most.items() if "predict" in url} == {1}
    visit.page.mouse.up()
    assert (visit.asked("cnn")[-1] == visit.given()).all()


def test_sliders_move_what_is_asked(visit: Visit) -> None:
    """A shift by pixels is exact, a quarter turn too, ground comes in; and back again."""
    visit.draw(SEVEN)
    visit.settled()
    drawn = visit.given()
    visit.move("#shift-x", 4)
    visit.move("#shift-y", -3)
    expected = np.zeros_like(drawn)
    expected[:-3, 4:] = drawn[3:, :-4]
    for model in ("cnn", "mlp"):
        assert (visit.asked(model)[-1] == expected).all()
    assert (visit.given() == expected).all()
    assert visit.page.locator("#shift-y-out").inner_text() == "\N{MINUS SIGN}3 px"
    visit.page.click("#straight")
    visit.move("#turn", 90)
    assert (visit.asked("mlp")[-1] == np.rot90(drawn, -1)).all()
    visit.move("#turn", 45)
    assert abs(int(visit.given().sum()) - int(drawn.sum())) < 0.1 * drawn.sum()


def test_undo_and_clear_take_back(visit: Visit) -> None:
    """Undo takes a stroke, Clear the sheet, and undo brings the sheet back."""
    visit.draw(ONE)
    visit.settled()
    one = visit.given()
    visit.draw([(0.2, 0.5), (0.8, 0.5)])
    visit.settled()
    assert (visit.given() != one).any()
    visit.page.keyboard.press("Control+z")
    visit.settled()
    assert (visit.given() == one).all()
    visit.page.click("#clear")
    visit.emptied()
    assert visit.given().max() == 0
    assert visit.page.locator("#verdict").inner_text() == "Draw something to begin."
    visit.page.click("#undo")
    visit.settled()
    assert (visit.given() == one).all()


def test_a_file_is_read_as_the_service_reads_it(visit: Visit, server: Server) -> None:
    """A chosen picture and a dropped one give the file's own pixels; drawing starts a new sheet."""
    visit.page.set_input_files("#file", DIGIT)
    visit.settled()
    assert visit.readings() == {"cnn": "7", "mlp": "7"}
    sent = httpx.post(f"{server.url}/predict/image?show=image", files={"image": DIGIT.read_bytes()})
    assert visit.given().tolist() == sent.json()["image"]
    visit.page.click("#clear")
    visit.drop("digit.png", "image/png", DIGIT.read_bytes())
    visit.settled()
    seven = visit.given()
    assert visit.readings() == {"cnn": "7", "mlp": "7"}
    visit.draw(ONE)
    visit.settled()
    assert (visit.given() != seven).any()
    visit.page.click("#undo")
    visit.settled()
    assert (visit.given() == seven).all()


def test_what_is_no_picture_is_refused_kindly(refused_visit: Visit) -> None:
    """The service's own words beside ours, nothing left of an old reading, and on with drawing."""
    visit = refused_visit
    visit.draw(ONE)
    visit.settled()
    visit.drop("letter.txt", "text/plain", b"dear reader")
    notice = visit.page.locator(".notice[data-kind=refused]")
    notice.wait_for()
    assert "cannot read this" in notice.inner_text()
    assert "not a PNG or JPEG" in notice.inner_text()
    assert visit.readings() == {"cnn": NOTHING, "mlp": NOTHING}
    assert visit.page.inner_text("#verdict") == "Nothing could be read."
    visit.draw(SEVEN)
    visit.settled()
    assert notice.count() == 0


def test_too_little_to_read_is_no_fault(visit: Visit) -> None:
    """Refused with 422, strokes are waited for and a picture is told of."""
    blank = {"error": "nothing is drawn"}
    visit.page.route("**/predict/image*", lambda route: route.fulfill(status=422, json=blank))
    visit.draw(ONE)
    visit.page.locator("#verdict", has_text="Keep drawing.").wait_for()
    assert visit.page.locator(".notice").count() == 0
    visit.drop("digit.png", "image/png", DIGIT.read_bytes())
    visit.page.locator(".notice", has_text="Nothing is drawn.").wait_for()
    assert visit.page.inner_text("#verdict") == "Nothing could be read."


def test_a_busy_service_is_asked_again(refused_visit: Visit) -> None:
    """Refused with 429, the page says so and asks again when it was told to."""
    visit, full = refused_visit, [True]

    def busy(route: "Route") -> None:
        if full[0]:
            headers = {"retry-after": "1"}
            route.fulfill(status=429, headers=headers, body='{"error": "the queue is full"}')
        else:
            route.continue_()

    visit.page.route("**/predict?model=cnn", busy)
    visit.draw(ONE)
    visit.page.locator(".notice[data-kind=busy]").wait_for()
    full[0] = False
    visit.page.locator(".notice").wait_for(state="detached")
    visit.settled()
    assert (visit.asked("cnn")[-1] == visit.given()).all()


def test_a_connection_that_breaks_is_tried_again(refused_visit: Visit) -> None:
    """The list of models, a drawing, a reading: each is asked for again, without a word lost."""
    visit = refused_visit
    broken: set[str] = set()

    def once(route: "Route") -> None:
        path = route.request.url.removeprefix(visit.url)
        if path in broken:
            route.continue_()
        else:
            broken.add(path)
            route.abort()

    visit.page.route(re.compile("/models$|/predict"), once)
    visit.page.reload()
    visit.page.locator(".model").first.wait_for()
    visit.draw(ONE)
    for digit in visit.page.locator(".model .digit").all():
        digit.filter(has_not_text=NOTHING).wait_for()
    visit.page.locator(".notice").wait_for(state="detached")
    assert broken == {
        *("/models", "/predict/image?show=image", "/predict?model=cnn", "/predict?model=mlp")
    }


def test_the_proof_is_shown_beside_the_readings(visit: Visit, server: Server) -> None:
    """Verdict, version, accuracy and golden figures of GET /models, for each model."""
    cards = httpx.get(f"{server.url}/models").json()["models"]
    visit.page.locator(".proof").first.wait_for()
    for card in cards:
        proof = visit.page.locator(f".proof[data-model={card['model']}]")
        assert proof.locator(".seal").inner_text() == "Proven"
        said = proof.inner_text()
        golden = card["golden"]["samples"]
        assert card["version"] in said
        assert f"{100 * card['test_accuracy']:.2f}%" in said
        assert card["test_images"] in said
        assert f"{golden} of {golden} right" in said
        assert "no label differs" in said
        proof.locator(".variants summary").click()
        assert proof.locator(".variants li").count() == len(card["parity"])


def test_a_model_that_failed_a_check_is_not_called_proven(visit: Visit) -> None:
    """The seal tells what the verdict of the served file says."""

    def failed(route: "Route") -> None:
        content = route.fetch().json()
        for verdict in content["models"][0]["parity"]:
            verdict["passed"] = False
        route.fulfill(json=content)

    visit.page.route("**/models", failed)
    visit.page.reload()
    seals = visit.page.locator(".seal")
    seals.first.wait_for()
    assert seals.all_inner_texts() == ["Not proven", "Proven"]


def test_the_guards_doubt_is_told(visit: Visit) -> None:
    """What the answers say of the image stands beside it: usual, unusual with a reason, nothing."""
    guard: list[dict[str, Any] | None] = [None]

    def guarded(route: "Route") -> None:
        content = route.fetch().json()
        content["predictions"][0]["guard"] = guard[0]
        route.fulfill(json=content)

    visit.page.route("**/predict?model=*", guarded)
    said = visit.page.locator("#guard")
    for given, verdict, words in (
        (None, "unknown", "No input guard"),
        ({"usual": True, "p_value": 0.4, "reason": None}, "usual", "40.0%"),
        ({"usual": False, "p_value": 0.0004, "reason": "it is noise"}, "unusual", "it is noise"),
    ):
        guard[0] = given
        visit.draw(ONE)
        visit.settled()
        assert said.get_attribute("data-verdict") == verdict
        assert words in said.inner_text()


def test_feature_maps_are_drawn_when_unfolded(refused_visit: Visit) -> None:
    """Not asked before; each map in its size, positive and negative apart; none is said so."""
    visit, asked = refused_visit, []
    maps = [
        {"name": "channel 0", "height": 2, "width": 3, "values": [[-1, 0, 1], [0, 0, 0.5]]},
        {"name": "channel 1", "height": 2, "width": 3, "values": [[0, 0, 0], [0, 0, 0]]},
    ]
    answer = {"model": "cnn", "version": "1", "layer": "conv 5x5", "maps": maps}

    def answered(route: "Route") -> None:
        asked.append(json.loads(route.request.post_data or ""))
        route.fulfill(json=answer)

    visit.page.route("**/models/cnn/features", answered)
    missing = {"error": "mlp has no maps to show"}
    visit.page.route("**/models/mlp/features", lambda r: r.fulfill(status=404, json=missing))
    visit.draw(ONE)
    visit.settled()
    assert asked == []
    for model in ("cnn", "mlp"):
        visit.page.click(f".proof[data-model={model}] .features summary")
    place = visit.page.locator(".proof[data-model=cnn] .maps")
    place.locator("figure").first.wait_for()
    assert asked == [{"images": visit.given().tolist()}]
    assert place.locator("figcaption").all_inner_texts() == ["channel 0", "channel 1"]
    assert "conv 5x5" in place.inner_text()
    row = place.locator("figure canvas").first.evaluate(
        "c => [c.width, c.height, ...c.getContext('2d').getImageData(0, 0, 3, 1).data]"
    )
    assert row[:2] == [3, 2]
    negative, nothing, positive = row[2:5], row[6:9], row[10:13]
    assert negative[2] > negative[0]
    assert min(nothing) > 240
    assert positive[0] > positive[2]
    assert "mlp has no maps to show" in visit.page.inner_text(".proof[data-model=mlp] .maps")


def test_how_far_a_drawing_can_move_is_mapped(visit: Visit) -> None:
    """Every shift in one request a model, when unfolded; counted as the service reads them."""
    visit.draw(ONE)
    visit.settled()
    before = len(visit.asked("cnn"))
    visit.page.click("#reach summary")
    visit.page.locator("#reach figure").first.wait_for()
    assert len(visit.asked("cnn")) == before + 1
    shifted = visit.asked("cnn")[-1]
    assert shifted.shape == (17 * 17, 28, 28)
    assert (shifted[17 * 8 + 8] == visit.given()).all()
    assert (shifted[17 * 8 + 9][:, 1:] == visit.given()[:, :-1]).all()
    body = {"images": shifted.tolist(), "model": "cnn"}
    predictions = httpx.post(f"{visit.url}/predict", json=body).json()["predictions"]
    same = sum(prediction["label"] == "1" for prediction in predictions)
    assert f"cnn reads 1 at {same} of 289 places" in visit.page.inner_text("#reach")


def test_a_digit_is_drawn_by_keyboard_alone(visit: Visit) -> None:
    """The pen is reached by Tab, put down, moved and lifted; the reading is said aloud."""
    visit.page.locator(".model").first.wait_for()
    press = visit.page.keyboard.press
    for reached in ("width", "drawing"):
        press("Tab")
        assert visit.page.evaluate("document.activeElement.id") == reached
    assert visit.page.locator("#keys").is_visible()
    press("Space")
    assert visit.page.inner_text("#pen-words") == "Pen down"
    for _ in range(4):
        press("Shift+ArrowDown")
    press("ArrowDown")
    press("Space")
    press("ArrowRight")
    visit.settled()
    column = visit.given().sum(axis=0)
    assert 10 <= column.argmax() <= 17
    assert visit.readings()["cnn"] == "1"
    visit.page.locator("#spoken", has_text="cnn reads 1").wait_for()
    press("Delete")
    visit.emptied()


def test_everything_is_reached_by_tab_and_seen_when_it_is(visit: Visit) -> None:
    """Each control gets the focus in turn, with an outline around it or its label."""
    visit.draw(ONE)
    visit.move("#turn", 10)
    visit.page.locator("#width").focus()
    reached = []
    for _ in range(40):
        visit.page.keyboard.press("Tab")
        name, outlined = visit.page.evaluate(
            "(() => { const e = document.activeElement, seen = e.closest('.button') ?? e;"
            " return [e === document.body ? '' : e.id || e.textContent,"
            " getComputedStyle(seen).outlineStyle === 'solid'] })()"
        )
        if name == "":
            break
        assert outlined, name
        reached.append(name)
    assert {"drawing", "undo", "clear", "file", "straight"} <= set(reached)
    assert {"shift-x", "shift-y", "turn"} <= set(reached)
    assert "How to ask it from a program" in reached


@pytest.mark.parametrize(("scheme", "options"), [("light", {}), ("dark", PHONE)])
def test_axe_finds_nothing(
    scheme: str, options: dict[str, Any], browser: "Browser", server: Server
) -> None:
    """No violation of axe-core's rules: contrast, names, roles, order; in light and in dark."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    visit = Visit(browser, server.url, color_scheme=scheme, reduced_motion="reduce", **options)
    visit.draw(SEVEN)
    visit.move("#shift-x", 9)
    visit.page.locator(".features summary").first.click()
    assert _violations(axe.run(visit.page)) == []
    visit.drop("letter.txt", "text/plain", b"dear reader")
    visit.page.locator(".notice").wait_for()
    visit.page.evaluate("document.getElementById('key-dialog').showModal()")
    assert _violations(axe.run(visit.page)) == []
    visit.close(expected=STATUS)


def _violations(results: Any) -> list[str]:
    return [
        f"{found['id']}: {node['html'][:120]} {node['failureSummary']}"
        for found in results.response["violations"]
        for node in found["nodes"]
    ]


def test_a_phone_shows_all_models_side_by_side(browser: "Browser", server: Server) -> None:
    """At 375 pixels nothing sticks out, both models stand in one row, and a finger draws."""
    visit = Visit(browser, server.url, **PHONE)
    visit.draw(SEVEN)
    visit.settled()
    _fits(visit.page)
    tops = {card.bounding_box()["y"] for card in visit.page.locator(".model").all()}  # type: ignore[index]
    assert len(tops) == 1
    for summary in visit.page.locator("summary").all():
        summary.click()
    _fits(visit.page)
    visit.page.locator("#clear").click()
    visit.emptied()
    visit.draw_by_finger(ONE)
    visit.settled()
    assert visit.readings()["cnn"] == "1"
    visit.close(expected=STATUS)


def _fits(page: "Page") -> None:
    wide = page.evaluate(
        "[...document.querySelectorAll('body *')].filter(e => !e.closest('.sr-only') &&"
        " e.getBoundingClientRect().right >"
        " (e.closest('.card')?.getBoundingClientRect().right ?? innerWidth) + 0.5)"
        ".map(e => e.outerHTML.slice(0, 100))"
    )
    assert wide == []
    assert page.evaluate("document.documentElement.scrollWidth") <= 375


def test_the_page_outlives_the_service(browser: "Browser", server: Server) -> None:
    """Down: it says so and keeps the drawing. Up again: it says so and reads what was drawn."""
    visit = Visit(browser, server.url)
    visit.page.locator(".model").first.wait_for()
    server.stop()
    visit.draw(ONE)
    visit.page.locator(".notice[data-kind=down]").wait_for()
    assert visit.page.inner_text("#connection-words") == "Not reachable"
    assert visit.readings() == {"cnn": NOTHING, "mlp": NOTHING}
    server.start()
    visit.page.locator(".notice[data-kind=back]").wait_for()
    visit.settled()
    assert visit.page.locator(".notice[data-kind=down]").count() == 0
    assert visit.readings()["cnn"] == "1"
    assert visit.page.inner_text("#connection-words") == "2 models ready"
    visit.close(expected=STATUS)


def test_a_key_is_asked_for_and_kept_in_the_tab(browser: "Browser", server: Server) -> None:
    """The page loads without it, refuses another in words, and sends the right one from then on."""
    server.stop()
    server.start(DIGITS_API_KEY=KEY)
    visit = Visit(browser, server.url)
    for key in ("another key altogether", KEY):
        visit.page.locator("#key-dialog[open]").wait_for()
        visit.page.fill("#key", key)
        visit.page.click("#key-form button")
        if key != KEY:
            visit.page.get_by_text("That key was not taken").wait_for()
    visit.draw(ONE)
    visit.settled()
    kept = "[sessionStorage.length, localStorage.length, document.cookie]"
    assert visit.page.evaluate(kept) == [1, 0, ""]
    visit.page.get_by_role("link", name="How to ask").click()
    visit.page.locator(".opblock").first.wait_for()
    visit.page.go_back()
    visit.page.click("#forget")
    visit.page.locator("#key-dialog[open]").wait_for()
    assert visit.page.evaluate(kept) == [0, 0, ""]
    visit.close(expected=STATUS)
