"""What leaves the endpoints when something inside them breaks."""

import asyncio
import logging
import re

import httpx
import pytest

from service.http import HttpApi
from service.settings import Settings


def test_a_fault_of_the_service_is_a_500_in_words_and_a_trace_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The client gets an incident's number and no trace; the log has both under that number."""
    unproven = HttpApi(Settings(), dict)  # no model was ever given to it: each answer breaks
    caplog.set_level(logging.ERROR, logger="bentoml.service")

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(app=unproven.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
            return await client.get("/models")

    answer = asyncio.run(ask())
    assert answer.status_code == 500
    assert list(answer.json()) == ["error"]
    assert "proven" not in answer.text
    incident = re.search(r"of ([0-9a-f]{12})$", answer.json()["error"])
    assert incident is not None
    assert incident[1] in caplog.text
    assert "before the models were proven" in caplog.text
