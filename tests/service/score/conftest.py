"""Starts Ray once for the tests of a process."""

from collections.abc import Iterator

import pytest

from service.score.pool import connect


@pytest.fixture(scope="session")
def ray_here() -> Iterator[None]:
    """Ray in this process, which runs use instead of starting their own."""
    with connect(None, 2):
        yield
