"""A peer that needs only Python and stores the answers to the tiny bundle's golden images."""

import json
from pathlib import Path

from loadtest.generator.expectations import Expectations
from tests.tiny import SERVED_BUNDLES

BUNDLE = SERVED_BUNDLES / "cnn"
EXPECTATIONS = Expectations(BUNDLE, 1, "tensors", "/digits")
IMAGES = EXPECTATIONS.requests
ANSWERS = EXPECTATIONS.models[0].eager["probabilities"]

HEAD = """# /// script
# dependencies = [{requirements}]
#
# [[tool.peer]]
# name = "{name}"
# settings = "as it comes"
# form = "tensors"
# path = "/digits"
# command = ["{{file}}", "{{port}}"]
# environment = {{ ANSWERS = "{answers}", HONEST = "{honest}" }}
# documentation = "https://docs.python.org/3/library/http.server.html"
# ///
"""
# Answers from a table of the golden images' answers; after HONEST answers it reverses them.
SERVER = """
import http.server, json, os, sys
answers, honest = json.loads(open(os.environ["ANSWERS"]).read()), int(os.environ["HONEST"])

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version, wbufsize, given = "HTTP/1.1", -1, 0

    def do_POST(self):
        pixels = self.rfile.read(int(self.headers["content-length"]))
        wrong = Handler.given >= honest
        Handler.given += 1
        body = bytes.fromhex(answers[pixels.hex()])
        body = body[4:] + body[:4] if wrong else body
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments):
        pass

address = ("127.0.0.1", int(sys.argv[1]))
http.server.ThreadingHTTPServer(address, Handler).serve_forever()
"""


def write_peer(
    folder: Path, name: str, server: str = SERVER, *, honest: int = 10**9, requirements: str = ""
) -> Path:
    """Write a peer's file that needs only Python."""
    folder.mkdir(exist_ok=True)
    answers = folder / "answers.json"
    known = {r.content.hex(): ANSWERS[r.positions[0]].tobytes().hex() for r in IMAGES}
    answers.write_text(json.dumps(known))
    head = HEAD.format(name=name, answers=answers, honest=honest, requirements=requirements)
    file = folder / f"{name}.py"
    file.write_text(f'"""A peer."""\n\n{head}{server}')
    return file
