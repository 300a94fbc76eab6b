"""Bad requests of the Open Inference Protocol: shapes, datatypes, values, blobs and lengths."""

from typing import Any

from tests.service.transport.bad.rows import IMAGE, PLACE, Row, chunked, dumped, request

URL = "/v2/models/cnn/infer"
LENGTH = "inference-header-content-length"
RAW = bytes(784)
ZEROS = [0] * 784
PROTOCOL = "Open Inference Protocol"
ABSENT = "absent"


def _tensor(**changes: Any) -> dict[str, Any]:
    tensor = {"name": "images", "shape": [1, 28, 28], "datatype": "UINT8", "data": ZEROS}
    return {key: value for key, value in (tensor | changes).items() if value != ABSENT}


def _blob(size: object, **changes: Any) -> dict[str, Any]:
    return _tensor(data=ABSENT, parameters={"binary_data_size": size}, **changes)


def _body(name: str, body: bytes, *named: str, status: int = 400) -> Row:
    return Row(f"infer: {name}", request("POST", URL, body), (status,), named)


def _infer(
    name: str, tensor: object, *named: str, status: int = 400, further: dict[str, Any] | None = None
) -> Row:
    return _body(name, dumped({"inputs": [tensor], **(further or {})}), *named, status=status)


def _asked(name: str, further: dict[str, Any], *named: str, status: int = 400) -> Row:
    return _infer(name, _tensor(), *named, status=status, further=further)


def _binary(
    name: str, tensor: dict[str, Any], blob: bytes, *named: str, status: int = 400, off: int = 0
) -> Row:
    text = dumped({"inputs": [tensor]})
    header = f"{LENGTH}: {len(text) + off}"
    return Row(f"infer binary: {name}", request("POST", URL, text + blob, header), (status,), named)


def _shape(shape: object, *named: str, status: int = 400) -> Row:
    return _infer(f"shape {str(shape)[:40]}", _tensor(shape=shape), *named, status=status)


def _literal(literal: str, *named: str, field: str = "data") -> Row:
    values = [PLACE, 28, 28] if field == "shape" else [PLACE, *ZEROS[1:]]
    text = dumped({"inputs": [_tensor(**{field: values})]})
    body = text.replace(b"%d" % PLACE, literal.encode())
    return _body(f"{field} {literal[:30]}", body, *named)


def _lying(length: str | bytes, *named: str, body: bytes = RAW, status: int = 400) -> Row:
    given = length if isinstance(length, bytes) else length.encode()
    sent = request("POST", URL, body, LENGTH.encode() + b": " + given)
    name = f"length {given[:20].decode('latin-1')!a} of {len(body)} bytes"
    return Row(f"infer: {name}", sent, (status,), named)


WANTED = r"\[N, 28, 28\]"
SHAPES = [
    _shape([2**63, 28, 28], "9,223,372,036,854,775,808", "at most 100", status=413),
    _shape([2**64 + 1, 28, 28], "18,446,744,073,709,551,617", "at most 100", status=413),
    _shape([10**4000, 28, 28], "at most 100", status=413),
    _shape([101, 28, 28], "101 samples", "at most 100", status=413),
    _shape([1, 2**63, 28], "9223372036854775808", WANTED),
    _shape([-(2**63), 28, 28], "-9223372036854775808", WANTED),
    _shape([-1, 28, 28], r"\[-1, 28, 28\]", WANTED),
    _shape([0, 28, 28], r"\[0, 28, 28\]", WANTED),
    _shape([1, 28, -28], r"\[1, 28, -28\]", WANTED),
    _shape([2, 392], r"\[2, 392\]", WANTED),
    _shape([2, 2, 392], r"\[2, 2, 392\]", WANTED),
    _shape([784], r"\[784\]", WANTED),
    _shape([1, 1, 28, 28], r"\[1, 1, 28, 28\]", WANTED),
    _shape([1] * 1000, r"1,?000|\.\.\.|\u2026", WANTED),
    _shape([], r"\[\]", WANTED),
    _shape(None, "shape", "list"),
    _shape(ABSENT, "shape", "required|missing"),
    _shape("1,28,28", "shape", "list"),
    _shape([1.0, 28, 28], "shape", "integer"),
    _shape(["1", 28, 28], "shape", "integer"),
    _shape([True, 28, 28], "shape", "integer"),
    _shape([[1], 28, 28], "shape", "integer"),
    _literal("1e400", "shape", "integer", field="shape"),
    _literal("1" * 5000, "number", field="shape"),
    _infer("shape for two images", _tensor(shape=[2, 28, 28]), "784 values", "needs 1568"),
]
DATATYPES = [
    _infer(f"datatype {given!r}", _tensor(datatype=given), repr(given), "UINT8")
    for given in ("FP32", "INT8", "BOOL", "BYTES", "uint8", "UINT8 ", "UINT7", "")
]
DATATYPES += [
    _infer("datatype a number", _tensor(datatype=7), "datatype", "string"),
    _infer("datatype missing", _tensor(datatype=ABSENT), "datatype", "required|missing"),
    _infer("datatype of 5,000 letters", _tensor(datatype="x" * 5000), "xxx", "UINT8"),
]
OUTSIDE = "0 to 255"
VALUES = [
    _literal("256", "256", OUTSIDE),
    _literal("-1", r"-1\b", OUTSIDE),
    _literal("18446744073709551616", "18446744073709551616|far out", OUTSIDE),
    _literal("0.5", "0.5|fraction|float", "integers"),
    _literal("1.0", "1.0|fraction|float", "integers"),
    _literal("1e400", "integers"),
    _literal("NaN", "NaN", "not JSON"),
    _literal("Infinity", "Infinity", "not JSON"),
    _literal("-Infinity", "-Infinity", "not JSON"),
    _literal("1" * 5000, "number"),
    _literal("null", "null", "integers"),
    _literal("true", "true|bool", "integers"),
    _literal('"7"', "string", "integers"),
    _literal("{}", "object", "integers"),
    _infer("data empty", _tensor(data=[]), "0 values", "784"),
    _infer("data too short", _tensor(data=ZEROS[1:]), "783 values", "784"),
    _infer("data too long", _tensor(data=[0, *ZEROS]), "785 values", "784"),
    _infer("data missing", _tensor(data=ABSENT), "neither data nor", "binary_data_size"),
    _infer("data given as null", _tensor(data=None), "neither data nor", "binary_data_size"),
    _infer("data base64", _tensor(data="AAAA"), "data", "list"),
    _infer("data ragged", _tensor(data=[[*IMAGE[1:], [0] * 27]]), "nested", "1, 28, 28"),
    _infer("data 2x392", _tensor(data=[[0] * 392] * 2), "nested", "1, 28, 28"),
    _infer("data a level short", _tensor(data=IMAGE), "nested", "1, 28, 28"),
    _infer("data a level deep", _tensor(data=[[[[0]] * 28] * 28]), "list|nested"),
    _infer("data half nested", _tensor(data=[[*IMAGE[1:], 0]]), "nested", "1, 28, 28"),
    _infer("shared memory", _tensor(data=ABSENT, parameters={"shared_memory_region": "r"}), "data"),
]
REQUESTS = [
    _body("empty", b"", "empty", PROTOCOL),
    _body("null", b"null", "object|null", PROTOCOL),
    _body("a list", dumped([_tensor()]), "object|list", PROTOCOL),
    _body("inputs missing", b"{}", "inputs", "required|missing"),
    _body("inputs null", b'{"inputs":null}', "inputs", "list"),
    _body("inputs an object", dumped({"inputs": _tensor()}), "inputs", "list"),
    _body("inputs empty", b'{"inputs":[]}', "'images' is missing"),
    _body("an input is a number", b'{"inputs":[1]}', "inputs.0", "object|number"),
    _body("an input is a list", dumped({"inputs": [[_tensor()]]}), "inputs.0", "object|list"),
    _infer("input unknown", _tensor(name="image"), "'image' is not known", "images"),
    _infer("input without a name", _tensor(name=ABSENT), "name", "required|missing"),
    _infer("input name a number", _tensor(name=7), "name", "string"),
    _infer("input name half a character", _tensor(name="\ud800"), "ud800", "images"),
    _infer("input name of 5,000 letters", _tensor(name="a" * 5000), "aaa", "images"),
    _body("input twice", dumped({"inputs": [_tensor()] * 2}), "'images' is given twice"),
    _asked("output unknown", {"outputs": [{"name": "labels"}]}, "'labels'", "logits"),
    _asked("output twice", {"outputs": [{"name": "logits"}] * 2}, "'logits'", "twice"),
    _asked("output of 5,000 letters", {"outputs": [{"name": "a" * 5000}]}, "aaa", "logits"),
    _asked("output a string", {"outputs": ["logits"]}, "outputs.0", "object|string"),
    _asked("output without a name", {"outputs": [{}]}, "outputs.0.name", "required|missing"),
    _asked("outputs an object", {"outputs": {"name": "logits"}}, "outputs", "list"),
    _asked("outputs empty", {"outputs": []}, "outputs", "empty|none|least"),
    _asked("id a number", {"id": 7}, "id", "string"),
    _asked("id true", {"id": True}, "id", "string"),
    _asked("id null", {"id": None}, '"outputs"', status=200),
    _asked("id half a character", {"id": "\ud800"}, r'"id":"\\ud800"', status=200),
    _asked("parameters a list", {"parameters": []}, "parameters", "object|list"),
    _asked("binary_data_output a string", {"parameters": {"binary_data_output": "yes"}}, "binary"),
    _asked("binary_data_output 1", {"parameters": {"binary_data_output": 1}}, "binary_data_output"),
    _asked(
        "binary_data a string",
        {"outputs": [{"name": "logits", "parameters": {"binary_data": "yes"}}]},
        "binary_data",
        "true or false|boolean",
    ),
    _asked(
        "an output in shared memory",
        {"outputs": [{"name": "logits", "parameters": {"shared_memory_region": "r"}}]},
        "shared_memory",
    ),
    _infer("tensor parameters a string", _tensor(parameters="x"), "parameters", "object|string"),
    _body("1,000 lists deep", b"[" * 1000 + b"]" * 1000, "nested"),
    _body("100,000 lists deep", b"[" * 100_000 + b"]" * 100_000, "nested"),
    _infer("id of brackets", _tensor(shape=[1]), WANTED, further={"id": "[" * 1000}),
    _body("garbage behind JSON", dumped({"inputs": [_tensor()]}) + b"x", "not JSON", "column"),
    _body("UTF-8 with BOM", b"\xef\xbb\xbf{}", "not JSON", "BOM"),
    _body("UTF-16", "{}".encode("utf-16"), "not JSON", "UTF-8"),
    _body("key twice", b'{"inputs":3,' + dumped({"inputs": [_tensor()]})[1:], "'inputs'", "twice"),
]
OK = _blob(784)
BINARY = [
    _binary("a byte too few", OK, RAW[1:], "binary_data_size 784", "783 bytes follow"),
    _binary("a byte too many", OK, RAW + b"x", "1 bytes? follow"),
    _binary("no blob", OK, b"", "binary_data_size 784", "0 bytes follow"),
    _binary("size 783", _blob(783), RAW[1:], "783", "needs 784"),
    _binary("size -1", _blob(-1), RAW, "-1", "needs 784"),
    _binary("size 0", _blob(0), b"", "0 bytes", "needs 784"),
    _binary("size 2^64", _blob(2**64), RAW, "18446744073709551616", "needs 784"),
    _binary("size a string", _blob("784"), RAW, "'784'|string", "784"),
    _binary("size true", _blob(True), RAW, "[tT]rue", "needs 784"),
    _binary("size a float", _blob(784.0), RAW, "784.0", "needs 784"),
    _binary("size a list", _blob([784]), RAW, r"\[784\]|list", "784"),
    _binary("size null", _blob(None), RAW, "binary_data_size"),
    _binary(
        "data as well", _tensor(parameters={"binary_data_size": 784}), RAW, "data", "both|as w"
    ),
    _binary("data instead", _tensor(), RAW, "784 bytes follow"),
    _binary("shape for two", _blob(784, shape=[2, 28, 28]), RAW, "784", "needs 1568"),
    _binary("shape 2^63", _blob(784, shape=[2**63, 28, 28]), RAW, "at most 100", status=413),
    _binary("FP32", _blob(3136, datatype="FP32"), RAW * 4, "'FP32'", "UINT8"),
    _binary("length a byte short", OK, RAW, "not JSON", off=-1),
    _binary("length a byte long", OK, RAW, "not JSON", off=1),
    _body("binary without the length", dumped({"inputs": [OK]}) + RAW, "not JSON"),
]
SAYS = "Inference-Header-Content-Length"
LENGTHS = [
    _lying(given, SAYS, "0 to 784")
    for given in (
        *("1000000000", "99999999999", "1" + "0" * 30, "9" * 5000, "785", "-1", "abc", "+5"),
        *("0x10", "0.0", "1e2", "1_0", "0,0", "", "\N{FULLWIDTH DIGIT ONE}", b"\xb2"),
    )
]
LENGTHS += [
    _lying("1", "not JSON"),
    _lying("784", "not JSON"),
    _lying("0" * 5000, '"model_name":"cnn"', status=200),
    _lying("0", "783 bytes", "784 for each", body=RAW[1:]),
    _lying("0", "785 bytes", "784 for each", body=RAW + b"x"),
    _lying("0", "0 bytes", "784 for each", body=b""),
    _lying("0", '"shape":\\[3,10\\]', body=RAW * 3, status=200),
    _lying("0", "101 samples", "at most 100", body=RAW * 101, status=413),
    Row(
        "infer: two lengths, 0 last",
        request("POST", URL, RAW, f"{LENGTH}: 5", f"{LENGTH}: 0"),
        (400,),
        (SAYS, "twice|two"),
    ),
    Row(
        "infer: two lengths, 0 first",
        request("POST", URL, RAW, f"{LENGTH}: 0", f"{LENGTH}: 5"),
        (400,),
        (SAYS, "twice|two"),
    ),
    Row(
        "infer: the length as a trailer",
        chunked(URL, RAW, 784)[:-2] + f"{LENGTH}: 0\r\n\r\n".encode(),
        (400,),
        ("not JSON",),
    ),
]
ROWS = [*SHAPES, *DATATYPES, *VALUES, *REQUESTS, *BINARY, *LENGTHS]
