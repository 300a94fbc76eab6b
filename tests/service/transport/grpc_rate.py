"""Compares the rates of inference over gRPC and HTTP, of this service and of Triton, by h2load.

    python -m tests.service.transport.grpc_rate artifacts/bundles/cnn

h2load (Debian: nghttp2-client) sends one golden sample per request in a closed loop, to each server
in turn, in rounds. Servers and client share the machine's cores. Each first answer is checked, and
all answers must have its length: gRPC reports an error in a response without a message. Triton runs
in the environment of ``python -m loadtest peers``.
"""

import argparse
import os
import platform
import re
import statistics
import struct
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np
from tritonclient.grpc import service_pb2

from export.bundle.golden import Golden
from export.bundle.store import Bundle
from loadtest.generator.expectations import Expectations
from loadtest.generator.payloads import Request
from loadtest.peers.peer import PEERS, ask, declared, environment, running
from loadtest.peers.run import ENVIRONMENTS
from loadtest.server import free_port, only_bundle, running_service
from service.protocol.grpc_messages import SERVICE

METHOD = f"/{SERVICE}/ModelInfer"
FRAME = struct.Struct(">BI")  # not compressed; bytes of the message
LARGEST_ERROR = 1e-5  # of the golden sample's largest value
RATE = re.compile(r"finished in \S+, ([\d.]+) req/s")
REQUESTS = re.compile(r"(\d+) succeeded, (\d+) failed, (\d+) errored")
CONTENT = re.compile(r"\((\d+)\) data")


@dataclass(frozen=True)
class Target:
    """A server that answers one request in one form.

    Attributes:
        options: h2load's options for this form.
        answer_bytes: Bytes of the answer's body.
    """

    name: str
    url: str
    body: bytes
    options: tuple[str, ...]
    answer_bytes: int


def over_http(name: str, url: str, bundle: Path, path: str | None = None) -> Target:
    """A server's HTTP form with a JSON head and binary values; its first answer is checked."""
    expectations = Expectations(bundle, 1, "infer/binary", path)
    request: Request = expectations.requests[0]
    headers, body = ask(url, request)
    complaint = expectations.complaint(request, body, headers)
    assert complaint is None, complaint
    options = ["--h1", *(f"-H{header}: {value}" for header, value in request.headers.items())]
    return Target(name, url + request.path, request.content, tuple(options), len(body))


def over_grpc(name: str, port: int, bundle: Path, model: str) -> Target:
    """A server's gRPC form with raw values; its first answer is checked."""
    opened = Bundle.open(bundle)
    golden = Golden.load(opened.path("golden"))
    request = service_pb2.ModelInferRequest(
        model_name=model,
        inputs=[
            {
                "name": spec.name,
                "datatype": spec.datatype,
                "shape": golden.inputs[spec.name][:1].shape,
            }
            for spec in opened.manifest.inputs
        ],
        raw_input_contents=[
            golden.inputs[spec.name][:1].tobytes() for spec in opened.manifest.inputs
        ],
    )
    content = request.SerializeToString()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        received: bytes = channel.unary_unary(METHOD)(content, timeout=30)
    answer = service_pb2.ModelInferResponse.FromString(received)
    for output, raw in zip(answer.outputs, answer.raw_output_contents, strict=True):
        expected = golden.fp32[output.name][0]
        error = np.abs(np.frombuffer(raw, np.float32) - expected).max() / np.abs(expected).max()
        assert error <= LARGEST_ERROR, f"{name}, {output.name}: {error}"
    return Target(
        name,
        f"http://127.0.0.1:{port}{METHOD}",
        FRAME.pack(0, len(content)) + content,
        ("-Hcontent-type: application/grpc", "-Hte: trailers"),
        FRAME.size + len(received),
    )


def measure(target: Target, connections: int, seconds: int, folder: Path) -> float:
    """The requests per second, with one request in flight on each connection."""
    body = folder / "body"
    body.write_bytes(target.body)
    command = ["h2load", "-t1", f"-c{connections}", "-m1", f"-D{seconds}", f"-d{body}"]
    ran = subprocess.run(
        [*command, *target.options, target.url], capture_output=True, text=True, check=True
    )
    found = [pattern.search(ran.stdout) for pattern in (RATE, REQUESTS, CONTENT)]
    if not all(found):
        raise ValueError(f"h2load printed no figures: {ran.stdout}{ran.stderr}")
    rate, (succeeded, failed, errored), content = (match.groups() for match in found if match)
    assert (failed, errored) == ("0", "0"), ran.stdout
    # Answers that arrive after the end are counted as bytes, but not as requests.
    surplus = int(content[0]) - int(succeeded) * target.answer_bytes
    assert 0 <= surplus <= connections * target.answer_bytes, ran.stdout
    return float(rate[0])


@contextmanager
def targets(bundle: Path, folder: Path, *, with_triton: bool) -> Iterator[list[Target]]:
    """Start the servers; the first target is this service's HTTP form."""
    model = Bundle.open(bundle).manifest.name
    with ExitStack() as stack:
        port = free_port()
        settings = {
            "INFERENCE_BUNDLES": str(only_bundle(folder, bundle)),
            "INFERENCE_DEVICE": "cpu",
            "INFERENCE_GRPC_PORT": str(port),
        }
        url = stack.enter_context(running_service(folder / "service.log", settings=settings))
        found = [
            over_http("this service, HTTP", url, bundle),
            over_grpc("this service, gRPC", port, bundle, model),
        ]
        if with_triton:
            (peer,) = declared(PEERS, ("Triton",))
            port = free_port()
            peer = peer.model_copy(
                update={"environment": peer.environment | {"GRPC_PORT": str(port)}}
            )
            python = environment(peer, ENVIRONMENTS)
            request = Expectations(bundle, 1, peer.form, peer.path).requests[0]
            started = running(peer, python, bundle, folder / "triton", request)
            url = stack.enter_context(started)
            found += [
                over_http(f"{peer.name}, HTTP", url, bundle, peer.path),
                over_grpc(f"{peer.name}, gRPC", port, bundle, "model"),
            ]
        yield found


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table of docs/benchmarks.md."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("bundle", type=Path, help="the bundle's folder")
    parser.add_argument("--connections", type=int, nargs="+", default=[8, 32])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=2, help="of each server's turn")
    parser.add_argument("--without-triton", action="store_true")
    arguments = parser.parse_args(argv)
    print(
        f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}, "
        f"grpcio {grpc.__version__}, {time.strftime('%Y-%m-%d')}"
    )
    with (
        tempfile.TemporaryDirectory() as work,
        targets(arguments.bundle, Path(work), with_triton=not arguments.without_triton) as found,
    ):
        rows = {target.name: f"| {target.name}" for target in found}
        for connections in arguments.connections:
            ratios: dict[str, list[float]] = {target.name: [] for target in found}
            for number in range(arguments.rounds):
                start = number % len(found)
                rates = {
                    target.name: measure(target, connections, arguments.seconds, Path(work))
                    for target in found[start:] + found[:start]
                }
                for name, rate in rates.items():
                    ratios[name].append(rate / rates[found[0].name])
            for name, values in ratios.items():
                middle = statistics.median(values)
                rows[name] += f" | {middle:.2f} ({min(values):.2f} to {max(values):.2f})"
    print("| |", " | ".join(map(str, arguments.connections)), "|")
    print("|---|" + "---|" * len(arguments.connections))
    print(*(f"{row} |" for row in rows.values()), sep="\n")


if __name__ == "__main__":
    main()
