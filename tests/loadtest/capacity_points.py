"""Hand-made points of replicas, for tests of plans and simulations."""

from typing import Any

from loadtest.capacity.points import Points

MADE = {
    "origin": {"how": "made up for a test", "machine": "none", "versions": {}, "began": "never"},
    "model": "made 1",
    "endpoint": "infer/raw",
    "cores_per_replica": 1,
    "samples_per_request": 1,
    "request_bytes": 1000,
    "answer_bytes": 500,
    "fixed_ms": 0.0,
    "sample_ms": 1.0,
    "request_ms": 0.0,
    "scatter": {1: [1.0]},
    "path_ms": [0.0],
    "max_batch_samples": 1,
    "max_queue_samples": 100_000,
    "start_s": 5.0,
    "memory_mib": 300.0,
    "at_slo": {"requests_per_s": 100.0, "slo_ms": 20.0},
    "proxy_ms": 0.1,
}


def made_points(**changes: Any) -> Points:
    """The points of a replica that takes one millisecond per request and does not batch."""
    return Points.model_validate(MADE | changes)
