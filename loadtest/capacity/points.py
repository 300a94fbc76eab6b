"""The measured points of a replica, from which plans and simulations are computed.

``python -m loadtest capacity measure`` writes such a file. No value in it is assumed: a field that
could not be measured is null, and a command that needs it says how to measure it.
"""

import json
from pathlib import Path
from typing import Annotated

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from loadtest.errors import LoadTestError
from loadtest.scenarios import Endpoint

Positive = Annotated[float, Field(gt=0)]
Floats = npt.NDArray[np.float64]
Count = Annotated[int, Field(ge=1)]
MS = 1000  # in a second


class PointsError(LoadTestError):
    """A file does not contain measured points, or a required point is missing."""


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Origin(_Strict):
    """Where the points come from.

    Attributes:
        how: The command that measured them, or a note that they are inputs and not measured.
    """

    how: str
    machine: str
    versions: dict[str, str]
    began: str


class AtSlo(_Strict):
    """The capacity of one replica at its SLO, as found by ``loadtest sweep``.

    Attributes:
        requests_per_s: Requests/s answered rightly and within the bound.
        slo_ms: The latency bound for 99% of the requests.
    """

    requests_per_s: Positive
    slo_ms: Positive


class Points(_Strict):
    """The measurements of one replica with requests of one size.

    A batch of k requests with n samples each takes ``fixed_ms + k * (n * sample_ms + request_ms)``
    of the replica's core.

    Attributes:
        model: Name and version of the model.
        endpoint: The form of the requests.
        cores_per_replica: Number of cores that one replica needs.
        samples_per_request: n.
        request_bytes: Size of a request with its headers; ``answer_bytes`` is that of an answer.
        fixed_ms: Compute time of a batch that does not depend on its size.
        sample_ms: Compute time that each sample of a batch adds.
        request_ms: CPU time of the replica per request outside the engine: HTTP, parsing, answer.
        scatter: Quantiles of the ratio of measured to fitted compute times, at evenly spaced shares
            from 0 to 1, by the batch's samples. For other sizes those of the nearest one are used.
        path_ms: Quantiles of the time that a request takes outside the replica's core: client,
            network, proxy.
        max_batch_samples: The service's setting of that name; ``max_queue_samples`` too.
        start_s: Time from the start of the process until the replica is ready.
        memory_mib: Resident memory of all processes of a replica, after load.
        at_slo: The capacity at the SLO; None if no sweep found a valid one.
        proxy_ms: CPU time of the proxy per request; None if no proxy was measured.
    """

    origin: Origin
    model: str
    endpoint: Endpoint
    cores_per_replica: Positive
    samples_per_request: Count
    request_bytes: Count
    answer_bytes: Count
    fixed_ms: Annotated[float, Field(ge=0)]
    sample_ms: Annotated[float, Field(ge=0)]
    request_ms: Annotated[float, Field(ge=0)]
    scatter: Annotated[
        dict[Count, Annotated[list[Positive], Field(min_length=1)]], Field(min_length=1)
    ]
    path_ms: Annotated[list[Annotated[float, Field(ge=0)]], Field(min_length=1)]
    max_batch_samples: Count
    max_queue_samples: Count
    start_s: Positive
    memory_mib: Positive
    at_slo: AtSlo | None
    proxy_ms: Positive | None

    @property
    def batch_requests(self) -> int:
        """The number of requests in a full batch."""
        return max(1, self.max_batch_samples // self.samples_per_request)

    @property
    def most_per_s(self) -> float:
        """Requests/s of a replica if all its batches are full: its limit, without any SLO."""
        full = self.batch_requests
        return MS * full / float(np.mean(self.batch_ms(full)))

    def batch_ms(self, requests: int) -> Floats:
        """The time that a batch of so many requests takes on the core: quantiles at even shares."""
        samples = requests * self.samples_per_request
        nearest = min(self.scatter, key=lambda size: abs(size - samples))
        engine_ms = self.fixed_ms + samples * self.sample_ms
        return engine_ms * np.array(self.scatter[nearest]) + requests * self.request_ms


def load_points(path: Path) -> Points:
    """Read a file of points.

    Raises:
        PointsError: The file is invalid; the message names the field. No defaults are filled in.
    """
    try:
        return Points.model_validate(json.loads(path.read_bytes()))
    except (OSError, ValueError, ValidationError) as error:
        raise PointsError(
            f"{path} does not contain measured points: {error}; expected the file written by: "
            "python -m loadtest capacity measure --out FILE"
        ) from error


def fit(compute_ms: dict[int, list[float]]) -> tuple[float, float]:
    """Fit a batch's fixed time and its time per sample to measured compute times.

    The fit minimizes the squared relative errors of the medians, so that small batches count as
    much as large ones. Neither term is negative.

    Args:
        compute_ms: Measured times by batch size in samples, for at least two sizes.

    Returns:
        ``fixed_ms`` and ``sample_ms``.

    Raises:
        PointsError: There are fewer than two sizes.
    """
    if len(compute_ms) < 2:  # noqa: PLR2004 - a line has two terms
        raise PointsError(
            f"expected at least two batch sizes to fit a line, got {list(compute_ms)}"
        )
    sizes = np.array(sorted(compute_ms), float)
    medians = np.array([np.median(compute_ms[int(size)]) for size in sizes])
    terms = np.stack([np.ones_like(sizes), sizes], axis=1) / medians[:, None]
    (fixed_ms, sample_ms), *_ = np.linalg.lstsq(terms, np.ones_like(sizes), rcond=None)
    if fixed_ms < 0:
        return 0.0, float(np.sum(terms[:, 1]) / np.sum(terms[:, 1] ** 2))
    if sample_ms < 0:
        return float(np.sum(terms[:, 0]) / np.sum(terms[:, 0] ** 2)), 0.0
    return float(fixed_ms), float(sample_ms)


def quantiles(values: list[float], count: int = 201) -> list[float]:
    """Quantiles of the values at evenly spaced shares from 0 to 1, in ascending order."""
    return [float(value) for value in np.quantile(values, np.linspace(0, 1, count))]
