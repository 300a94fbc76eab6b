"""What a run is made of is checked before it starts."""

import pytest

from training.config import PRESETS, TrainConfig


def test_every_preset_is_whole_and_survives_json() -> None:
    """A preset written to JSON and read again is the same preset."""
    for preset in PRESETS.values():
        assert TrainConfig.model_validate_json(preset.model_dump_json()) == preset


def test_architecture_defaults_are_filled_in() -> None:
    """The saved record holds every number of the architecture, not only the changed ones."""
    config = TrainConfig(model="cnn", architecture={"n1": 4})
    assert config.architecture["n1"] == 4
    assert {"n2", "n3", "dropout", "batch_norm"} <= set(config.architecture)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"model": "rnn"}, "unknown model 'rnn'"),
        ({"model": "cnn", "architecture": {"n9": 4}}, "n9"),
        ({"model": "cnn", "architecture": {"n1": 0}}, "n1"),
        ({"model": "mlp", "architecture": {"hidden": []}}, "hidden"),
        ({"model": "mlp", "architecture": {"hidden": [-3]}}, "hidden"),
        ({"model": "mlp", "architecture": {"hidden": [0]}}, "hidden"),
        ({"model": "mlp", "epochs": 0}, "epochs"),
        ({"model": "mlp", "seed": -1}, "seed"),
        ({"model": "mlp", "learning_rate": 1}, "learning_rate"),
    ],
)
def test_a_bad_field_is_named(fields: dict[str, object], named: str) -> None:
    """Each refusal names the field or the value that was wrong."""
    with pytest.raises(ValueError, match=named):
        TrainConfig.model_validate(fields)
