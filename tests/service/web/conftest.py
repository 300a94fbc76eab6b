"""A real Chromium and a real service for each file of the page's tests."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from tests.service.browser import INSTALL_LINE, STATUS, Server, Visit, chromium

if TYPE_CHECKING:
    from playwright.sync_api import Browser


@pytest.fixture(scope="module")
def browser() -> "Iterator[Browser]":
    """One Chromium for all tests of a file; beyond it its event loop would be in others' way."""
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
