"""Stops accepting connections on a socket that several processes share, without resetting any.

All workers and the parent process share the listening socket. When the last of them closes it, the
kernel resets the connections that are still in the accept queue. So the socket first drops new
handshakes, then the completed connections are accepted, and only then the socket is closed. Clients
that connect later find the port closed.
"""

import ctypes
import logging
import socket
import struct
import sys
from asyncio.base_events import Server

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


def drop_handshakes(server: Server) -> None:
    """Make the kernel drop new handshakes on the server's sockets, for all processes.

    Clients retry after a second and find the port closed. On systems other than Linux, and on Unix
    sockets, connections that arrive at the last moment may be reset.
    """
    if not sys.platform.startswith("linux"):
        return
    program = b"".join(struct.pack("HBBI", *step) for step in _DROP_HANDSHAKES)
    steps = ctypes.create_string_buffer(program)
    filter_ = struct.pack("HL", len(_DROP_HANDSHAKES), ctypes.addressof(steps))
    try:
        for listening in server.sockets:
            listening.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, filter_)
    except OSError as error:
        logger.warning("connections that arrive at the last moment may be reset: %s", error)
