"""What leaves the endpoints when something inside them breaks."""

import asyncio
import logging

import httpx
import pytest

from service.http import HttpApi
from service.reception import Reception, ReceptionMiddleware
from service.settings import Settings


def test_a_fault_of_the_service_is_a_500_in_words_and_a_trace_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The client gets its request's id and no trace; the log has both under that id."""
    unproven = HttpApi(Settings(), dict)  # no model was ever given to it: each answer breaks
    caplog.set_level(logging.ERROR, logger="bentoml.service")

    async def ask() -> httpx.Response:
        guarded = ReceptionMiddleware(unproven.app, Reception(Settings()))
        transport = httpx.ASGITransport(app=guarded)
        async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
            return await client.get("/models")

    answer = asyncio.run(ask())
    assert answer.status_code == 500
    assert list(answer.json()) == ["error"]
    assert "proven" not in answer.text
    request_id = answer.headers["x-request-id"]
    assert answer.json()["error"].endswith(f"tells more of request {request_id}")
    assert request_id in caplog.text
    assert "before the models were proven" in caplog.text
