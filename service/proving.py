"""What does not answer its golden samples rightly on the device is not served."""

from collections.abc import Sequence

from export.golden import Golden, GoldenResult, check_golden
from export.manifest import TensorSpec
from export.parity.tolerances import Tolerance
from service.engines import Engine


class UnprovenError(RuntimeError):
    """A model does not answer its golden samples rightly on the device it would serve from."""


def prove(
    what: str, engine: Engine, golden: Golden, outputs: Sequence[TensorSpec], tolerance: Tolerance
) -> GoldenResult:
    """Ask an engine its golden samples.

    Args:
        what: Its name in errors.
        engine: On the device that is going to be used.
        golden: The samples.
        outputs: What it gives.
        tolerance: What it may differ by.

    Raises:
        UnprovenError: It cannot answer, or answers wrongly.
    """
    try:
        result = check_golden(golden, engine, outputs, tolerance)
    except Exception as error:  # runtimes raise whatever they like
        raise UnprovenError(
            f"{what} cannot answer its golden samples on {engine.device}: {error}"
        ) from error
    if not result.passed:
        raise UnprovenError(
            f"{what} fails its golden samples on {engine.device}: {'; '.join(result.failures)}"
        )
    return result
