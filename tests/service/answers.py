"""Parsing of binary responses of /v2/models/MODEL/infer, as a client does it."""

import httpx
import numpy as np

CLASSES = 10
RAW = {"inference-header-content-length": "0"}
"""The header of a request whose body is nothing but pixels."""


def read_logits(answer: httpx.Response) -> np.ndarray:
    """The logits of a binary response (JSON, logits, then probabilities), float32 [N, 10]."""
    json_length = int(answer.headers["inference-header-content-length"])
    values = np.frombuffer(answer.content[json_length:], np.float32)
    return values[: len(values) // 2].reshape(-1, CLASSES)


def raw_request(body: bytes) -> bytes:
    """The bytes of a request to the CNN whose body contains only pixels."""
    lines = ["POST /v2/models/cnn/infer HTTP/1.1", "host: x", f"content-length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in RAW.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + body


def parsed(received: bytes) -> httpx.Response | None:
    """The response in these bytes, or None while it is incomplete."""
    head, separator, body = received.partition(b"\r\n\r\n")
    if not separator:
        return None
    status, *lines = head.decode("latin-1").split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines)
    if len(body) < int(headers["content-length"]):
        return None
    return httpx.Response(int(status.split(" ")[1]), headers=headers, content=body)
