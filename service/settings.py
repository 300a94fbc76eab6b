"""All settings of the service. Precedence: environment variable (DIGITS_...), then the default."""

from pathlib import Path
from typing import Literal, NamedTuple, Self

from pydantic import Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

PREFIX = "DIGITS_"
ROOT = Path(__file__).resolve().parent.parent


class SettingsError(ValueError):
    """An environment variable holds something that cannot be used; names it."""


class Limits(NamedTuple):
    """What one request may hold: samples, and JSON's lists and objects within each other."""

    samples: int
    json_depth: int = 32


class Settings(BaseSettings):
    """What can be set; each field is the environment variable DIGITS_ + its name in capitals."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, frozen=True, extra="ignore", allow_inf_nan=False
    )

    bundles: Path = Field(
        ROOT / "artifacts" / "bundles",
        description="a folder of bundles; the default lies beside the code, in a Bento too",
    )
    default_model: str | None = Field(
        None, description="answers requests that name no model; else the first by name"
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="auto: CUDA where the driver knows a device, else the CPU"
    )
    variant: Literal["onnx", "onnx-fp16", "onnx-int8", "torchscript", "torchscript-frozen"] = Field(
        "onnx", description="the bundle's file that is served; the default is the most exact"
    )
    tf32: bool = Field(False, description="on CUDA, products of 10 bits of mantissa; faster")
    cuda_graphs: bool = Field(True, description="on CUDA, replay recorded kernels")
    threads: int = Field(
        1, ge=0, le=1024, description="within an operator on the CPU; 0: all cores"
    )
    engine: Literal["auto", "loop", "thread"] = Field(
        "auto", description="where batches run; auto: in the event loop if they take up to 5 ms"
    )
    fast_path: bool = Field(
        True, description="answer plain inference requests beneath BentoML's middleware"
    )
    workers: int = Field(1, ge=1, le=256, description="processes")
    max_batch_images: int = Field(
        64, ge=1, le=65_536, description="images that run as one batch at most"
    )
    batch_wait_ms: float = Field(
        0, ge=0, le=1000, description="milliseconds that an idle engine waits for a fuller batch"
    )
    max_queue_images: int = Field(
        512, ge=1, description="images that wait per model; more are refused with 429"
    )
    max_request_images: int = Field(512, ge=1, description="images in one request")
    max_body_bytes: int = Field(8 * 2**20, ge=1024, description="bytes of a request's body")
    max_image_pixels: int = Field(16_000_000, ge=784, description="width x height of an upload")
    max_json_depth: int = Field(
        32, ge=8, le=500, description="JSON's lists and objects within each other"
    )
    max_connections: int = Field(
        4096, ge=1, description="open connections of a worker; further ones get 503"
    )
    timeout_s: float = Field(10, gt=0, description="seconds until a request is given up, with 504")
    golden_check_s: float = Field(
        60, gt=0, description="seconds between checks of golden samples beside the traffic"
    )
    drain_s: float = Field(
        2, ge=0, description="seconds from SIGTERM, when readiness ends, to the server's end"
    )
    slow_client_s: float = Field(
        20, gt=0, description="seconds that a client may take to send a request"
    )
    answer_headers: bool = Field(
        True, description="say in an answer's headers who gave it, in which batch, how fast"
    )
    access_log_share: float = Field(
        0, ge=0, le=1, description="share of the requests that get a line in the log"
    )
    log_format: Literal["text", "json"] = Field(
        "text", description="of the log's lines: BentoML's, or a JSON object each"
    )
    trace_share: float = Field(0, ge=0, le=1, description="share of the requests that are traced")
    trace_endpoint: str = Field(
        "http://localhost:4318/v1/traces", description="where traces go, by OTLP over HTTP"
    )
    api_key: SecretStr | None = Field(
        None,
        min_length=16,
        description="asked of every request but health checks (Authorization: Bearer, X-Api-Key)",
    )

    @property
    def limits(self) -> Limits:
        """Of one request."""
        return Limits(self.max_request_images, self.max_json_depth)

    @model_validator(mode="after")
    def _queue_holds_a_request(self) -> Self:
        if self.max_request_images > self.max_queue_images:
            raise ValueError(
                f"{PREFIX}MAX_QUEUE_IMAGES={self.max_queue_images} must be at least "
                f"{PREFIX}MAX_REQUEST_IMAGES={self.max_request_images}, or such a request never "
                "fits"
            )
        return self


def read_settings() -> Settings:
    """The settings of this process.

    Raises:
        SettingsError: A variable cannot be used; the message names it and says what was expected.
    """
    try:
        return Settings()
    except ValidationError as error:
        problems = []
        for problem in error.errors():
            name = "_".join(map(str, problem["loc"])).upper()
            given = "" if name == "API_KEY" else f"={problem['input']!r}"  # no secret in a log
            words = problem["msg"].removeprefix("Value error, ")
            problems.append(f"{PREFIX}{name}{given}: {words}" if name else words)
        raise SettingsError("; ".join(problems)) from error
