"""A run's configuration is validated before the run starts."""

import pytest

from training import config
from training.config import PRESETS, Preset, TrainConfig
from training.models import ARCHITECTURES, RENAMED, VARIANTS, model_names, resolved


def test_every_preset_is_whole_and_survives_json() -> None:
    """A preset that is written to JSON and read again is unchanged."""
    for preset in PRESETS.values():
        assert TrainConfig.model_validate_json(preset.model_dump_json()) == preset


def test_architecture_defaults_are_filled_in() -> None:
    """The saved record contains every number of the architecture, including defaults."""
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
    """Each error message names the wrong field or value."""
    with pytest.raises(ValueError, match=named):
        TrainConfig.model_validate(fields)


def test_every_network_that_is_trained_here_has_all_presets() -> None:
    """Every name gives its architecture's config with the variant's numbers, in all presets."""
    for name in model_names():
        architecture, numbers = resolved(name, {})
        if ARCHITECTURES[architecture].task == "none":
            continue
        quick, full = config.preset(name, "quick"), config.preset(name, "full")
        best = config.preset(name, "best")
        assert quick.model == full.model == best.model == architecture
        assert numbers.items() <= quick.architecture.items()
        assert quick.epochs < full.epochs
        assert quick.epochs < best.epochs


def test_a_network_without_a_preset_of_its_own_has_the_cnns_conditions() -> None:
    """Only network and numbers differ from the CNN's preset, so the two can be compared."""
    own = config.preset("resnet", "quick").model_dump(exclude={"model", "architecture"})
    assert own == PRESETS["cnn", "quick"].model_dump(exclude={"model", "architecture"})


def test_an_old_name_of_a_network_stands_for_the_network() -> None:
    """Old names from older records give the same configs as the new names."""
    for old, name in RENAMED.items():
        assert resolved(old, {}) == (name, {})
    assert TrainConfig(model="deep") == TrainConfig(model="vgg")
    assert config.preset("pair", "full") == config.preset("two-input", "full")


def test_a_variant_is_recorded_as_its_architecture_and_numbers() -> None:
    """The saved record contains the architecture and its numbers, but no variant's name."""
    name, (architecture, numbers) = next(iter(VARIANTS.items()))
    assert TrainConfig(model=name) == TrainConfig(model=architecture, architecture=numbers)


@pytest.mark.parametrize("which", ["quick", "full"])
def test_a_network_that_is_not_trained_here_is_refused_in_words(which: Preset) -> None:
    """The message says why the network is not trained and what can be done with it instead."""
    with pytest.raises(
        ValueError, match=r"not trained here.*training describe lecture502-subclass"
    ):
        config.preset("lecture502-subclass", which)
