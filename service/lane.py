"""What is answered beneath ASGI: which URLs, by which models, under which limits."""

from service.metrics import Metrics
from service.models import ServedModel, ServedModels
from service.oip import infer_urls
from service.pending import Infer, Overflow, Pending, Predict, Upload, identity_lines
from service.readiness import Readiness
from service.reception import SECURITY_HEADERS, Reception
from service.settings import Settings
from service.tensors import sample_bytes
from service.tracing import Tracing


class Lane:
    """What is answered here: the requests' readers by the exact bytes of their URLs."""

    def __init__(
        self,
        models: ServedModels,
        metrics: Metrics,
        readiness: Readiness,
        reception: Reception,
        tracing: Tracing | None,
        settings: Settings,
    ) -> None:
        """Collect the URLs of all models."""
        self.served, self.metrics, self.readiness = models, metrics, readiness
        self.reception, self.tracing = reception, tracing
        self.told = reception.logs or tracing is not None
        self.limits = settings.limits
        self.answer_headers = settings.answer_headers
        here = [model for model in models.all() if model.batcher.in_loop]
        self._batchers = [model.batcher for model in here]
        self._identities = {
            model.manifest.name: identity_lines(model) if settings.answer_headers else b""
            for model in here
        }
        self.batch_bytes = {
            model.manifest.name: model.batcher.max_batch_samples
            * sum(map(sample_bytes, model.manifest.inputs))
            for model in models.all()
        }
        self.routes: dict[bytes, tuple[type[Pending], ServedModel]] = {}
        for model in here:
            for url in infer_urls(model.manifest):
                self.routes[url.encode()] = (Infer, model)
            query = f"?model={model.manifest.name}".encode()
            self.routes[b"/predict" + query] = (Predict, model)
            self.routes[b"/predict/image" + query] = (Upload, model)
        for model in models.all():
            if model not in here:
                for url in [*infer_urls(model.manifest), f"/predict?model={model.manifest.name}"]:
                    self.routes[url.encode()] = (Overflow, model)
        default = models.get(None)
        if default in here:
            self.routes[b"/predict/image"] = (Upload, default)
        if len(here) == len(models.all()):  # whichever the body names is answered here
            self.routes[b"/predict"] = (Predict, default)
        self._headers: list[tuple[bytes, bytes]] = []
        self._lines = b""

    def identity(self, model: ServedModel) -> bytes:
        """Who answers, as lines of a head; none if they are turned off."""
        return self._identities[model.manifest.name]

    def flush(self) -> None:
        """Answer what waits now."""
        for batcher in self._batchers:
            batcher.flush()

    def default_headers(self, headers: list[tuple[bytes, bytes]]) -> bytes:
        """Uvicorn's headers as lines; it makes a new list of them each second, for the date."""
        if headers is not self._headers:
            self._headers = headers
            lines = [b"%b: %b\r\n" % header for header in [*headers, *SECURITY_HEADERS]]
            self._lines = b"".join(lines)
        return self._lines
