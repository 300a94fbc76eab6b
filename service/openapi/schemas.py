"""Generates the JSON schemas of all bodies from ``service.protocol.answers``.

``component_schemas`` adds what depends on the served models (their names, labels and tensors) and
on the settings (the largest request).
"""

from collections.abc import Iterable, Sequence
from typing import Any

from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema

from export.bundle.manifest import Manifest
from service.protocol import answers

Schema = dict[str, Any]
DIGITS, TENSORS = "digits", "tensors"


class _Generator(GenerateJsonSchema):
    def field_title_should_be_set(self, schema: Any) -> bool:
        """Leave out titles, which would only repeat the names of the fields."""
        return False


def component_schemas(
    names: Iterable[str], models: Sequence[Manifest], most_samples: int
) -> Schema:
    """Return the schemas of bodies and of the types that they refer to, by name.

    Args:
        names: The types of ``service.protocol.answers`` that the operations refer to.
        models: The served models.
        most_samples: The largest number of samples in one request.
    """
    digits = [model for model in models if model.task == DIGITS]
    classifiers = [model for model in models if model.task != TENSORS]
    with_features = [model for model in models if model.features]
    inputs = [spec for model in models for spec in model.inputs]
    schemas = _generate(names)

    def restrict(schema: str, field: str, **keywords: Any) -> None:
        schemas[schema]["properties"][field] |= keywords

    input_names = unique(spec.name for spec in inputs)
    output_names = unique(spec.name for model in models for spec in model.outputs)
    restrict("RequestInput", "name", enum=input_names)
    restrict("RequestInput", "datatype", enum=unique(spec.datatype for spec in inputs))
    restrict("RequestOutput", "name", enum=output_names)
    restrict("NamedTensorsRequest", "inputs", propertyNames={"enum": input_names}, minProperties=1)
    restrict("NamedTensorsAnswer", "model", enum=_names(models))
    restrict("NamedTensorsAnswer", "outputs", propertyNames={"enum": output_names})
    if classifiers:
        restrict("ClassPrediction", "label", enum=_labels(classifiers))
    if digits:
        sizes = [len(model.labels) for model in digits]
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
    """Return each word once, in the order of first occurrence."""
    return list(dict.fromkeys(words))


def _names(models: Sequence[Manifest]) -> list[str]:
    return [model.name for model in models]


def _labels(models: Sequence[Manifest]) -> list[str]:
    return unique(label for model in models for label in model.labels)


def _generate(names: Iterable[str]) -> Schema:
    _, definitions = TypeAdapter.json_schemas(
        # The service writes answers, so a field with a default is always present.
        [(name, "serialization", TypeAdapter(getattr(answers, name))) for name in unique(names)],
        ref_template="#/components/schemas/{model}",
        schema_generator=_Generator,
    )
    return dict(definitions["$defs"])
