"""Types of every JSON body of the HTTP API; the OpenAPI document is generated from them.

Request handlers build their answers as these dictionaries, so mypy checks the code against the
published schemas. Constraints and descriptions are used only in the document: the other modules of
this package parse and check requests. Answers that hold pydantic models, such as
``ModelCard.parity``, are serialized with ``pydantic.TypeAdapter(TYPE).dump_json``.
"""

from typing import Annotated, Any, Literal, NotRequired, TypeVar

from pydantic import ConfigDict, Field, with_config
from typing_extensions import TypeAliasType, TypedDict

from export.bundle.golden import GoldenResult
from export.bundle.manifest import Datatype, FeatureMaps, GuardSummary, ParityVerdict
from export.bundle.tolerances import Device

T = TypeVar("T")
NonEmpty = Annotated[list[T], Field(min_length=1)]
Count = Annotated[int, Field(ge=0)]
Size = Annotated[int, Field(ge=1)]
Axis = Annotated[int, Field(ge=-1)]
Share = Annotated[float, Field(ge=0, le=1)]
PixelRow = Annotated[list[Annotated[int, Field(ge=0, le=255)]], Field(min_length=28, max_length=28)]
_PIXELS = "28 rows of 28 integers, from the top; 0 is background, 255 is ink; no decimal points"
Image = TypeAliasType(
    "Image",
    Annotated[list[PixelRow], Field(min_length=28, max_length=28, description=_PIXELS)],
)
Images = TypeAliasType("Images", NonEmpty[Image])
TensorValues = TypeAliasType(
    "TensorValues", Annotated[list[Any], Field(description="one level of lists for each axis")]
)


@with_config(ConfigDict(extra="forbid"))
class Closed(TypedDict):
    """Base of the objects that hold no other fields than those listed."""


class Error(Closed):
    """The body of every refusal."""

    error: Annotated[str, Field(description="what came, what was expected, what to do")]


class Health(Closed):
    """The answer of a health endpoint while the process or the model is healthy."""

    live: NotRequired[bool]
    ready: NotRequired[bool]
    name: NotRequired[Annotated[str, Field(description="name of the model")]]


class GoldenCheck(Closed):
    """The answer of the deep health check if every model passes."""

    golden: Annotated[dict[str, Literal["right"]], Field(description="the result of each model")]


class Identity(Closed):
    """Which model computed an answer, and on which device."""

    model: Annotated[str, Field(examples=["cnn"])]
    version: Annotated[str, Field(description="by default the start of the weights' SHA-256")]
    variant: Annotated[str, Field(description="format of the model file", examples=["onnx"])]
    device: Device
    provider: Annotated[str, Field(examples=["CPUExecutionProvider"])]


class TensorMetadata(Closed):
    """An input or output tensor of a model."""

    name: str
    datatype: Datatype
    shape: Annotated[list[Axis], Field(description="-1 marks the batch axis")]


class ModelCard(Identity):
    """A served model with the evidence that its answers equal the checkpoint's."""

    inputs: NonEmpty[TensorMetadata]
    outputs: NonEmpty[TensorMetadata]
    labels: Annotated[
        list[str], Field(description="names of the classes; empty if the model has none")
    ]
    parameters: Annotated[int, Field(ge=0, description="number of trainable parameters")]
    test_accuracy: Share | None
    test_images: Annotated[str | None, Field(description="description of the test set")]
    parity: NonEmpty[ParityVerdict]
    golden: GoldenResult
    guard: Annotated[GuardSummary | None, Field(description="the out-of-distribution check")]
    features: Annotated[FeatureMaps | None, Field(description="parity of the feature maps")]
    default: Annotated[bool, Field(description="whether it serves requests that name no model")]


class ModelCards(Closed):
    """The answer of GET /models."""

    models: NonEmpty[ModelCard]


class ServerMetadata(Closed):
    """Open Inference Protocol: the answer of GET /v2."""

    name: str
    version: Annotated[str, Field(description="version of the protocol")]
    extensions: list[str]


class ModelMetadata(Closed):
    """Open Inference Protocol: the answer of GET /v2/models/{model}."""

    name: str
    versions: NonEmpty[str]
    platform: str
    inputs: NonEmpty[TensorMetadata]
    outputs: NonEmpty[TensorMetadata]


IsBinary = Annotated[
    bool, Field(description="return the values as bytes after the JSON instead of as data")
]


class RequestParameters(TypedDict):
    """Parameters of an inference request; others than these are ignored."""

    binary_data_output: NotRequired[IsBinary]


class InputParameters(TypedDict):
    """Parameters of an input tensor; others than these are ignored."""

    binary_data_size: NotRequired[
        Annotated[int, Field(ge=1, description="number of bytes after the JSON, instead of data")]
    ]


class OutputParameters(TypedDict):
    """Parameters of a requested output; others than these are ignored."""

    binary_data: NotRequired[IsBinary]


class RequestInput(TypedDict):
    """Open Inference Protocol: an input tensor of a request."""

    name: str
    shape: NonEmpty[Size]
    datatype: Datatype
    parameters: NotRequired[InputParameters]
    data: NotRequired[
        Annotated[list[Any] | None, Field(description="values in row-major order, flat or nested")]
    ]


class RequestOutput(TypedDict):
    """Open Inference Protocol: an output tensor that the client asks for."""

    name: str
    parameters: NotRequired[OutputParameters]


RequestedOutputs = Annotated[
    NonEmpty[RequestOutput], Field(description="the outputs to return; by default all")
]


class InferenceRequest(TypedDict):
    """Open Inference Protocol: the JSON of an inference request."""

    id: NotRequired[Annotated[str | None, Field(description="repeated in the answer")]]
    parameters: NotRequired[RequestParameters]
    inputs: NonEmpty[RequestInput]
    outputs: NotRequired[RequestedOutputs | None]


class BinaryDataSize(Closed):
    """Parameters of an output tensor that follows the JSON as bytes."""

    binary_data_size: Annotated[int, Field(ge=0, description="number of bytes of this tensor")]


class ResponseOutput(Closed):
    """Open Inference Protocol: an output tensor of an answer."""

    name: str
    datatype: Datatype
    shape: list[Count]
    parameters: NotRequired[BinaryDataSize]
    data: NotRequired[Annotated[list[Any], Field(description="values in row-major order, flat")]]


class InferenceResponse(Closed):
    """Open Inference Protocol: the JSON of an answer to an inference request."""

    model_name: str
    model_version: str
    id: NotRequired[Annotated[str, Field(description="the id of the request, if it had one")]]
    outputs: list[ResponseOutput]


class GuardVerdict(Closed):
    """The result of the out-of-distribution check for one image."""

    usual: Annotated[bool, Field(description="p_value is not below the guard's unusual_below")]
    p_value: Annotated[
        Share, Field(description="share of held-out images that are at least as unusual")
    ]
    reason: Annotated[str | None, Field(description="why the image is unusual; null if it is not")]


Probabilities = Annotated[
    list[Share], Field(description="in the order of the labels of GET /models; their sum is 1")
]


class PredictRequest(Closed):
    """The body of POST /predict."""

    images: Annotated[Image | Images, Field(description="one image or several")]
    model: NotRequired[Annotated[str | None, Field(description="null: the default model")]]


class Prediction(Closed):
    """The digit that a model recognized in one image."""

    label: str
    probabilities: Probabilities
    guard: Annotated[GuardVerdict | None, Field(description="null if the model has no guard")]


class PredictAnswer(Identity):
    """The answer of POST /predict and POST /predict/image."""

    predictions: NonEmpty[Prediction]
    image: NotRequired[Image]


class NamedTensorsRequest(Closed):
    """The JSON body of POST /models/{model}/predict."""

    inputs: Annotated[dict[str, TensorValues], Field(description="values by tensor name")]


class ClassPrediction(Closed):
    """The class that a model predicts for one sample."""

    label: str
    probabilities: Probabilities
    guard: NotRequired[GuardVerdict]


class NamedTensorsAnswer(Identity):
    """The answer of POST /models/{model}/predict."""

    outputs: Annotated[dict[str, TensorValues], Field(description="values by tensor name")]
    predictions: NotRequired[
        Annotated[NonEmpty[ClassPrediction], Field(description="only from classifiers")]
    ]


class FeaturesRequest(Closed):
    """The body of POST /models/{model}/features: one image, alone or in a list."""

    images: Image | Annotated[list[Image], Field(min_length=1, max_length=1)]


_MAP_NAME = (
    "'channel C' for convolutions over images or rows (rows have height 1), 'channel C, depth D' "
    "for convolutions over volumes, 'units' for a dense layer: its units fill the rows of a "
    "rectangle, from the top, that is as close to a square as their number allows (512 units are "
    "16 rows of 32)"
)


class FeatureMap(Closed):
    """One feature map of a model's first layer."""

    name: Annotated[str, Field(description=_MAP_NAME)]
    height: Size
    width: Size
    values: Annotated[
        NonEmpty[NonEmpty[float]],
        Field(description="rows from the top, rounded to 4 decimal places"),
    ]


class FeaturesAnswer(Identity):
    """The answer of POST /models/{model}/features."""

    layer: Annotated[str, Field(examples=["features.1 (ReLU after Conv 5x5, 16 channels)"])]
    maps: NonEmpty[FeatureMap]
