"""Counts the answers of a model's versions in one generation, and sends copies to the shadow.

All methods are called in the event loop. A request is copied to the shadow after its response was
sent, and only while both engines are idle, so that the shadow never delays a response.
"""

from dataclasses import dataclass, field
from random import Random
from time import perf_counter

from export.bundle.metrics import Arrays
from service.engine.batcher import EngineError
from service.models.registry import ServedModel
from service.observability.metrics import Metrics
from service.observability.records import BatchTiming
from service.protocol.errors import OverloadedError
from service.rollout.comparison import AnswerComparer, WorstSamples
from service.versions.evidence import BUCKETS_S, bucket_of
from service.versions.state import DesiredState, VersionFigures

# Comparisons take about 0.1 ms each in the event loop.
MAX_SHADOWS_PER_S = 200


@dataclass
class _Counts:
    """The counts of one version."""

    requests: int = 0
    engine_errors: int = 0
    durations: list[int] = field(default_factory=lambda: [0] * (len(BUCKETS_S) + 1))
    compute: list[int] = field(default_factory=lambda: [0] * (len(BUCKETS_S) + 1))
    compared: int = 0
    disagreed: int = 0
    skipped: int = 0
    worst: float = 0.0
    worst_words: str = ""


class VersionObserver:
    """Watches the answers of one model in one generation.

    Attributes:
        samples: The worst disagreements of the shadow.
    """

    def __init__(
        self,
        state: DesiredState,
        stable: ServedModel,
        shadow: ServedModel | None,
        metrics: Metrics,
    ) -> None:
        """Start with all counts at zero.

        Raises:
            RolloutError: The shadow's answers cannot be compared with the stable version's.
        """
        self._state, self._stable, self._shadow, self._metrics = state, stable, shadow, metrics
        self._comparer = None
        if shadow is not None:
            self._comparer = AnswerComparer(stable, shadow, state.limits)
        self._counts = {version: _Counts() for version in state.versions}
        self._model = stable.manifest.name
        self.samples = WorstSamples()
        self._random = Random(state.generation)  # noqa: S311 - which requests are copied
        self._earliest_s = 0.0

    def record_answer(
        self, version: str, inputs: Arrays, outputs: Arrays, timing: BatchTiming, seconds: float
    ) -> None:
        """Count one answered request, and copy it to the shadow if both engines are idle."""
        counts = self._counts.get(version)
        if counts is None:  # the request began before this generation
            return
        counts.requests += 1
        counts.durations[bucket_of(seconds)] += 1
        counts.compute[bucket_of(timing.compute_s)] += 1
        self._metrics.record_version_answer(self._model, version, seconds)
        if self._shadow is not None and version == self._state.stable:
            self._ask_shadow(self._shadow, inputs, outputs)

    def record_timeout(self, version: str, seconds: float) -> None:
        """Count the duration of a request that timed out, since a hanging engine is slow, too."""
        counts = self._counts.get(version)
        if counts is not None:
            counts.durations[bucket_of(seconds)] += 1

    def record_failure(self, version: str, error: EngineError) -> None:
        """Count one request that a version's engine could not compute."""
        counts = self._counts.get(version)
        if counts is not None:
            counts.engine_errors += 1
            counts.worst_words = counts.worst_words or str(error)
            self._metrics.record_version_failure(self._model, version)

    def snapshot(self) -> dict[str, VersionFigures]:
        """Return the counts so far, by version."""
        comparer = self._comparer
        return {
            version: VersionFigures(
                **{
                    **vars(counts),
                    "durations": tuple(counts.durations),
                    "compute": tuple(counts.compute),
                },
                same_weights=comparer is not None and comparer.same_weights,
            )
            for version, counts in self._counts.items()
        }

    def _ask_shadow(self, shadow: ServedModel, inputs: Arrays, expected: Arrays) -> None:
        share = self._state.shadow.share if self._state.shadow else 0
        counts = self._counts[shadow.manifest.version]
        if share < 1 and self._random.random() >= share:
            return
        is_idle = shadow.batcher.is_idle and self._stable.batcher.queued_samples == 0
        now_s = perf_counter()
        if not is_idle or now_s < self._earliest_s:
            counts.skipped += 1
            return
        self._earliest_s = now_s + 1 / MAX_SHADOWS_PER_S
        try:
            count = len(next(iter(inputs.values())))
            shadow.batcher.enqueue(inputs, count, _ShadowSink(self, inputs, expected))
        except OverloadedError:
            counts.skipped += 1

    def fail_shadow(self, error: EngineError) -> None:
        """Count a copy that the shadow's engine could not compute."""
        if self._shadow is not None:
            self.record_failure(self._shadow.manifest.version, error)

    def receive_shadow(self, inputs: Arrays, expected: Arrays, answers: Arrays) -> None:
        """Compare a shadow's answers with the answers that were sent to the client."""
        shadow, comparer = self._shadow, self._comparer
        if shadow is None or comparer is None:
            return
        version = shadow.manifest.version
        counts = self._counts[version]
        for index, found in enumerate(comparer.compare(expected, answers)):
            counts.compared += 1
            self._metrics.record_shadow_comparison(
                self._model, version, is_disagreement=found.is_disagreement
            )
            if not found.is_disagreement:
                continue
            counts.disagreed += 1
            if found.difference >= counts.worst:
                counts.worst, counts.worst_words = min(found.difference, 1e300), found.words
            names = [spec.name for spec in self._stable.manifest.outputs]
            self.samples.add(
                found.difference,
                {name: array[index] for name, array in inputs.items()},
                {name: expected[name][index] for name in names},
                {name: answers[name][index] for name in names},
            )


@dataclass(slots=True)
class _ShadowSink:
    """Receives a shadow's answer, which is never sent to a client."""

    observer: VersionObserver
    inputs: Arrays
    expected: Arrays

    def is_waiting(self) -> bool:
        return True

    def succeed(self, outputs: Arrays, timing: BatchTiming) -> None:
        self.observer.receive_shadow(self.inputs, self.expected, outputs)

    def fail(self, error: Exception) -> None:
        if isinstance(error, EngineError):
            self.observer.fail_shadow(error)
