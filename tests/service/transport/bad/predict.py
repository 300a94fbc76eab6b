"""Bad requests to ``/predict``."""

from tests.service.transport.bad.rows import GOOD, IMAGE, LIMIT_BYTES, PLACE, Row, dumped, request

EXPECTED = "28x28 list of integers 0 to 255"


def _predict(
    name: str, body: bytes, *named: str, status: int = 400, query: str = "", header: str = "x: y"
) -> Row:
    sent = request("POST", f"/predict{query}", body, header)
    return Row(f"predict: {name}", sent, (status,), named)


def _images(name: str, images: object, *named: str, status: int = 400) -> Row:
    return _predict(name, dumped({"images": images}), *named, status=status)


def _pixel(literal: str, *named: str) -> Row:
    images = [list(row) for row in IMAGE]
    images[3][5] = PLACE
    body = dumped({"images": images}).replace(b"%d" % PLACE, literal.encode())
    return _predict(f"pixel {literal[:30]}", body, *named)


def _model(name: str, model: object, *named: str, status: int = 404) -> Row:
    return _predict(name, dumped({"images": IMAGE, "model": model}), *named, status=status)


WIDE = "\N{FULLWIDTH LATIN SMALL LETTER C}nn"
CURL = "content-type: application/x-www-form-urlencoded"
WHERE = r"images\[3\]\[5\]"

PIXELS = [
    _pixel("256", WHERE, "256", "0 to 255"),
    _pixel("-1", WHERE, "-1", "0 to 255"),
    _pixel("0.5", WHERE, "0.5", "fraction"),
    _pixel("1.0", WHERE, "1.0", "integers"),
    _pixel("1e400", WHERE, "integers"),
    _pixel("-1e400", WHERE, "integers"),
    _pixel("9223372036854775808", WHERE, "out of range"),
    _pixel("18446744073709551616", WHERE, "out of range"),
    _pixel("1" * 5000, "number", "too many digits"),
    _pixel("-" + "1" * 5000, "number", "too many digits"),
    _pixel("NaN", "NaN", "not JSON"),
    _pixel("Infinity", "Infinity", "not JSON"),
    _pixel("-Infinity", "-Infinity", "not JSON"),
    _pixel("null", WHERE, "null", "integers"),
    _pixel("true", WHERE, "true", "integers"),
    _pixel('"7"', WHERE, "string", "integers"),
    _pixel("[]", WHERE, "list", "integers"),
    _pixel("{}", WHERE, "object", "integers"),
    _pixel("01", "not JSON", "line 1, column"),
    _pixel("+1", "not JSON", "line 1, column"),
    _pixel("0x10", "not JSON", "line 1, column"),
    _pixel("1_0", "not JSON", "line 1, column"),
    _pixel("undefined", "not JSON", "line 1, column"),
]
SHAPES = [
    _images("images flat", [0] * 784, "list of length 784", EXPECTED),
    _images("images 2x392", [[0] * 392] * 2, "list of length 2", EXPECTED),
    _images("images 28x27", [[0] * 27] * 28, r"images\[0\]", "list of length 27", EXPECTED),
    _images("images 29x29", [[0] * 29] * 29, "list of length 29", EXPECTED),
    _images(
        "images ragged", [*IMAGE[1:], [0] * 27], r"images\[27\]", "list of length 27", EXPECTED
    ),
    _images("images with a channel", [[IMAGE]], r"images\[0\]", "list of length 1", EXPECTED),
    _images("images of colour", [[[0] * 3] * 28] * 28, "list of length 3", EXPECTED),
    _images("images empty", [], "empty list", EXPECTED),
    _images("images of an empty image", [[]], "list of length 1", EXPECTED),
    _images("an image and a number", [IMAGE, 0], r"images\[1\]", "number", EXPECTED),
    _images("a whole image and a cut one", [IMAGE, IMAGE[1:]], r"images\[1\]", "27", EXPECTED),
    _images("images null", None, "null", EXPECTED),
    _images("images a number", 7, "number", EXPECTED),
    _images("images base64", "AAAA", "string", EXPECTED),
    _images("images a URL", "http://127.0.0.1/7.png", "string", EXPECTED),
    _images("images an object", {"0": IMAGE}, "object", EXPECTED),
    _images("101 images", [IMAGE] * 101, "101 images", "at most 100", status=413),
]
DEEP = b'{"images":%b}'
HIDDEN = b'{"model":"' + b"]" * 100_000 + b'","images":' + b"[" * 100_000
BODIES = [
    _predict("body empty", b"", "empty", EXPECTED),
    _predict("body blank", b" \n", "not JSON", "line 2, column 1"),
    _predict("body null", b"null", "null", "object", "images"),
    _predict("body a number", b"3", "number", "object", "images"),
    _predict("body a list", GOOD[10:-1], "list", "object", "images"),
    _predict("body without images", b"{}", "images is missing", EXPECTED),
    _predict("body cut", GOOD[:-7], "not JSON", "line 1, column"),
    _predict("garbage behind JSON", GOOD + b"x", "not JSON", "line 1, column"),
    _predict("a NUL behind JSON", GOOD + b"\0", "not JSON", "line 1, column"),
    _predict("two JSON values", GOOD * 2, "not JSON", "line 1, column"),
    _predict("trailing comma", GOOD[:-1] + b",}", "not JSON", "line 1, column"),
    _predict("single quotes", b"{'images': 1}", "not JSON", "line 1, column 2"),
    _predict("a comment", b"/**/" + GOOD, "not JSON", "line 1, column 1"),
    _predict("control character", b'{"images":"\1"}', "not JSON", "line 1, column 12"),
    _predict("UTF-8 with BOM", b"\xef\xbb\xbf" + GOOD, "not JSON", "BOM"),
    _predict("UTF-16 with BOM", GOOD.decode().encode("utf-16"), "not JSON", "UTF-8"),
    _predict("UTF-16 without BOM", GOOD.decode().encode("utf-16-le"), "not JSON"),
    _predict("UTF-32", GOOD.decode().encode("utf-32"), "not JSON", "UTF-8"),
    _predict("Latin-1", '{"images":"é"}'.encode("latin-1"), "UTF-8", "byte 11"),
    _predict("a surrogate in UTF-8", b'{"images":"\xed\xa0\x80"}', "UTF-8", "byte 11"),
    _predict("a picture", b"\x89PNG\r\n\x1a\n", "UTF-8", "/predict/image"),
    _predict("a pickle", b"\x80\x04N.", "not JSON"),
    _predict("a form", b"images=1", "not JSON", header="content-type: text/plain"),
    _predict("1,000 lists deep", DEEP % (b"[" * 1000 + b"]" * 1000), "nested"),
    _predict("100,000 lists deep", DEEP % (b"[" * 100_000 + b"]" * 100_000), "nested"),
    _predict("100,000 objects deep", b'{"images":' * 90_000, "nested"),
    _predict("1,000 deep and cut", b"[" * 1000, "nested|not JSON"),
    _predict("deep behind a string of closing brackets", HIDDEN, "nested"),
    _predict("brackets in a string", dumped({"images": "[" * 1000}), "a string", EXPECTED),
    _predict("key twice", GOOD[:-1] + b"," + GOOD[1:], "'images'", "twice|duplicate"),
    _predict("key twice, first bad", b'{"images":3,' + GOOD[1:], "'images'", "twice|duplicate"),
    _predict("key twice, escaped", GOOD[:-1] + b',"im\\u0061ges":3}', "'images'", "twice|duplic"),
    _predict(
        "model twice", GOOD[:-1] + b',"model":"cnn","model":"mlp"}', "'model'", "twice|duplicate"
    ),
    _predict("exactly the limit", b" " * LIMIT_BYTES, "not JSON"),
    _predict(
        "a byte over the limit", b" " * (LIMIT_BYTES + 1), "1,000,001", "1,000,000", status=413
    ),
]
FIELDS = [
    _predict("field unknown", dumped({"images": IMAGE, "top": 1}), "'top'", "images, model"),
    _predict("field Images", dumped({"Images": IMAGE}), "'Images'", "images, model"),
    _predict("field instances", dumped({"instances": [IMAGE]}), "'instances'", "images, model"),
    _predict("field without name", dumped({"images": IMAGE, "": 1}), "''", "images, model"),
    _predict("field of 5,000 letters", dumped({"a" * 5000: 1}), "aaa", "images, model"),
    _predict("field half a character", dumped({"\ud800": 1}), "ud800", "images, model"),
    _model("model a number", 7, "model is a number", "string", status=400),
    _model("model true", True, "model is true", "string", status=400),
    _model("model a list", ["cnn"], "model is a list", "string", status=400),
    _model("model null is the default", None, '"model":"cnn"', status=200),
    _model("model empty", "", "''", "cnn, mlp"),
    _model("model unknown", "rnn", "'rnn'", "cnn, mlp"),
    _model("model CNN", "CNN", "'CNN'", "cnn, mlp"),
    _model("model with a space", " cnn", "' cnn'", "cnn, mlp"),
    _model("model with a NUL", "cnn\0", r"\\x00", "cnn, mlp"),
    _model("model in full-width letters", WIDE, f"{WIDE}|uff43", "cnn, mlp"),
    _model("model an emoji", "\N{GRINNING FACE}", "\N{GRINNING FACE}|1f600", "cnn, mlp"),
    _model("model half a character", "\ud800", "ud800", "cnn, mlp"),
    _model("model with line breaks", "a\r\nx: y", r"a\\r\\nx: y", "cnn, mlp"),
    _model("model a path", "../cnn", r"'\.\./cnn'", "cnn, mlp"),
    _model("model of 5,000 letters", "a" * 5000, "aaa", "cnn, mlp"),
    _predict("query unknown model", GOOD, "'rnn'", "cnn, mlp", status=404, query="?model=rnn"),
    _predict("query empty model", GOOD, "''", "cnn, mlp", status=404, query="?model="),
    _predict("query model NUL", GOOD, r"\\x00", "cnn, mlp", status=404, query="?model=%00"),
    _predict("query no UTF-8", GOOD, "cnn, mlp", status=404, query="?model=%ff"),
    _predict("query long", GOOD, "cnn, mlp", status=404, query="?model=" + "a" * 5000),
    _predict("query two models", GOOD, "model", "twice|two|both", query="?model=mlp&model=cnn"),
    _predict("query misspelt", GOOD, "modle", query="?modle=mlp"),
    _predict("JSON called a picture", GOOD, status=200, header="content-type: image/png"),
    _predict("JSON sent by curl -d", GOOD, status=200, header=CURL),
]
# A parser's time may grow with the square of their length; last, because later requests wait.
COSTLY = [
    _predict(
        "40,000 keys, the last one twice",
        b"{%b}" % b",".join(b'"%d":0' % min(i, 39_999) for i in range(40_001)),
        "twice|duplicate|unknown",
    ),
    _predict(
        "40,000 escaped quotes and no end", b'["' + b'\\"' * 40_000 + b"[" * 1000, "not JSON|nested"
    ),
]
ROWS = [*PIXELS, *SHAPES, *BODIES, *FIELDS]
