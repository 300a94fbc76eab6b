"""Plain sockets that distinguish a refused connection, a closed one and a reset one.

HTTP clients hide which of these happened, retry, and never pipeline. This module also starts the
services for these sockets, with the same settings on each transport.
"""

import socket
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Self

import httpx
import numpy as np

from export.bundle.golden import Golden
from export.bundle.metrics import Array
from loadtest.server import free_port, running_service
from tests.service.answers import read_logits
from tests.tiny import SERVED_BUNDLES

PATIENCE_S = 20.0
BASE = {"INFERENCE_BUNDLES": str(SERVED_BUNDLES), "INFERENCE_DEVICE": "cpu"}
TRANSPORTS: dict[str, dict[str, str]] = {"short": {}, "ordinary": {"INFERENCE_FAST_PATH": "false"}}
"""The settings that choose each transport, by the name of a test's parameter."""
GOLDEN = {name: Golden.load(SERVED_BUNDLES / name / "golden.npz") for name in ("cnn", "mlp")}
LARGEST_ERROR = 1e-3
"""Of an answer's logits, as a share of the largest logit; another image's answer is far beyond."""


class CutError(Exception):
    """The connection ended before a whole answer came; the message says how."""


class Connection:
    """One TCP connection to a service; a context manager that closes it."""

    def __init__(self, url: str, *, timeout_s: float = PATIENCE_S, receive_bytes: int = 0) -> None:
        """Connect.

        Args:
            url: URL of the service, http://HOST:PORT.
            timeout_s: Longest time that one call may block, seconds.
            receive_bytes: Size of the kernel's receive buffer; its default if 0.

        Raises:
            ConnectionRefusedError: No process listens on the port.
        """
        host, port = url.removeprefix("http://").split(":")
        self.socket = socket.socket()
        self.socket.settimeout(timeout_s)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if receive_bytes:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        try:
            self.socket.connect((host, int(port)))
        except OSError:
            self.socket.close()
            raise
        self._received = b""

    def __enter__(self) -> Self:
        """Return the open connection."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the connection."""
        self.socket.close()

    @property
    def port(self) -> int:
        """The client's own port, which identifies the service's end of the connection."""
        return int(self.socket.getsockname()[1])

    def send(self, content: bytes) -> None:
        """Send all bytes.

        Raises:
            CutError: The connection was reset, or the service read too slowly.
        """
        try:
            self.socket.sendall(content)
        except OSError as error:
            raise CutError(f"{error!r} while a request was sent") from error

    def receive(self) -> httpx.Response:
        """Read the next answer; what follows it is kept for the next call.

        Raises:
            CutError: The connection ended, or nothing came in time.
        """
        while (end := _answer_end(self._received)) is None:
            self._received += self._receive_some()
        answer, self._received = _parse(self._received[:end]), self._received[end:]
        return answer

    def receive_all(self) -> list[httpx.Response]:
        """Read answers until the service closes the connection, by an EOF or by a reset.

        Raises:
            CutError: The last answer is not whole, or the connection stayed open.
        """
        while True:
            try:
                part = self.socket.recv(1 << 18)
            except ConnectionResetError:
                break
            except TimeoutError as error:
                raise CutError(f"still open after {self._received[-500:]!r}") from error
            if not part:
                break
            self._received += part
        answers = []
        while self._received:
            end = _answer_end(self._received)
            if end is None:
                raise CutError(f"closed within an answer: {self._received[-500:]!r}")
            answers.append(_parse(self._received[:end]))
            self._received = self._received[end:]
        return answers

    def _receive_some(self) -> bytes:
        so_far = f"after {len(self._received)} bytes of an answer"
        try:
            part = self.socket.recv(1 << 18)
        except OSError as error:
            raise CutError(f"{error!r} {so_far}") from error
        if not part:
            raise CutError(f"EOF {so_far}")
        return part


def _answer_end(received: bytes) -> int | None:
    """The end of the first answer in these bytes; None while it is incomplete."""
    head, separator, _ = received.partition(b"\r\n\r\n")
    if not separator:
        return None
    end = len(head) + len(separator) + int(_parse(received).headers["content-length"])
    return end if len(received) >= end else None


def _parse(received: bytes) -> httpx.Response:
    head, _, body = received.partition(b"\r\n\r\n")
    status, *lines = head.decode("latin-1").split("\r\n")
    headers = [(name, value) for name, value in (line.split(": ", 1) for line in lines)]
    assert status[:8] == "HTTP/1.1", status
    return httpx.Response(int(status.split(" ")[1]), headers=headers, content=body)


def post(path: str, body: bytes, *headers: str, version: str = "1.1") -> bytes:
    """The bytes of a POST request with a Content-Length."""
    lines = [f"POST {path} HTTP/{version}", "host: x", f"content-length: {len(body)}", *headers]
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + body


def get(path: str, *headers: str, version: str = "1.1") -> bytes:
    """The bytes of a GET request."""
    return ("\r\n".join([f"GET {path} HTTP/{version}", "host: x", *headers]) + "\r\n\r\n").encode()


def golden_images(model: str, count: int, start: int = 0) -> Array:
    """Golden images of a model from a position on, repeated, uint8 [count, 28, 28]."""
    images = GOLDEN[model].inputs["images"]
    return images[np.arange(start, start + count) % len(images)]


def infer(model: str, count: int = 1, start: int = 0, *headers: str) -> bytes:
    """The bytes of a request for golden images, with a body of pixels only."""
    body = golden_images(model, count, start).tobytes()
    raw = "inference-header-content-length: 0"
    return post(f"/v2/models/{model}/infer", body, raw, *headers)


def find_mistake(answer: httpx.Response, model: str, count: int = 1, start: int = 0) -> str:
    """The mistake in the answer to ``infer`` with the same arguments; "" if it is right."""
    if answer.status_code != 200:
        return f"status {answer.status_code}: {answer.text[:200]}"
    if answer.headers["x-model"] != model:
        return f"answered by {answer.headers['x-model']}, not {model}"
    expected, logits = GOLDEN[model].fp32["logits"], read_logits(answer)
    expected = expected[np.arange(start, start + count) % len(expected)]
    if logits.shape != expected.shape:
        return f"logits of shape {logits.shape}, not {expected.shape}"
    error = float(np.abs(logits - expected).max() / np.abs(expected).max())
    return "" if error <= LARGEST_ERROR else f"logits off by {error:.1e} of the largest"


@contextmanager
def running_services(
    folder: Path, settings: Mapping[str, Mapping[str, str]]
) -> Iterator[dict[str, str]]:
    """Start several services at the same time, which takes little longer than one.

    Args:
        folder: Folder for their logs.
        settings: Environment variables of each service, by its name.

    Yields:
        The URL of each service, by its name.
    """
    ports = set[int]()
    while len(ports) < len(settings):
        ports.add(free_port())  # a released port may be returned again
    with ExitStack() as stack, ThreadPoolExecutor(len(settings)) as pool:
        services = [
            running_service(folder / f"{name}.log", port=port, settings=BASE | dict(further))
            for port, (name, further) in zip(ports, settings.items(), strict=True)
        ]
        urls = list(pool.map(stack.enter_context, services))
        yield dict(zip(settings, urls, strict=True))


def on_both_transports(**settings: str) -> dict[str, dict[str, str]]:
    """The environment of a service on each transport, by the transport's name.

    Args:
        settings: Values by the environment variables' names without their prefix.
    """
    shared = {f"INFERENCE_{name}": value for name, value in settings.items()}
    return {name: shared | transport for name, transport in TRANSPORTS.items()}


def read_metrics(url: str) -> dict[str, float]:
    """Every sample of /metrics, by its name with its labels as printed."""
    lines = httpx.get(f"{url}/metrics", timeout=PATIENCE_S).text.splitlines()
    samples = (line.rsplit(" ", 1) for line in lines if line[:1] != "#")
    return {name: float(value) for name, value in samples}


def wait_for(condition: Callable[[], bool], within_s: float, step_s: float = 0.05) -> bool:
    """Call a condition until it is true; return False if the time runs out first."""
    until_s = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > until_s:
            return False
        time.sleep(step_s)
    return True
