"""Routes for requests that bypass ASGI: inference requests to the URLs of the loaded models."""

from collections.abc import Iterable
from typing import NamedTuple

from service.core.messages import Target
from service.models.registry import ServedModel
from service.protocol.oip import infer_paths

# Headers that only the ASGI transport supports.
ASGI_HEADERS = {b"transfer-encoding", b"content-encoding", b"expect", b"upgrade"}
JSON_LENGTH = b"inference-header-content-length"


class DirectHead(NamedTuple):
    """The head of a POST that bypasses ASGI, as sent, and the fields of ``Request`` in it.

    Attributes:
        headers: Names, in lower case, and values.
        keep_alive: Whether the client may send another request after this one.
        length: Bytes of the body.
    """

    url: bytes
    headers: list[tuple[bytes, bytes]]
    keep_alive: bool
    target: Target
    length: int
    content_type: str
    json_length: str | None


class DirectRouter:
    """Maps the exact bytes of a URL to its target."""

    def __init__(self, models: Iterable[ServedModel]) -> None:
        """Collect the URLs of these models; without models, all requests use the ASGI transport.

        The versions of one model have the same URLs, except for the URL that names the version.
        """
        self._targets: dict[bytes, Target] = {}
        for model in models:
            name = model.manifest.name
            by_name, by_version = infer_paths(model.manifest)
            urls = {
                by_name: Target("infer", name),
                by_version: Target("infer", name, model.manifest.version),
            }
            urls[f"/models/{name}/predict"] = Target("predict", name)
            if model.feature_maps is not None:
                urls[f"/models/{name}/features"] = Target("features", name)
            for path, endpoint in (("/predict", "predict"), ("/predict/image", "predict_image")):
                urls[path] = Target(endpoint)
                urls[f"{path}?model={name}"] = Target(endpoint, query=f"model={name}")
            self._targets |= {url.encode(): target for url, target in urls.items()}

    def match(
        self, method: bytes, url: bytes, headers: list[tuple[bytes, bytes]], keep_alive: bool
    ) -> DirectHead | None:
        """Return the request's head if it bypasses ASGI, otherwise None."""
        target = self._targets.get(url)
        if target is None or method != b"POST":
            return None
        named = dict(headers)
        length = named.get(b"content-length")
        is_plain = len(named) == len(headers) and ASGI_HEADERS.isdisjoint(named)
        if not is_plain or length is None or not length.isdigit():
            return None
        json_length = named.get(JSON_LENGTH)
        return DirectHead(
            url,
            headers,
            keep_alive,
            target,
            int(length),
            named.get(b"content-type", b"").decode("latin-1"),
            None if json_length is None else json_length.decode("latin-1"),
        )
