"""The page in a real Chromium: content beside the readings, accessibility and failures."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from service.rollout.status import wait_for
from service.versions.state import RolloutFolder
from tests.service.browser import NOTHING, ONE, SEVEN, STATUS, Server, Visit
from tests.service.rollout.made_versions import make_digits_rollout

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page, Route

KEY = "a key of moderate length"
PHONE = {"viewport": {"width": 375, "height": 812}, "has_touch": True, "is_mobile": True}


def test_the_proof_is_shown_beside_the_readings(visit: Visit, server: Server) -> None:
    """Each model has verdict, version, accuracy and golden figures from GET /models."""
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
        assert f"{golden} of {golden} correct" in said
        assert "no label differs" in said
        proof.locator(".variants summary").click()
        assert proof.locator(".variants li").count() == len(card["parity"])


def test_a_model_that_failed_a_check_is_not_called_proven(visit: Visit) -> None:
    """The seal shows the verdict of the served file."""

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
    """The guard's verdict is shown as usual, as unusual with a reason, or not at all."""
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
    """Maps are requested only when unfolded, drawn to size and sign, or reported missing."""
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
    """When unfolded, one request per model covers every shift, and the map counts the readings."""
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
    """Tab reaches the pen, keys lower, move and lift it, and the reading is announced."""
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
    assert "How to call it from a program" in reached


@pytest.mark.parametrize(("scheme", "options"), [("light", {}), ("dark", PHONE)])
def test_axe_finds_nothing(
    scheme: str, options: dict[str, Any], browser: "Browser", server: Server
) -> None:
    """axe-core finds no violation (contrast, names, roles, order) in light and dark mode."""
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
    """At 375 pixels nothing overflows, both models are in one row, and touch draws."""
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
    """If the service stops, the page says so; when it is back, the kept drawing is read."""
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


def test_the_version_that_answered_is_named(
    browser: "Browser", server: Server, tmp_path: Path
) -> None:
    """If a canary answers, the page names it, because the shown proof is the stable version's."""
    bundles = make_digits_rollout(tmp_path, share=1)
    server.stop()
    server.start(INFERENCE_BUNDLES=str(bundles))
    assert wait_for(RolloutFolder(bundles / "cnn"), 2, 40)[0] == "live"
    visit = Visit(browser, server.url)
    visit.draw(ONE)
    visit.settled()
    assert visit.readings() == {"cnn version v2": "1", "mlp": visit.readings()["mlp"]}
    assert visit.page.locator(".proof[data-model=cnn]").get_by_text("v1").count() == 1
    visit.close()
    server.stop()
    server.start()


def test_a_key_is_asked_for_and_kept_in_the_tab(browser: "Browser", server: Server) -> None:
    """The page loads without a key, refuses a wrong one and then sends the right one."""
    server.stop()
    server.start(INFERENCE_API_KEY=KEY)
    visit = Visit(browser, server.url)
    for key in ("another key altogether", KEY):
        visit.page.locator("#key-dialog[open]").wait_for()
        visit.page.fill("#key", key)
        visit.page.click("#key-form button")
        if key != KEY:
            visit.page.get_by_text("That key was not accepted").wait_for()
    visit.draw(ONE)
    visit.settled()
    kept = "[sessionStorage.length, localStorage.length, document.cookie]"
    assert visit.page.evaluate(kept) == [1, 0, ""]
    visit.page.get_by_role("link", name="How to call").click()
    visit.page.locator(".opblock").first.wait_for()
    visit.page.go_back()
    visit.page.click("#forget")
    visit.page.locator("#key-dialog[open]").wait_for()
    assert visit.page.evaluate(kept) == [0, 0, ""]
    visit.close(expected=STATUS)
