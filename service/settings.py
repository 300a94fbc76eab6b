"""All settings of the service: environment variables ``INFERENCE_NAME``, with defaults below.

The earlier names (``DIGITS_NAME``) work for one more release; ``list_old_names`` finds those that
are set, so that the service can warn about them.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, model_validator

PREFIX, OLD_PREFIX = "INFERENCE_", "DIGITS_"
ROOT = Path(__file__).resolve().parent.parent
# Fields whose name changed with the prefix.
OLD_FIELDS = {
    "max_batch_samples": "max_batch_images",
    "max_queue_samples": "max_queue_images",
    "max_request_samples": "max_request_images",
}


class SettingsError(ValueError):
    """An environment variable cannot be used; the message names it."""


class Limits(NamedTuple):
    """Limits of one request: samples, and the nesting depth of JSON lists and objects."""

    samples: int
    json_depth: int = 32


class Settings(BaseModel):
    """All settings; each field is the environment variable INFERENCE_ + its name in capitals."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    bundles: Path = Field(
        ROOT / "artifacts" / "bundles",
        description="folder of the bundles; the default is next to the code, also in a Bento",
    )
    signing_key: Path | None = Field(
        None,
        description="PEM file of a public key; only bundles signed with its private key are served",
    )
    default_model: str | None = Field(
        None, description="model for requests that name none; otherwise the first by name"
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="auto: CUDA if the driver reports a device, otherwise the CPU"
    )
    variant: Literal["onnx", "onnx-fp16", "onnx-int8", "torchscript", "torchscript-frozen"] = Field(
        "onnx", description="which model file of the bundle is served; onnx is the most exact"
    )
    tf32: bool = Field(
        False, description="on CUDA, multiply in TF32, with 10 bits of mantissa: faster, less exact"
    )
    cuda_graphs: bool = Field(
        True, description="on CUDA, replay the model's kernels as a CUDA graph"
    )
    threads: Literal["auto"] | Annotated[int, Field(ge=0, le=1024)] = Field(
        "auto",
        description="intra-op threads on the CPU; 0: all cores; auto: 2 if each worker has two "
        "cores, otherwise 1",
    )
    engine: Literal["auto", "loop", "thread"] = Field(
        "auto",
        description="where batches run; auto: short ones in the event loop, long ones in a thread",
    )
    fast_path: bool = Field(
        True, description="answer plain inference requests without ASGI and BentoML's middleware"
    )
    workers: int = Field(1, ge=1, le=256, description="worker processes")
    max_batch_samples: int = Field(
        64, ge=1, le=65_536, description="largest number of samples in one batch"
    )
    batch_wait_ms: float = Field(
        0, ge=0, le=1000, description="milliseconds that an idle engine waits for a fuller batch"
    )
    max_queue_samples: int = Field(
        512,
        ge=1,
        description="largest number of queued samples per model; further requests get 429",
    )
    max_request_samples: int = Field(
        512, ge=1, description="largest number of samples in one request"
    )
    max_body_bytes: int = Field(8 * 2**20, ge=1024, description="largest request body, in bytes")
    max_image_pixels: int = Field(
        16_000_000, ge=784, description="largest uploaded image, in pixels (width x height)"
    )
    max_json_depth: int = Field(
        32, ge=8, le=500, description="largest nesting depth of JSON lists and objects"
    )
    grpc_port: int | None = Field(
        None,
        ge=1,
        le=65_535,
        description="port of the Open Inference Protocol over gRPC; if unset, gRPC is off",
    )
    grpc_host: str = Field(
        "127.0.0.1",
        min_length=1,
        description="address that gRPC listens on; 0.0.0.0: all interfaces",
    )
    max_connections: int = Field(
        4096,
        ge=1,
        description="largest number of open connections per worker; further ones get 503",
    )
    timeout_s: float = Field(
        10, gt=0, description="seconds within which a request is answered; after that it gets 504"
    )
    golden_check_s: float = Field(
        60, gt=0, description="seconds between checks of golden samples during operation"
    )
    drain_s: float = Field(
        2, ge=0, description="seconds from SIGTERM, when readiness ends, until the server stops"
    )
    slow_client_s: float = Field(
        20, gt=0, description="seconds that a client may take to send a request or read an answer"
    )
    answer_headers: bool = Field(
        True, description="send the model, batch size and timing in the response headers"
    )
    access_log_share: float = Field(
        0, ge=0, le=1, description="share of the requests that are written to the access log"
    )
    log_format: Literal["text", "json"] = Field(
        "text", description="format of log lines: BentoML's text, or one JSON object each"
    )
    trace_share: float = Field(0, ge=0, le=1, description="share of the requests that are traced")
    trace_endpoint: str = Field(
        "http://localhost:4318/v1/traces",
        description="URL that traces are sent to, as OTLP over HTTP",
    )
    api_key: SecretStr | None = Field(
        None,
        min_length=16,
        description="required for everything except health checks and the web page (Authorization: "
        "Bearer, X-Api-Key)",
    )

    @property
    def limits(self) -> Limits:
        """The limits of one request."""
        return Limits(self.max_request_samples, self.max_json_depth)

    @model_validator(mode="after")
    def _queue_holds_a_request(self) -> Self:
        if self.max_request_samples > self.max_queue_samples:
            raise ValueError(
                f"{PREFIX}MAX_QUEUE_SAMPLES={self.max_queue_samples} must be at least "
                f"{PREFIX}MAX_REQUEST_SAMPLES={self.max_request_samples}, or a request of that "
                "size never fits into the queue"
            )
        return self


def old_name(field: str) -> str:
    """Return the environment variable that set this field before this release."""
    return f"{OLD_PREFIX}{OLD_FIELDS.get(field, field).upper()}"


def list_old_names(environment: Mapping[str, str] = os.environ) -> list[str]:
    """Return the old names of variables that are set and not empty."""
    return [name for name in map(old_name, Settings.model_fields) if environment.get(name)]


def read_settings(environment: Mapping[str, str] = os.environ) -> Settings:
    """Read the settings of this process.

    Raises:
        SettingsError: A variable cannot be used; the message names it and says what was expected.
    """
    values: dict[str, str] = {}
    variables: dict[str, str] = {}
    for field in Settings.model_fields:
        new, old = f"{PREFIX}{field.upper()}", old_name(field)
        is_old = bool(environment.get(old))
        if new in environment and is_old:
            raise SettingsError(f"{old} is the old name of {new}, and both are set; set only {new}")
        if new in environment or is_old:
            variables[field] = old if is_old else new
            values[field] = environment[variables[field]]
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        raise SettingsError("; ".join(_describe(error, variables))) from error


def _describe(error: ValidationError, variables: Mapping[str, str]) -> list[str]:
    """Describe each problem with its variable and value; the value of a secret is omitted."""
    described = []
    for problem in error.errors():
        words = problem["msg"].removeprefix("Value error, ")
        if problem["loc"]:
            field = str(problem["loc"][0])
            given = "" if field == "api_key" else f"={problem['input']!r}"
            words = f"{variables[field]}{given}: {words}"
        described.append(words)
    return described
