"""Drawings, files, readings and errors on the page in a real Chromium."""

import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import numpy as np

from tests.service.browser import NOTHING, ONE, SEVEN, Server, Visit

if TYPE_CHECKING:
    from playwright.sync_api import Request, Route

DIGIT = Path(__file__).parent.parent / "digit.png"


def test_a_drawing_is_read_by_every_model(visit: Visit, server: Server) -> None:
    """A 1 is read as the service reads the shown pixels, with bars, time and batch size."""
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
    """Models answer while the mouse is down, with one request in flight for each."""
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
    """Shifts and quarter turns of the sent image are exact and can be undone."""
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
    """Undo removes a stroke, Clear empties the sheet, and Undo restores the sheet."""
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
    """A chosen or dropped file gives its own pixels, and drawing starts a new sheet."""
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
    """The page shows the service's message, removes old readings and lets the user draw on."""
    visit = refused_visit
    visit.draw(ONE)
    visit.settled()
    visit.drop("letter.txt", "text/plain", b"dear reader")
    notice = visit.page.locator(".notice[data-kind=refused]")
    notice.wait_for()
    assert "cannot read this" in notice.inner_text()
    assert "not a PNG or JPEG" in notice.inner_text()
    assert visit.readings() == {"cnn": NOTHING, "mlp": NOTHING}
    assert visit.page.inner_text("#verdict") == "No digit was found."
    visit.draw(SEVEN)
    visit.settled()
    assert notice.count() == 0


def test_too_little_to_read_is_no_fault(visit: Visit) -> None:
    """After 422 the page waits for more strokes, but shows a notice for a file."""
    blank = {"error": "nothing is drawn"}
    visit.page.route("**/predict/image*", lambda route: route.fulfill(status=422, json=blank))
    visit.draw(ONE)
    visit.page.locator("#verdict", has_text="Keep drawing.").wait_for()
    assert visit.page.locator(".notice").count() == 0
    visit.drop("digit.png", "image/png", DIGIT.read_bytes())
    visit.page.locator(".notice", has_text="Nothing is drawn.").wait_for()
    assert visit.page.inner_text("#verdict") == "No digit was found."


def test_a_busy_service_is_asked_again(refused_visit: Visit) -> None:
    """After 429 the page says so and retries after the given time."""
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
    """The list of models, a drawing and a reading are requested again after a failure."""
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
