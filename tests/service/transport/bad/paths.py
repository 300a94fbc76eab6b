"""Wrong methods and unknown paths."""

import json

from tests.service.transport.bad.rows import GOOD, Row, request
from tests.tiny import SERVED_BUNDLES

VERSION = json.loads((SERVED_BUNDLES / "cnn" / "manifest.json").read_text())["version"]
CNN = "/v2/models/cnn"
READ = [
    *("/models", "/docs.json", "/metrics", "/healthz/deep", "/v2", "/v2/health/live"),
    *("/v2/health/ready", CNN, f"{CNN}/ready", f"{CNN}/versions/{VERSION}"),
]
ASKED = ["/predict", "/predict/image", f"{CNN}/infer", f"{CNN}/versions/{VERSION}/infer"]
BENTOML = ["/", "/livez", "/readyz", "/healthz", "/schema.json"]
METHODS = ["PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"]


def _method(method: str, path: str, *named: str) -> Row:
    name = f"{method} {path.replace(VERSION, 'VERSION')}"
    return Row(name, request(method, path), (405,), ("Method Not Allowed", *named))


def _path(
    target: str | bytes, *named: str, status: int = 404, method: str = "GET", parser: bool = False
) -> Row:
    shown = target if isinstance(target, str) else ascii(target)
    body = GOOD if method == "POST" else None
    name = f"{method} {shown[:50]}{'...' if len(shown) > 50 else ''}"
    return Row(name, request(method, target, body), (status,), named, parser)


WRONG_METHODS = [
    *(_method(method, path, "GET") for path in READ for method in ("POST", *METHODS)),
    *(_method(method, path, "POST") for path in ASKED for method in ("GET", "HEAD", *METHODS)),
    *(_method(method, path) for path in BENTOML for method in ("POST", *METHODS)),
    Row("an unknown method", request("FETCH", "/models"), (400, 405), parser=True),
    Row("a method in small letters", request("get", "/models"), (400, 405), parser=True),
    Row("CONNECT", request("CONNECT", "127.0.0.1:22"), (400, 405), parser=True),
    Row(
        "a method in a header",
        request("GET", "/predict", None, "x-http-method-override: POST"),
        (405,),
        ("POST",),
    ),
]
NOBODYS = [
    *("/nowhere", "/MODELS", "/v1/models", "/models/cnn", "/predict/cnn", "/models;x", "/.env"),
    *("/../../etc/passwd", "/static_content/../../../etc/passwd", "//predict", "//etc/passwd"),
    *("/static_content/%2e%2e/%2e%2e/etc/passwd", "/static_content/..%2f..%2fetc%2fpasswd"),
    *("/predict//image", "/predict%00", "/%00", "/%0d%0ax-evil:%20y", "/%ff", "/%F0%9F%98%80"),
    *("/v2/models/..%2f..%2fetc%2fpasswd", f"{CNN}/versions", f"{CNN}//infer", "/v2/models//infer"),
    *(f"{CNN}/config", "/v2/repository/index", "/v2/health", "/" + "a" * 10_000, "/a" * 5_000),
    *("/<script>alert(1)</script>", "/v2/logging", "/invocations", "/ping"),
]
UNKNOWN = [
    *(_path(path, "Not Found: GET ") for path in NOBODYS),
    _path("/nowhere", "Not Found", "/nowhere", method="POST"),
    _path("/nowhere", method="HEAD"),
    _path("/v2/health/dead", "Not Found", "dead"),
    _path("/v2/models/CNN", "'CNN'", "cnn, mlp"),
    _path("/v2/models/rnn/ready", "'rnn'", "cnn, mlp"),
    _path("/v2/models/rnn/infer", "'rnn'", "cnn, mlp", method="POST"),
    _path("/v2/models/%2e%2e", r"'\.\.'", "cnn, mlp"),
    _path("/v2/models/cnn%00", r"cnn\\x00", "cnn, mlp"),
    _path("/v2/models/cnn%20", "'cnn '", "cnn, mlp"),
    _path("/v2/models/%D0%BC", "\N{CYRILLIC SMALL LETTER EM}|043c", "cnn, mlp"),
    _path("/v2/models/%ff", "cnn, mlp"),
    _path("/v2/models/" + "a" * 5000, "aaa", "cnn, mlp"),
    _path(f"{CNN}/versions/1", "'1'", VERSION),
    _path(f"{CNN}/versions/latest/ready", "'latest'", VERSION),
    _path(f"{CNN}/versions/{'9' * 5000}/infer", "999", VERSION, method="POST"),
    _path(f"/v2/models/mlp/versions/{VERSION}/infer", VERSION, "mlp", method="POST"),
    _path("/predict/image?model=rnn", "'rnn'", "cnn, mlp", method="POST"),
    _path(b"/\xff", status=400, parser=True),
    _path("/\N{LATIN SMALL LETTER E WITH ACUTE}", status=400, parser=True),
    _path("models", status=400, parser=True),
    _path("?model=cnn", status=400, parser=True),
    _path("http://", status=400, parser=True),
    _path("/mod els", status=400, parser=True),
    _path("/models\0", status=400, parser=True),
    _path("http://elsewhere/v2", '"name"', status=200),
    Row("GET * ", request("OPTIONS", "*"), (404,), ("Not Found",)),
    Row("a slash too many", request("GET", "/models/"), (307, 404)),
]
ROWS = [*WRONG_METHODS, *UNKNOWN]
