"""Finds the requests that bypass ASGI: inference requests to URLs known from the start."""

from typing import NamedTuple

from service.core.messages import Target
from service.models.registry import ModelRegistry
from service.protocol.oip import infer_paths

# Headers that ask for what only the ASGI transport does.
ASGI_HEADERS = {b"transfer-encoding", b"content-encoding", b"expect", b"upgrade"}
JSON_LENGTH = b"inference-header-content-length"


class DirectRequest(NamedTuple):
    """The head of a request that bypasses ASGI.

    Attributes:
        target: What its URL asks for.
        length: Bytes of its body.
        content_type: The header of that name; "" without one.
        json_length: The header Inference-Header-Content-Length, if it has one.
    """

    target: Target
    length: int
    content_type: str
    json_length: str | None


class DirectRouter:
    """Maps the exact bytes of a URL to its target."""

    def __init__(self, models: ModelRegistry) -> None:
        """Collect the URLs of all models."""
        self._targets = {b"/predict": Target("predict"), b"/predict/image": Target("predict_image")}
        for model in models.all():
            name = model.manifest.name
            for path in infer_paths(model.manifest):
                version = model.manifest.version if "/versions/" in path else None
                self._targets[path.encode()] = Target("infer", name, version)
            query = f"model={name}"
            self._targets[f"/predict?{query}".encode()] = Target("predict", query=query)
            self._targets[f"/predict/image?{query}".encode()] = Target("predict_image", query=query)
            self._targets[f"/models/{name}/predict".encode()] = Target("predict", name)
            if model.feature_maps is not None:
                self._targets[f"/models/{name}/features".encode()] = Target("features", name)

    def match(
        self, method: bytes, url: bytes, headers: list[tuple[bytes, bytes]]
    ) -> DirectRequest | None:
        """Return the request's head if it bypasses ASGI, otherwise None.

        Args:
            method: The HTTP method.
            url: Path and query as they were sent.
            headers: Lower-case names and values.
        """
        target = self._targets.get(url)
        if target is None or method != b"POST":
            return None
        named = dict(headers)
        length = named.get(b"content-length")
        is_plain = len(named) == len(headers) and ASGI_HEADERS.isdisjoint(named)
        if not is_plain or length is None or not length.isdigit():
            return None
        json_length = named.get(JSON_LENGTH)
        return DirectRequest(
            target,
            int(length),
            named.get(b"content-type", b"").decode("latin-1"),
            None if json_length is None else json_length.decode("latin-1"),
        )
