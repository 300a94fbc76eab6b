"""The models that a worker serves, each version with its batcher, found by name and version."""

import functools
import hashlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from export.bundle.manifest import Manifest
from export.bundle.metrics import Arrays
from service.engine.batcher import Batcher, EngineError
from service.engine.engines import lower_priority, warm_up
from service.models.loader import VerifiedModel
from service.observability.metrics import Metrics
from service.observability.records import BatchTiming
from service.protocol.answers import ModelCard
from service.protocol.errors import InvalidInputError, UnknownModelError, quote_value
from service.protocol.oip import describe_tensor
from service.settings import Settings

# A batch that runs in the event loop delays every other client by its duration. Shorter batches are
# not worth a thread even with idle cores: the two threads contend for the GIL, and throughput at 32
# and 128 connections fell by a tenth (2 cores, CNN quick, CPython 3.11).
LOOP_BUDGET_S = 0.005

logger = logging.getLogger("bentoml.service")  # BentoML shows only its own loggers


@dataclass(frozen=True, eq=False)
class ServedModel(VerifiedModel):
    """A verified model with its batcher.

    Attributes:
        summary: The format of the log line when serving begins; takes the values of ``identity``.
        identity_lines: Header lines of its answers; empty without the setting ``answer_headers``.
    """

    batcher: Batcher
    summary: str
    identity_lines: bytes

    def close(self) -> None:
        """End its threads after the running batches."""
        self.batcher.close()
        if self.feature_maps is not None:
            self.feature_maps.batcher.close()

    def describe(self, *, is_default: bool) -> ModelCard:
        """Return the model's entry of GET /models."""
        manifest, training = self.manifest, self.manifest.training
        return {
            **self.identity,
            "inputs": [describe_tensor(spec) for spec in manifest.inputs],
            "outputs": [describe_tensor(spec) for spec in manifest.outputs],
            "labels": list(manifest.labels),
            "parameters": manifest.parameters,
            "test_accuracy": training.test_accuracy if training else None,
            "test_images": training.test_images if training else None,
            "parity": list(manifest.parity),
            "golden": self.golden,
            "guard": manifest.guard,
            "features": manifest.features,
            "default": is_default,
        }


class AnswerObserver(Protocol):
    """Watches the answers of a model while its versions are replaced."""

    def record_answer(
        self, version: str, inputs: Arrays, outputs: Arrays, timing: BatchTiming, seconds: float
    ) -> None:
        """Receive one answered request; must not raise."""

    def record_timeout(self, version: str, seconds: float) -> None:
        """Receive one request that got no answer in time; must not raise."""

    def record_failure(self, version: str, error: EngineError) -> None:
        """Receive one request that a version's engine could not compute."""


@dataclass(frozen=True)
class ModelVersions:
    """The versions of one model and their roles; a roll-out replaces the whole object.

    Attributes:
        stable: Answers all requests that do not name a version, except for the canary's share.
        canary: Answers a share of the requests that do not name a version.
        canary_share: That share, 0 to 1.
        shadow: Answers only requests that name its version.
        observer: Watches the answers; None if the model has no roll-outs.
    """

    stable: ServedModel
    canary: ServedModel | None = None
    canary_share: float = 0.0
    shadow: ServedModel | None = None
    observer: AnswerObserver | None = None

    @property
    def loaded(self) -> list[ServedModel]:
        """Every version, the stable one first."""
        return [model for model in (self.stable, self.canary, self.shadow) if model is not None]

    def get(self, version: str) -> ServedModel:
        """Return a version.

        Raises:
            UnknownModelError: The version is not served; lists the served versions.
        """
        for model in self.loaded:
            if model.manifest.version == version:
                return model
        known = " and ".join(model.manifest.version for model in self.loaded)
        raise UnknownModelError(
            f"{self.stable.manifest.name} is served in version {known}, not {quote_value(version)}"
        )

    def route(self, request_id: bytes) -> ServedModel:
        """Return the version for a request that names none; all workers choose the same one."""
        if self.canary is None:
            return self.stable
        digest = hashlib.blake2b(request_id, digest_size=4).digest()
        is_canary = int.from_bytes(digest, "big") < self.canary_share * 2**32
        return self.canary if is_canary else self.stable


class ModelRegistry:
    """All models of a worker, by name."""

    def __init__(
        self,
        verified: list[VerifiedModel],
        settings: Settings,
        metrics: Metrics,
        count_accepted: Callable[[], int] = lambda: 0,
    ) -> None:
        """Warm up every model and make its batcher; ``Batcher`` explains ``count_accepted``."""
        self._settings, self._metrics = settings, metrics
        self._count_accepted = count_accepted
        self._versions = dict[str, ModelVersions]()
        for model in verified:
            name = model.manifest.name
            self.replace(name, ModelVersions(self.prepare(model)))
            golden = model.golden
            metrics.record_golden_check(
                name, passed=True, error=golden.scaled_error, bound=golden.scaled_error_bound
            )
        self.default = settings.default_model or verified[0].manifest.name

    def versions(self, name: str | None) -> ModelVersions:
        """Return the versions of the named model, or of the default model.

        Raises:
            UnknownModelError: There is no such model; lists the served models.
        """
        found = self._versions.get(self.default if name is None else name)
        if found is None:
            known = ", ".join(self._versions)
            raise UnknownModelError(f"no model {quote_value(name)} is served; there are: {known}")
        return found

    def get(self, name: str | None, version: str | None = None) -> ServedModel:
        """Return a version, by default the stable one, of the named or the default model.

        Raises:
            UnknownModelError: There is no such model or version; lists those that are served.
        """
        found = self.versions(name)
        return found.stable if version is None else found.get(version)

    def route(self, name: str | None, request_id: bytes) -> ServedModel:
        """Return the version that answers a request that names no version.

        Raises:
            UnknownModelError: There is no such model; lists the served models.
        """
        found = self.versions(name)
        return found.stable if found.canary is None else found.route(request_id)

    def observer(self, name: str) -> AnswerObserver | None:
        """Return the observer of a served model's answers, or None."""
        return self._versions[name].observer

    def choose_name(self, in_query: str | None, in_body: str | None) -> str:
        """Return the name of the model that a request names in its URL or in its body.

        Raises:
            UnknownModelError: There is no such model.
            InvalidInputError: URL and body name different models.
        """
        model = self.get(in_query if in_body is None else in_body)
        if in_query is not None and self.get(in_query) is not model:
            raise InvalidInputError(
                f"the URL names the model {quote_value(in_query)} and the body "
                f"{quote_value(in_body)}; name only one"
            )
        return model.manifest.name

    def all(self) -> list[ServedModel]:
        """Return the stable version of every model, in the order in which they were loaded."""
        return [versions.stable for versions in self._versions.values()]

    def loaded(self) -> list[ServedModel]:
        """Return every version of every model."""
        return [model for versions in self._versions.values() for model in versions.loaded]

    def list_versions(self, name: str) -> list[str]:
        """Return the versions of a model, the stable one first."""
        return [model.manifest.version for model in self.versions(name).loaded]

    def prepare(self, verified: VerifiedModel, *, is_shadow: bool = False) -> ServedModel:
        """Warm up a verified model and make its batcher; it is served only after ``replace``.

        May be called from another thread than the event loop's.
        """
        return _prepare(verified, self._settings, self._metrics, self._count_accepted, is_shadow)

    def replace(self, name: str, versions: ModelVersions) -> None:
        """Serve these versions of a model from now on; called in the event loop.

        Requests that were decoded before keep their version: their jobs refer to it, and its engine
        and thread end with the last of these jobs.
        """
        old = self._versions.get(name)
        before = [] if old is None else old.loaded
        self._versions[name] = versions
        stable = versions.stable
        endpoints = ["infer", *stable.adapter.endpoints]
        endpoints += ["features"] if stable.feature_maps is not None else []
        endpoints += ["infer_grpc"] if self._settings.grpc_port is not None else []
        for model in versions.loaded:
            if model not in before:
                self._metrics.add_version(model.identity)
                logger.info(model.summary, *model.identity.values())
        for model in before:
            if model not in versions.loaded:
                self._metrics.remove_version(model.identity)
        self._metrics.add_model(
            name,
            endpoints,
            read_queued=lambda: sum(model.batcher.queued_samples for model in versions.loaded),
            limit=self._settings.max_queue_samples,
        )

    def close(self) -> None:
        """End all engines."""
        for model in self.loaded():
            model.close()


def _prepare(
    verified: VerifiedModel,
    settings: Settings,
    metrics: Metrics,
    count_accepted: Callable[[], int],
    is_shadow: bool,
) -> ServedModel:
    """Warm up a model and make its batcher."""
    manifest, engine, golden = verified.manifest, verified.engine, verified.golden
    batch_s = warm_up(engine, manifest, settings.max_batch_samples)
    max_loop_samples = 0
    if not is_shadow:
        max_loop_samples = _choose_max_loop_samples(batch_s, engine.device, settings)
    predict = verified.adapter.extend(engine)
    batcher = Batcher(
        lower_priority(predict) if is_shadow else predict,
        max_batch_samples=settings.max_batch_samples,
        max_queue_samples=settings.max_queue_samples,
        max_loop_samples=max_loop_samples,
        deadline_s=settings.timeout_s,
        wait_s=settings.batch_wait_ms / 1000,
        on_batch=_ignore if is_shadow else functools.partial(metrics.record_batch, manifest.name),
        count_accepted=count_accepted,
    )
    summary = (
        f"serving %s version %s (%s) on %s (%s): {golden.samples} golden samples passed, batches "
        f"of {settings.max_batch_samples} take {1000 * batch_s[settings.max_batch_samples]:.1f} "
        f"ms; batches of up to {max_loop_samples} samples run in the event loop, larger ones in a "
        "thread"
    )
    lines = b""
    if settings.answer_headers:
        lines = encode_identity(manifest, verified.variant, engine.provider)
    return ServedModel(**vars(verified), batcher=batcher, summary=summary, identity_lines=lines)


def encode_identity(manifest: Manifest, variant: str, provider: str) -> bytes:
    """Return the header lines that name the model, its version, variant and provider."""
    headers = {
        "x-model": manifest.name,
        "x-model-version": manifest.version,
        "x-model-variant": variant,
        "x-provider": provider,
    }
    return "".join(f"{header}: {value}\r\n" for header, value in headers.items()).encode("latin-1")


def _ignore(_: BatchTiming) -> None:
    """Ignore a shadow's batch, so that the model's metrics exclude it."""


def _choose_max_loop_samples(batch_s: dict[int, float], device: str, settings: Settings) -> int:
    """Return the largest batch size that runs in the event loop; 0 if all run in the thread.

    ``batch_s`` is the measured time of a batch, in seconds, by batch size.
    """
    if settings.engine == "loop":
        return settings.max_batch_samples
    if settings.engine == "thread" or device != "cpu":
        return 0
    return max((size for size, seconds in batch_s.items() if seconds <= LOOP_BUDGET_S), default=0)
