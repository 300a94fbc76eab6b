"""The page that a person opens at ``/``, and the API's documentation at ``/docs``.

A closed table of files, read once: a path that is not in it is nobody's. What the page may do in a
browser is said by a Content-Security-Policy: load what lies here, ask this service, nothing else.
BentoML's own page at ``/`` loads a tracker from elsewhere; of it only Swagger UI's files are used.
"""

import hashlib
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

FOLDER = Path(__file__).parent / "page"
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
# By their names, which a browser asks for in full.
DOCUMENTS = {"index.html": "/", "docs.html": "/docs"}
SWAGGER_UI = ("/static_content/swagger-ui.css", "/static_content/swagger-ui-bundle.js")
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
    # Kept by the browser, and asked about each time: a new version is seen at once.
    "cache-control": "no-cache",
}


@dataclass(frozen=True)
class PageFile:
    """One file of the page, as it is served."""

    content: bytes
    media_type: str

    @property
    def etag(self) -> str:
        """The same for the same bytes, whichever worker answers."""
        return f'"{hashlib.sha256(self.content).hexdigest()[:32]}"'

    async def answer(self, request: Request) -> Response:
        """The file, or that the browser has it already."""
        headers = HEADERS | {"etag": self.etag}
        known = request.headers.get("if-none-match", "").split(",")
        if {tag.strip().removeprefix("W/") for tag in known} & {self.etag, "*"}:
            return Response(status_code=HTTPStatus.NOT_MODIFIED, headers=headers)
        return Response(self.content, media_type=self.media_type, headers=headers)


def _read_files() -> dict[str, PageFile]:
    """Every file of the folder by the path that it is served at."""
    return {
        DOCUMENTS.get(path.name, f"/page/{path.name}"): PageFile(
            path.read_bytes(), TYPES[path.suffix]
        )
        for path in sorted(FOLDER.iterdir())
        if path.suffix in TYPES
    }


FILES = _read_files()
# What a browser loads before anybody could have typed a key.
PAGE_PATHS = frozenset({*FILES, *SWAGGER_UI})


def page_routes() -> list[Route]:
    """A route for each file; HEAD comes with GET."""
    return [Route(path, file.answer, methods=["GET"]) for path, file in FILES.items()]
