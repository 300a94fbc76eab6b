"""Responses and logs for internal errors."""

import asyncio
import logging

import httpx
import pytest
from starlette.types import Receive, Scope, Send

from service.observability.records import Exchange
from service.transport.asgi_app import make_app


def test_a_fault_of_the_service_is_a_500_in_words_and_a_trace_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The client gets its request id without a traceback; the log has both under that id."""
    unproven = make_app(dict, [])  # it has no models, so every request fails
    caplog.set_level(logging.ERROR, logger="bentoml.service")

    async def recorded(scope: Scope, receive: Receive, send: Send) -> None:
        exchange = Exchange(b"its-own-id", 0.0, None, "GET", "/models")  # as the transport does
        await unproven({**scope, "exchange": exchange}, receive, send)

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(app=recorded)
        async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
            return await client.get("/models")

    answer = asyncio.run(ask())
    assert answer.status_code == 500
    assert list(answer.json()) == ["error"]
    assert "verified" not in answer.text
    assert answer.json()["error"].endswith("has the details of request its-own-id")
    assert "request its-own-id failed" in caplog.text
    assert "before the models were verified" in caplog.text
