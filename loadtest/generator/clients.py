"""Misbehaving clients, which hang up before the answer or send their request byte by byte.

Each opens its own connection. Their outcomes are counted separately from those of the load.
"""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from urllib.parse import urlsplit

import gevent
from gevent import socket

from loadtest.generator.payloads import Request

PATIENCE_S = 30.0
ANSWER_BYTES = 65_536


def hang_up(url: str, request: Request, wait_s: float, further: Mapping[str, str]) -> None:
    """Send a whole request, wait, and close the connection without reading the answer."""
    asked = replace(request, headers={**request.headers, **further})
    with suppress(OSError), _connected(url) as connection:
        connection.sendall(asked.wire())
        gevent.sleep(wait_s)


def send_slowly(url: str, request: Request, pause_s: float) -> str:
    """Send a request byte by byte.

    Returns:
        "answered", or "closed" if the connection was closed without an answer.
    """
    try:
        with _connected(url) as connection:
            wire = request.wire()
            for position in range(len(wire)):
                connection.sendall(wire[position : position + 1])
                gevent.sleep(pause_s)
            return "answered" if connection.recv(ANSWER_BYTES) else "closed"
    except OSError:
        gevent.sleep(pause_s)
        return "closed"


def _connected(url: str) -> socket.socket:
    where = urlsplit(url)
    address = (str(where.hostname), where.port or 80)
    return socket.create_connection(address, timeout=PATIENCE_S)
