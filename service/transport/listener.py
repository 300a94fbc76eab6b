"""The worker's listening socket: stops accepting connections without cutting any.

The socket is shared by all workers and the parent process. When the last of them closes it, the
kernel resets connections that it has accepted and no process has. So the socket first drops new
handshakes, connections that are complete are accepted, and only then it is closed. Clients that
connect later find the port closed.

uvicorn takes its event loop from the registry entry "auto"; ``make_loop_factory`` stands there and
finds the socket when the server is made.
"""

import asyncio
import ctypes
import logging
import socket
import struct
import sys
from collections.abc import Callable
from typing import Any

import uvloop

logger = logging.getLogger("bentoml.service")

# linux/socket.h; a classic BPF program (linux/filter.h) on the bytes from the TCP header on.
SO_ATTACH_FILTER = 26
_TCP_FLAGS_AT, _SYN, _SYN_OR_ACK = 13, 0x02, 0x12
_LOAD_BYTE, _AND, _JUMP_IF_EQUAL, _RETURN = 0x30, 0x54, 0x15, 0x06
_KEEP_ALL = 0xFFFFFFFF
_DROP_HANDSHAKES = (
    (_LOAD_BYTE, 0, 0, _TCP_FLAGS_AT),
    (_AND, 0, 0, _SYN_OR_ACK),
    (_JUMP_IF_EQUAL, 0, 1, _SYN),
    (_RETURN, 0, 0, 0),
    (_RETURN, 0, 0, _KEEP_ALL),
)


class Listener:
    """The listening socket of this process."""

    def __init__(self) -> None:
        self._server: asyncio.AbstractServer | None = None
        self._socket: socket.socket | None = None

    def attach(self, server: asyncio.AbstractServer, listening: socket.socket) -> None:
        """Take the server and its socket."""
        self._server, self._socket = server, listening

    def drop_handshakes(self) -> None:
        """Make the kernel drop new handshakes on the shared socket, for all processes.

        Clients try again after a second and find the port closed. Elsewhere than on Linux, and on
        Unix sockets, connections that arrive in the last moment may be reset.
        """
        if self._socket is None or not sys.platform.startswith("linux"):
            return
        program = b"".join(struct.pack("HBBI", *step) for step in _DROP_HANDSHAKES)
        steps = ctypes.create_string_buffer(program)
        filter_ = struct.pack("HL", len(_DROP_HANDSHAKES), ctypes.addressof(steps))
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, filter_)
        except OSError as error:
            logger.warning("connections of the last moment may be reset: %s", error)

    def stop_accepting(self) -> None:
        """Accept no more connections in this process; other processes may go on."""
        if self._server is not None:
            self._server.close()


LISTENER = Listener()


class ServiceLoop(uvloop.Loop):
    """uvloop's event loop; it tells the listener which socket the server listens on."""

    async def create_server(  # type: ignore[override] # one form for all overloads
        self, *args: Any, **options: Any
    ) -> asyncio.AbstractServer:
        """Make a server as uvloop does."""
        server: asyncio.AbstractServer = await super().create_server(*args, **options)
        if options.get("sock") is not None:
            LISTENER.attach(server, options["sock"])
        return server


def make_loop_factory(use_subprocess: bool = False) -> Callable[[], asyncio.AbstractEventLoop]:
    """Return what makes the event loop, as uvicorn's registry wants it."""
    return ServiceLoop
