"""The inference endpoints: how each decodes a request and encodes the model's outputs.

infer          POST /v2/models/MODEL[/versions/VERSION]/infer   Open Inference Protocol
infer_grpc     inference.GRPCInferenceService/ModelInfer        the same over gRPC
predict        POST /models/MODEL/predict                       named tensors, or an image file
               POST /predict                                    28x28 pixels as JSON (digits)
predict_image  POST /predict/image                              an image file (digits)
features       POST /models/MODEL/features                      feature maps of the first layer
"""

from collections.abc import Callable
from functools import lru_cache

from export.bundle.metrics import Arrays
from service.adapters.digits import IMAGES, DigitsAdapter, decode_one_image, decode_predict
from service.adapters.pictures import is_small_png
from service.adapters.tensors import TensorsAdapter
from service.core.messages import Job, Request, Target
from service.models.feature_maps import JSON_BYTES
from service.models.registry import ModelRegistry, ServedModel, encode_identity
from service.protocol.errors import InvalidInputError, ServiceError
from service.protocol.grpc_messages import encode_model_infer, parse_message, read_model_infer
from service.protocol.json_values import encode_json
from service.protocol.oip import BINARY_TYPE, decode_infer, encode_infer
from service.protocol.query import MODEL, SHOW, decode_query
from service.protocol.upload import IMAGE_TYPES, uploaded_file
from service.settings import Settings

# JSON of this size is parsed in a fraction of a millisecond; larger bodies are decoded in a thread.
LARGEST_INLINE_JSON = 65_536
# A JSON length of at most this many digits is below 100 kB.
MOST_QUICK_DIGITS = 5
UPLOAD_TYPES = {*IMAGE_TYPES, "multipart/form-data"}
Encode = Callable[[Arrays], tuple[bytes, int | None]]


class Endpoints:
    """Decodes requests into jobs, without side effects."""

    def __init__(self, models: ModelRegistry, settings: Settings) -> None:
        """Decode requests for these models, under the limits in the settings."""
        self._models, self._settings = models, settings
        self._limits = settings.limits
        self._decoders: dict[str, Callable[[Request], Job]] = {
            "infer": self._decode_infer,
            "infer_grpc": self._decode_infer_grpc,
            "predict": self._decode_predict,
            "predict_image": self._decode_predict_image,
            "features": self._decode_features,
        }

    def check_target(self, target: Target) -> None:
        """Check the model, version and query of a request before its body is read.

        Raises:
            UnknownModelError: The URL names no served model.
            NoFeatureMapsError: The model has no feature maps.
            InvalidInputError: The query is invalid.
        """
        if target.endpoint in ("infer", "features") or target.model is not None:
            model = self._models.get(target.model, target.version)
            if target.endpoint == "features":
                model.require_feature_maps()
        elif target.endpoint == "predict_image":
            self._models.get(decode_query(target.query, (MODEL, SHOW)).model)

    def is_quick(self, request: Request) -> bool:
        """Whether decoding takes a fraction of a millisecond, so that the event loop may do it."""
        if request.target.endpoint == "infer" and request.json_length is not None:
            # Raw tensors are not copied; only the JSON before them is parsed.
            return len(request.json_length) <= MOST_QUICK_DIGITS
        if _is_upload(request):
            return len(request.body) <= LARGEST_INLINE_JSON and _holds_small_png(request)
        return len(request.body) <= LARGEST_INLINE_JSON

    def decode(self, request: Request) -> Job:
        """Decode and check a request.

        Raises:
            ServiceError: The request is invalid; says what came, what was expected, what to do.
        """
        return self._decoders[request.target.endpoint](request)

    def _decode_infer(self, request: Request) -> Job:
        target = request.target
        model = self._choose(request, target.model, target.version)
        asked = decode_infer(request.body, request.json_length, model.manifest, self._limits)
        return self._make_job(
            model, asked.inputs, lambda outputs: encode_infer(outputs, asked, model.manifest)
        )

    def _decode_infer_grpc(self, request: Request) -> Job:
        message = parse_message("ModelInferRequest", request.body)
        model = self._choose(request, message.model_name, message.model_version or None)
        asked = read_model_infer(message, model.manifest, self._limits)

        def encode(outputs: Arrays) -> tuple[bytes, None]:
            return encode_model_infer(outputs, asked, model.manifest), None

        return self._make_job(model, asked.inputs, encode)

    def _decode_predict(self, request: Request) -> Job:
        if request.target.model is not None:
            return self._decode_named(request)
        asked = decode_predict(request.body, self._limits)
        query = decode_query(request.target.query, (MODEL,))
        name = self._models.choose_name(query.model, asked.model)
        model = self._choose(request, name)
        return self._make_predictions_job(model, {IMAGES: asked.images})

    def _decode_predict_image(self, request: Request) -> Job:
        # An unknown model is refused before any pixel is decoded.
        query = decode_query(request.target.query, (MODEL, SHOW))
        model = self._choose(request, query.model)
        inputs = self._decode_upload(request, _require_digits(model))
        return self._make_predictions_job(model, inputs, show=query.show)

    def _decode_named(self, request: Request) -> Job:
        model = self._choose(request, request.target.model)
        adapter = model.adapter
        decode_query(request.target.query, ())
        if _is_upload(request):
            inputs = self._decode_upload(request, adapter)
        else:
            inputs = adapter.decode_json(request.body, self._limits)
        return self._make_json_job(model, inputs, lambda outputs: adapter.encode(outputs, inputs))

    def _decode_upload(self, request: Request, adapter: TensorsAdapter) -> Arrays:
        content = uploaded_file(request.body, request.content_type)
        return adapter.decode_image(content, self._settings.max_image_pixels)

    def _decode_features(self, request: Request) -> Job:
        model = self._models.get(request.target.model)
        maps = model.require_feature_maps()
        inputs = {IMAGES: decode_one_image(request.body, self._limits)}
        # Feature maps come from the stable version's fp32 file, whichever variant serves inference.
        lines = b""
        if self._settings.answer_headers:
            lines = encode_identity(model.manifest, maps.variant, maps.provider)

        def encode(outputs: Arrays) -> tuple[bytes, None]:
            return outputs[JSON_BYTES][0], None

        manifest = model.manifest
        return Job(manifest.name, manifest.version, maps.batcher, inputs, 1, encode, lines)

    def _make_predictions_job(
        self, model: ServedModel, inputs: Arrays, *, show: bool = False
    ) -> Job:
        adapter = _require_digits(model)
        return self._make_json_job(
            model, inputs, lambda outputs: adapter.encode_predictions(outputs, inputs, show=show)
        )

    def _make_json_job(
        self, model: ServedModel, inputs: Arrays, describe: Callable[[Arrays], dict[str, object]]
    ) -> Job:
        def encode(outputs: Arrays) -> tuple[bytes, None]:
            return encode_json({**model.identity, **describe(outputs)}), None

        return self._make_job(model, inputs, encode)

    def _make_job(self, model: ServedModel, inputs: Arrays, encode: Encode) -> Job:
        manifest, samples = model.manifest, len(next(iter(inputs.values())))
        lines = model.identity_lines
        return Job(manifest.name, manifest.version, model.batcher, inputs, samples, encode, lines)

    def _choose(
        self, request: Request, name: str | None, version: str | None = None
    ) -> ServedModel:
        """Return the model that answers a request: the named version, the stable one or a canary.

        Raises:
            UnknownModelError: There is no such model, or no such version of it.
        """
        if version is not None or request.is_stable_only:
            return self._models.get(name, version)
        return self._models.route(name, request.request_id)


def _require_digits(model: ServedModel) -> DigitsAdapter:
    if not isinstance(model.adapter, DigitsAdapter):
        name = model.manifest.name
        raise InvalidInputError(
            f"{name} does not recognize digits; send its requests to /v2/models/{name}/infer or "
            f"/models/{name}/predict"
        )
    return model.adapter


def _is_upload(request: Request) -> bool:
    """Whether the body is an image file, alone or in a form, and not JSON."""
    if request.target.endpoint == "predict_image":
        return True
    media_type = request.content_type.split(";")[0].strip().lower()
    is_named = request.target.endpoint == "predict" and request.target.model is not None
    return is_named and media_type in UPLOAD_TYPES


def _holds_small_png(request: Request) -> bool:
    try:
        return is_small_png(uploaded_file(request.body, request.content_type))
    except ServiceError:
        return True  # decoding finds the same fault at once and describes it


@lru_cache(maxsize=1024)
def answer_lines(identity_lines: bytes, length: int, json_length: int | None) -> bytes:
    """Return the header lines for a body of ``length`` bytes, without the timing."""
    if json_length is None:
        kind = b"content-type: application/json\r\n"
    else:
        kind = b"content-type: %b\r\ninference-header-content-length: %d\r\n" % (
            BINARY_TYPE.encode(),
            json_length,
        )
    return kind + b"content-length: %d\r\n" % length + identity_lines
