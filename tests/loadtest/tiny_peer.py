"""A peer that needs nothing but Python and knows the golden images of the tiny bundle by heart."""

import json
from pathlib import Path

from loadtest.peers.forms import FORMS, Golden
from tests.tiny import SERVED_BUNDLES

BUNDLE = SERVED_BUNDLES / "cnn"
GOLDEN = Golden(BUNDLE)
IMAGES = GOLDEN.requests("peer", FORMS["pixels"], "/digits")

HEAD = """# /// script
# dependencies = [{requirements}]
#
# [[tool.peer]]
# name = "{name}"
# settings = "as it comes"
# form = "pixels"
# path = "/digits"
# command = ["{{file}}", "{{port}}"]
# environment = {{ ANSWERS = "{answers}", HONEST = "{honest}" }}
# documentation = "https://docs.python.org/3/library/http.server.html"
# ///
"""
# Knows the golden images' digits by heart; after so many answers it says 1 more.
SERVER = """
import http.server, json, os, struct, sys
answers, honest = json.loads(open(os.environ["ANSWERS"]).read()), int(os.environ["HONEST"])

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version, wbufsize, given = "HTTP/1.1", -1, 0

    def do_POST(self):
        pixels = self.rfile.read(int(self.headers["content-length"]))
        wrong = Handler.given >= honest
        Handler.given += 1
        best = (answers[pixels.hex()] + wrong) % 10
        body = struct.pack("10f", *(float(i == best) for i in range(10)))
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
    """A peer's file; it needs nothing but Python."""
    folder.mkdir(exist_ok=True)
    answers = folder / "answers.json"
    answers.write_text(json.dumps({r.body.hex(): int(r.labels[0]) for r in IMAGES}))
    head = HEAD.format(name=name, answers=answers, honest=honest, requirements=requirements)
    file = folder / f"{name}.py"
    file.write_text(f'"""A peer."""\n\n{head}{server}')
    return file
