"""Observations recorded in bulk equal single observations."""

import numpy as np
from prometheus_client import CollectorRegistry, Histogram

from service.observability.buffered_histogram import BufferedHistogram
from service.observability.metrics import SAMPLES, SECONDS


def test_a_tally_tells_what_single_observations_would() -> None:
    """They agree on random values, bucket bounds and values beyond them, in two parts."""
    random = np.random.default_rng(0)
    for bounds in (SECONDS, SAMPLES):
        values = [0.0, *bounds, *random.lognormal(-5, 3, 1000), *random.integers(1, 300, 1000)]
        single, bulk = CollectorRegistry(), CollectorRegistry()
        one = Histogram("seen", "", ["of"], buckets=bounds, registry=single).labels("x")
        many = BufferedHistogram("seen", "", ["of"], buckets=bounds, registry=bulk).labels("x")
        told = 0
        for number, value in enumerate(values):
            one.observe(value)
            many.observe(value)
            if number == 500:
                told += many.flush()
        told += many.flush()
        assert told == len(values)
        assert many.flush() == 0
        expected, found = (
            {
                (sample.name, sample.labels.get("le")): sample.value
                for metric in registry.collect()
                for sample in metric.samples
                if not sample.name.endswith("_created")
            }
            for registry in (single, bulk)
        )
        totals = expected.pop(("seen_sum", None)), found.pop(("seen_sum", None))
        assert np.isclose(*totals, rtol=1e-12)  # the order of the sum differs
        assert found == expected
