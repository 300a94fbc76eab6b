"""A server that does nothing; the rate reached against it is the load generator's own ceiling.

It answers every POST at once with the same JSON. It does not support chunked request bodies.
"""

import argparse
import asyncio
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import uvloop

from loadtest.server import ask_ready, free_port, started

START_TIMEOUT_S = 20.0
BACKLOG = 4096
HEAD_END = b"\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\n"
READY = OK + b"Content-Length: 0\r\n\r\n"
ANSWER = OK + b"Content-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
NOT_FOUND = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"
_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d+)", re.IGNORECASE)


class Connection(asyncio.Protocol):
    """Answers each request once it is complete, however its bytes are split into reads."""

    transport: asyncio.Transport

    def __init__(self) -> None:
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport to which answers are written."""
        self.transport = transport  # type: ignore[assignment]  # TCP's is one

    def data_received(self, data: bytes) -> None:
        """Answer each request that is complete."""
        self._received += data
        while (end := self._received.find(HEAD_END)) >= 0:
            head = self._received[:end]
            length = _LENGTH.search(head)
            end += len(HEAD_END) + (int(length[1]) if length else 0)
            if len(self._received) < end:
                return
            self._received = self._received[end:]
            if head.startswith(b"POST "):
                self.answer_post()
            else:
                self.transport.write(READY if head.startswith(b"GET /readyz ") else NOT_FOUND)

    def answer_post(self) -> None:
        """Write the answer to a POST."""
        self.transport.write(ANSWER)


@contextmanager
def noop_server(module: str = "loadtest.measure.noop", *options: str) -> Iterator[str]:
    """Run the server in a separate process, on a free port of the loopback interface.

    Args:
        module: The module that is run, with the option ``--port``.
        options: Further options of that module.

    Yields:
        The server's URL, once the server is ready.

    Raises:
        ServiceNotReadyError: The server did not start.
    """
    port = free_port()
    url, command = f"http://127.0.0.1:{port}", [sys.executable, "-m", module, "--port", str(port)]
    with tempfile.TemporaryDirectory(prefix="noop-") as folder:
        ask, log_file = lambda: ask_ready(url), Path(folder) / "log"
        with started([*command, *options], log_file, ask, timeout_s=START_TIMEOUT_S):
            yield url


async def serve(port: int, connection: type[Connection] = Connection) -> None:
    """Serve on a port of the loopback interface until the process is terminated."""
    create = asyncio.get_running_loop().create_server
    server = await create(connection, "127.0.0.1", port, backlog=BACKLOG)
    async with server:
        await server.serve_forever()


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and serve until the process is terminated."""
    parser = argparse.ArgumentParser(prog="python -m loadtest.measure.noop", description=__doc__)
    parser.add_argument("--port", type=int, required=True, help="port of the loopback interface")
    uvloop.run(serve(parser.parse_args(arguments).port))


if __name__ == "__main__":
    main()
