"""Fixtures for the tests of the page: Chromium and a running service, one for each test file."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from tests.service.browser import INSTALL_LINE, STATUS, Server, Visit, chromium

if TYPE_CHECKING:
    from playwright.sync_api import Browser


@pytest.fixture(scope="module")
def browser() -> "Iterator[Browser]":
    """One Chromium for a test file; it ends there because its event loop disturbs other tests."""
    playwright = pytest.importorskip("playwright.sync_api", reason=f"no Playwright: {INSTALL_LINE}")
    path = chromium()
    if path is None:
        pytest.skip(f"no Chromium to open the page in: {INSTALL_LINE}")
    with playwright.sync_playwright() as driver:
        # Chromium does not start in a sandbox as root, for example in CI.
        opened = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def server(browser: "Browser", tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A running service, started only if there is a browser."""
    started = Server(tmp_path_factory.mktemp("page"))
    started.start()
    yield started
    started.stop()


@pytest.fixture
def visit(browser: "Browser", server: Server) -> Iterator[Visit]:
    """A visit that fails on requests to other hosts and on messages in the browser's console."""
    opened = Visit(browser, server.url)
    yield opened
    opened.close()


@pytest.fixture
def refused_visit(browser: "Browser", server: Server) -> Iterator[Visit]:
    """A visit that expects error statuses, which the browser's console reports."""
    opened = Visit(browser, server.url)
    yield opened
    opened.close(expected=STATUS)
