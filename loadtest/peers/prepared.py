"""A peer's requests in a file, so that locust's users ask it and judge its answers."""

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from loadtest.bodies import Body
from loadtest.client.connections import Judge
from loadtest.client.forms import Request
from loadtest.peers.forms import FORMS, Form, judge

REMEMBERED_ANSWERS = 16


@dataclass
class Asked:
    """One request and the judge of its answer; bodies that were right once are remembered."""

    sent: Body
    judge: Judge
    known_right: set[bytes] = field(default_factory=set)


class Prepared:
    """What ``loadtest.expectations.Expectations`` is for this service, for any server."""

    named: tuple[str, str] | None = None  # peers name no device and no variant

    def __init__(self, file: Path) -> None:
        """Read what ``save`` wrote."""
        content = json.loads(file.read_text())
        form, self.requests = FORMS[content["form"]], []
        for each in content["requests"]:
            body = base64.b64decode(each["body"])
            request = Request("", "", each["path"], body, tuple(each["labels"]), each["headers"])
            sent = Body(request.path, body, request.headers)
            self.requests.append(Asked(sent, judge(form, request)))

    def complaint(self, request: Asked, answer: bytes, headers: Mapping[str, str]) -> str | None:
        """What is wrong with a 200 answer; None if nothing is."""
        if answer in request.known_right:
            return None
        complaint = request.judge(headers, answer)
        if complaint is None and len(request.known_right) < REMEMBERED_ANSWERS:
            request.known_right.add(answer)
        return complaint


def save(file: Path, form: Form, requests: Sequence[Request]) -> None:
    """Write requests, and the labels that their answers must say.

    Args:
        file: Where to.
        form: One of ``FORMS``.
        requests: In that form.
    """
    (name,) = (name for name, known in FORMS.items() if known is form)
    rows = [
        {
            "path": request.path,
            "headers": request.headers,
            "body": base64.b64encode(request.body).decode(),
            "labels": request.labels,
        }
        for request in requests
    ]
    file.write_text(json.dumps({"form": name, "requests": rows}) + "\n")
