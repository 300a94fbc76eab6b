"""Drives the page in a real Chromium and records requests and console messages."""

import json
import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from loadtest.server import free_port, running_service
from tests.tiny import SERVED_BUNDLES

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page, Request

INSTALL_LINE = "apt-get install chromium, and pip install -e '.[dev]'"
NAMES = ("chromium", "chromium-browser", "google-chrome")
Points = Sequence[tuple[float, float]]
# Positions on the sheet; both coordinates are 0 to 1.
ONE: Points = [(0.5, 0.15), (0.5, 0.5), (0.5, 0.85)]
SEVEN: Points = [(0.28, 0.24), (0.72, 0.24), (0.62, 0.42), (0.54, 0.6), (0.46, 0.8)]
# A model's reading before anything is drawn.
NOTHING = "\N{EN DASH}"
# A browser logs every status from 400 on to its console.
STATUS = "Failed to load resource"
# The pen's first touch may be too little to read, which is no error on the page.
TOO_LITTLE = "the server responded with a status of 422"


def chromium() -> str | None:
    """The path of an installed Chromium, or None."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Server:
    """The real service, which can be stopped and started again on its port."""

    def __init__(self, folder: Path) -> None:
        """Prepare the server without starting it."""
        self._folder, self._port, self._running = folder, free_port(), ExitStack()
        self.url = f"http://127.0.0.1:{self._port}"

    def start(self, **settings: str) -> None:
        """Serve the tiny bundles."""
        settings = {"INFERENCE_BUNDLES": str(SERVED_BUNDLES), "INFERENCE_DEVICE": "cpu"} | settings
        log_file = self._folder / "service.log"
        self._running.enter_context(running_service(log_file, port=self._port, settings=settings))

    def stop(self) -> None:
        """Stop the service with all its processes."""
        self._running.close()


class Visit:
    """An opened page.

    Attributes:
        requests: All requests of the browser.
        met: Its console messages and the violations of the page's policy.
    """

    def __init__(self, browser: "Browser", url: str, **options: Any) -> None:
        """Open the page in a new browser context."""
        self._context, self.url = browser.new_context(**options), url
        self.page: Page = self._context.new_page()
        self.requests: list[Request] = []
        self.met: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request))
        self.page.on("console", lambda said: self.met.append(f"{said.type}: {said.text}"))
        self.page.on("pageerror", lambda error: self.met.append(f"error: {error}"))
        self.page.set_default_timeout(30_000)
        self.page.goto(url + "/")
        self.page.locator(".model, dialog[open]").first.wait_for()

    def close(self, expected: str = TOO_LITTLE) -> None:
        """Close the page, and check that all its console messages were expected.

        Args:
            expected: Text that a console message may contain.
        """
        self._context.close()
        surprises = [line for line in self.met if expected not in line]
        assert surprises == [], surprises
        elsewhere = [r.url for r in self.requests if not r.url.startswith((self.url, "blob:"))]
        assert elsewhere == [], elsewhere

    def draw(self, points: Points) -> None:
        """Draw a stroke with the mouse."""
        sheet = self.page.locator("#drawing")
        sheet.scroll_into_view_if_needed()
        box = sheet.bounding_box()
        assert box is not None
        places = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in points]
        self.page.mouse.move(*places[0])
        self.page.mouse.down()
        for place in places[1:]:
            self.page.mouse.move(*place, steps=5)
        self.page.mouse.up()

    def draw_by_finger(self, points: Points) -> None:
        """Draw a stroke on a touch screen."""
        sheet = self.page.locator("#drawing")
        sheet.scroll_into_view_if_needed()
        box = sheet.bounding_box()
        assert box is not None
        touch = self._context.new_cdp_session(self.page)
        for i, (x, y) in enumerate(points):
            place = {"x": box["x"] + x * box["width"], "y": box["y"] + y * box["height"]}
            kind = "touchMove" if i else "touchStart"
            touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [place]})
        touch.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})

    def settled(self) -> None:
        """Wait until every model has answered and no request is in flight."""
        self.page.locator("#readings[aria-busy=false]").wait_for()
        for digit in self.page.locator(".model .digit").all():
            digit.filter(has_not_text=NOTHING).wait_for()

    def emptied(self) -> None:
        """Wait until no model shows a reading."""
        for digit in self.page.locator(".model .digit").all():
            digit.filter(has_text=NOTHING).wait_for()

    def readings(self) -> dict[str, str]:
        """Each model's reading, by the model's name."""
        cards = self.page.locator(".model").all()
        return {
            card.locator(".name").inner_text(): card.locator(".digit").inner_text()
            for card in cards
        }

    def given(self) -> np.ndarray:
        """The 28x28 image that the page shows, uint8."""
        values = self.page.evaluate(
            "[...document.getElementById('given').getContext('2d')"
            ".getImageData(0, 0, 28, 28).data].filter((_, i) => i % 4 === 0)"
        )
        return np.array(values, np.uint8).reshape(28, 28)

    def asked(self, model: str) -> list[np.ndarray]:
        """The images that were sent to a model, in order."""
        bodies = [r.post_data for r in self.requests if r.url.endswith(f"/predict?model={model}")]
        return [np.array(json.loads(body)["images"], np.uint8) for body in bodies if body]

    def move(self, slider: str, value: int) -> None:
        """Set a slider to a value."""
        self.page.locator(slider).fill(str(value))
        self.settled()

    def drop(self, name: str, media_type: str, content: bytes) -> None:
        """Drop a file onto the sheet."""
        transfer = self.page.evaluate_handle(
            "([name, type, bytes]) => { const transfer = new DataTransfer();"
            " transfer.items.add(new File([new Uint8Array(bytes)], name, { type }));"
            " return transfer; }",
            [name, media_type, list(content)],
        )
        self.page.dispatch_event("#drawing", "drop", {"dataTransfer": transfer})
