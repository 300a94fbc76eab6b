"""JSON schemas of all bodies, generated from ``service.protocol.answers``.

What depends on the served models (their names, labels and tensors) and on the settings (the largest
request) is added to the generated schemas by ``component_schemas``.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema

from export.bundle.manifest import Manifest
from service.protocol import answers

Schema = dict[str, Any]
DIGITS, TENSORS = "digits", "tensors"

_TYPES: list[Any] = [
    answers.Error,
    answers.ModelCards,
    answers.Health,
    answers.GoldenCheck,
    answers.ServerMetadata,
    answers.ModelMetadata,
    answers.InferenceRequest,
    answers.InferenceResponse,
    answers.NamedTensorsRequest,
    answers.NamedTensorsAnswer,
]
_DIGIT_TYPES: list[Any] = [answers.PredictRequest, answers.PredictAnswer]
_FEATURE_TYPES: list[Any] = [answers.FeaturesRequest, answers.FeaturesAnswer]


class Adapter(Protocol):
    """The part of a model's adapter that the document depends on."""

    @property
    def task(self) -> str:
        """One of "tensors", "image-classification" and "digits"."""


class DescribedModel(Protocol):
    """The part of a served model that the document depends on."""

    @property
    def manifest(self) -> Manifest:
        """Name, version, tensors, labels and feature maps."""

    @property
    def adapter(self) -> Adapter:
        """The adapter that turns requests into tensors."""


class _Generator(GenerateJsonSchema):
    def field_title_should_be_set(self, schema: Any) -> bool:
        """Leave out titles, which would only repeat the names of the fields."""
        return False


def component_schemas(models: Sequence[DescribedModel], most_samples: int) -> Schema:
    """The schemas of all bodies that the served models read and answer, by name.

    Args:
        models: The served models.
        most_samples: Samples that one request may hold.
    """
    manifests = [model.manifest for model in models]
    digits = [model.manifest for model in models if model.adapter.task == DIGITS]
    classifiers = [model.manifest for model in models if model.adapter.task != TENSORS]
    with_features = [manifest for manifest in manifests if manifest.features]
    inputs = [spec for manifest in manifests for spec in manifest.inputs]
    outputs = [spec for manifest in manifests for spec in manifest.outputs]
    types = _TYPES + (_DIGIT_TYPES if digits else []) + (_FEATURE_TYPES if with_features else [])
    schemas = _generate(types)

    def restrict(schema: str, field: str, **keywords: Any) -> None:
        schemas[schema]["properties"][field] |= keywords

    input_names = unique(spec.name for spec in inputs)
    output_names = unique(spec.name for spec in outputs)
    restrict("RequestInput", "name", enum=input_names)
    restrict("RequestInput", "datatype", enum=unique(spec.datatype for spec in inputs))
    restrict("RequestOutput", "name", enum=output_names)
    restrict("NamedTensorsRequest", "inputs", propertyNames={"enum": input_names}, minProperties=1)
    restrict("NamedTensorsAnswer", "model", enum=_names(manifests))
    restrict("NamedTensorsAnswer", "outputs", propertyNames={"enum": output_names})
    if classifiers:
        restrict("ClassPrediction", "label", enum=_labels(classifiers))
    if digits:
        sizes = [len(manifest.labels) for manifest in digits]
        schemas["Images"]["maxItems"] = most_samples
        restrict("PredictRequest", "model", enum=[*_names(digits), None])
        restrict("Prediction", "label", enum=_labels(digits))
        restrict("Prediction", "probabilities", minItems=min(sizes), maxItems=max(sizes))
        restrict("PredictAnswer", "model", enum=_names(digits))
        restrict("PredictAnswer", "predictions", maxItems=most_samples)
    if with_features:
        restrict("FeaturesAnswer", "model", enum=_names(with_features))
    return schemas


def unique(words: Iterable[str]) -> list[str]:
    """The words in the order of their first occurrence, each once."""
    return list(dict.fromkeys(words))


def _names(manifests: Sequence[Manifest]) -> list[str]:
    return [manifest.name for manifest in manifests]


def _labels(manifests: Sequence[Manifest]) -> list[str]:
    return unique(label for manifest in manifests for label in manifest.labels)


def _generate(types: Sequence[Any]) -> Schema:
    """The schemas of these types and of those that they refer to."""
    _, definitions = TypeAdapter.json_schemas(
        # Answers are written: a field with a default is always there.
        [(type_.__name__, "serialization", TypeAdapter(type_)) for type_ in types],
        ref_template="#/components/schemas/{model}",
        schema_generator=_Generator,
    )
    return dict(definitions["$defs"])
