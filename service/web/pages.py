"""Routes of the web page at ``/`` and of the API documentation at ``/docs``.

There is one route for each file in the folder ``page``; no other path serves a file. The
Content-Security-Policy allows the browser to load these files and to send requests to this service,
and nothing else. BentoML's own page at ``/`` loads a tracker from another host, so only BentoML's
copy of Swagger UI is used.
"""

import os
from pathlib import Path

from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

FOLDER = Path(__file__).parent / "page"
# Python's own table depends on the machine's mime.types.
MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
DOCUMENTS = {"index.html": "/", "docs.html": "/docs"}
# Maps each URL path to the file that is served there.
FILES = {
    DOCUMENTS.get(path.name, f"/page/{path.name}"): path
    for path in sorted(FOLDER.iterdir())
    if path.suffix in MEDIA_TYPES
}
SWAGGER_UI = ("/static_content/swagger-ui.css", "/static_content/swagger-ui-bundle.js")
# Served without an API key: a browser loads these files before the user can enter one.
PAGE_PATHS = frozenset({*FILES, *SWAGGER_UI})
CONTENT_SECURITY_POLICY = "; ".join(
    [
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob: data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    ]
)
HEADERS = {
    "content-security-policy": CONTENT_SECURITY_POLICY,
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    # The browser keeps its copy and revalidates it by ETag, so a new version is loaded at once.
    "cache-control": "no-cache",
}


class PageFiles(StaticFiles):
    """Serves the page's files with security headers."""

    def file_response(
        self,
        full_path: str | os.PathLike[str],
        stat_result: os.stat_result,
        scope: Scope,
        status_code: int = 200,
    ) -> Response:
        """Return the file, or 304 without a body if the browser's copy is current."""
        response = super().file_response(full_path, stat_result, scope, status_code)
        response.headers.update(HEADERS)
        if isinstance(response, FileResponse):
            response.headers["content-type"] = MEDIA_TYPES[Path(full_path).suffix]
        return response


def page_routes() -> list[BaseRoute]:
    """Return one route for each file; it answers GET and HEAD."""
    files = PageFiles(directory=FOLDER)

    async def send_file(request: Request) -> Response:
        return await files.get_response(FILES[request.url.path].name, request.scope)

    return [Route(path, send_file, methods=["GET"]) for path in FILES]
