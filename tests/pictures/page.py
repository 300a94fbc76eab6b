"""Photographs of the service's page with a drawn digit, in a real Chromium."""

import tempfile
from pathlib import Path

from loadtest.server import running_service
from tests.service.browser import INSTALL_LINE, SEVEN, Visit, chromium

SIZE = {"width": 1160, "height": 664}
KINDS = ("light", "dark")


def photograph_page(bundles: Path, out: Path) -> list[Path]:
    """Draw a seven on the page and write ``page-light.png`` and ``page-dark.png``.

    Args:
        bundles: What the service serves.
        out: The folder of the pictures.

    Raises:
        RuntimeError: There is no Chromium.
    """
    from playwright.sync_api import sync_playwright  # noqa: PLC0415 - for this picture alone

    browser_path = chromium()
    if browser_path is None:
        raise RuntimeError(f"no Chromium to open the page in: {INSTALL_LINE}")
    settings = {"INFERENCE_BUNDLES": str(bundles.resolve()), "INFERENCE_DEVICE": "cpu"}
    paths = []
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as driver:
        log_file = Path(folder) / "service.log"
        browser = driver.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        with running_service(log_file, settings=settings) as url:
            for kind in KINDS:
                visit = Visit(browser, url, color_scheme=kind, viewport=SIZE)
                visit.draw(SEVEN)
                visit.settled()
                visit.page.mouse.move(0, 0)
                visit.page.evaluate("window.scrollTo(0, 0)")
                path = out / f"page-{kind}.png"
                visit.page.screenshot(path=str(path))
                visit.close()
                paths.append(path)
        browser.close()
    return paths
