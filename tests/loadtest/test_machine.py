"""The machine's cores are divided between the service and the client."""

import os

import pytest

from loadtest.machine import cores, pinned


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="no such call here")
def test_service_and_client_have_their_own_cores() -> None:
    """No core is in both sets, and after the block all cores are available again."""
    before = os.sched_getaffinity(0)
    services, clients = cores()
    assert not services & clients
    with pinned(clients):
        assert os.sched_getaffinity(0) == (clients or before)
    assert os.sched_getaffinity(0) == before
