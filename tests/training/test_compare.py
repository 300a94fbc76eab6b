"""Comparisons of checkpoints: groups, refusals and the report."""

import logging
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from training.__main__ import main
from training.checkpoint import CheckpointError, read_checkpoint, write_record, write_weights
from training.compare import ComparePlan, Comparison, compare, sentences, write_report
from training.compare.groups import read_groups, single_seeds, unfair_conditions
from training.compare.learning_curve import run_learning_curve
from training.config import DistilConfig, TrainConfig, preset
from training.data import Dataset, LabelledImages, load_dataset
from training.evaluation.classification import evaluate
from training.evaluation.grouping import group_names
from training.evaluation.statistics import Interval
from training.loop.fit import DivergedError, Fitted, fit

PLAN = ComparePlan(images=40, timing_rounds=2, differing_shown=5)


@pytest.fixture(scope="module")
def dataset(data_dir: Path) -> Dataset:
    """The tiny data set, loaded once."""
    return load_dataset(data_dir)


def _relative(folder: Path, like: Path, dataset: Dataset, **config: object) -> Path:
    """A copy of a checkpoint with slightly changed weights and another seed or config."""
    record, module = read_checkpoint(like)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in module.parameters():
            weight.mul_(1 + 0.3 * torch.randn(weight.shape, generator=generator))
    changes = {
        "config": record.config.with_changes(**config),
        "weights": write_weights(folder, module),
        "test": evaluate(module, dataset.test, dataset.test_name),
    }
    write_record(folder, record.model_copy(update=changes))
    return folder


@pytest.fixture(scope="module")
def folders(
    checkpoints: Path, dataset: Dataset, tmp_path_factory: pytest.TempPathFactory
) -> list[Path]:
    """Two seeds of each tiny model; the later seed of the MLP is given first."""
    work = tmp_path_factory.mktemp("seeds")
    later = {
        model: _relative(work / model, checkpoints / model, dataset, seed=1)
        for model in ("mlp", "cnn")
    }
    return [later["mlp"], checkpoints / "mlp", checkpoints / "cnn", later["cnn"]]


@pytest.fixture(scope="module")
def compared(folders: list[Path], dataset: Dataset) -> Comparison:
    """The comparison of the four networks, measured once."""
    return compare(folders, dataset, PLAN)


def test_networks_that_differ_in_their_seed_form_a_group(
    compared: Comparison, folders: list[Path]
) -> None:
    """Groups keep the given order, seeds ascend, and each accuracy is the checkpoint's own."""
    assert [group.name for group in compared.groups] == ["mlp", "cnn"]
    assert compared.base == "mlp"
    for group in compared.groups:
        assert [network.seed for network in group.networks] == [0, 1]
        for network in group.networks:
            record, _ = read_checkpoint(Path(network.checkpoint))
            assert network.accuracy == pytest.approx(record.test.accuracy)
            assert network.confusion == record.test.confusion
            assert network.accuracy_per_digit == pytest.approx(record.test.accuracy_per_digit)
            assert network.interval.low < network.accuracy < network.interval.high
            error = record.test.expected_calibration_error
            assert network.calibration.error_before == pytest.approx(error)
    accuracies = [network.accuracy for network in compared.groups[1].networks]
    assert compared.groups[1].accuracy.mean == pytest.approx(sum(accuracies) / 2)


def test_the_parts_of_a_comparison_agree(compared: Comparison) -> None:
    """Pairs, costs, curves and alternatives refer to the same networks and images."""
    mlp, cnn = compared.groups
    between, *within = compared.pairs
    assert len(between.pairs) == 4
    assert [(pair.first, pair.second) for pair in within] == [("mlp", "mlp"), ("cnn", "cnn")]
    for pair in between.pairs:
        first = next(n for n in mlp.networks if n.seed == pair.first_seed)
        second = next(n for n in cnn.networks if n.seed == pair.second_seed)
        gained = (second.accuracy - first.accuracy) * compared.test_images
        assert pair.only_second - pair.only_first == pytest.approx(gained)
    base, other = compared.alternatives
    assert (base.difference, base.interval) == (0, None)
    assert other.difference == pytest.approx(cnn.accuracy.mean - mlp.accuracy.mean)
    assert other.interval is not None
    assert other.interval.low <= other.difference <= other.interval.high
    assert other.parameters_ratio == cnn.cost.parameters / mlp.cost.parameters
    assert mlp.cost.times[0].ratio == 1
    assert compared.distorted_images == 40
    for curve in compared.curves:
        neutral = curve.levels.index(curve.neutral)
        assert curve.ink_kept[neutral] == 1
        assert all(group.unchanged[neutral] == 1 for group in curve.groups)


def test_the_report_holds_the_figures_and_asks_nothing_of_the_network(
    compared: Comparison, dataset: Dataset, tmp_path: Path
) -> None:
    """The JSON survives a round trip; the page shows its figures and links to nothing external."""
    page = write_report(compared, dataset, tmp_path)
    text = page.read_text()
    read = Comparison.model_validate_json(page.with_name("comparison.json").read_bytes())
    assert read == compared
    assert not re.search(r"https?:|src=\"(?!data:)|@import|<script", text)
    for group in compared.groups:
        assert f"{100 * group.accuracy.mean:.2f}" in text
        assert f"{group.cost.multiply_adds:,}" in text
    for told in (
        "Calibration",
        "below 90%",
        "p &lt; 0.05",
        "First layer of cnn",
        "output of layers.",
    ):
        assert told in text
    assert text.count("data:image/png;base64,") >= 14
    assert "Training-set size" not in text


def test_the_sentences_follow_the_figures(compared: Comparison) -> None:
    """The report's sentences change with the comparison's figures."""
    curve = compared.curves[0]
    spoilt = [g.model_copy(update={"falls_below": (None, 3.25)}) for g in curve.groups]
    told = sentences.robustness(curve.model_copy(update={"groups": spoilt}))
    assert told.startswith("mlp and cnn: below 90% from 3.25 pixels on. The groups are")
    other = compared.alternatives[1]
    for interval, p_holm, said in (
        (
            Interval(low=0.01, high=0.05),
            0.02,
            "95% interval over seeds +1.00 to +5.00: significant",
        ),
        (Interval(low=-0.01, high=0.05), 0.06, "not significant, p = 0.0600"),
        (None, None, "one seed, or seeds that all agree"),
    ):
        changed = other.model_copy(
            update={"difference": 0.0321, "interval": interval, "p_holm": p_holm}
        )
        altered = compared.model_copy(update={"alternatives": [changed]})
        assert "cnn classifies" in sentences.verdict(altered)
        assert "+3.21 points" in sentences.verdict(altered)
        assert said in sentences.verdict(altered)
    pair = compared.pairs[0]
    even = [p.model_copy(update={"only_first": 1, "only_second": 2}) for p in pair.pairs]
    altered_pair = pair.model_copy(update={"pairs": even, "significant": 0.25})
    said = sentences.mcnemar(altered_pair)
    assert "1 of 4 pairs have p < 0.05 (25%)" in said
    assert "mlp classifies more images correctly in 0 of 4, cnn in 4" in said


def test_the_command_prints_a_table_and_trains_sizes_once(
    folders: list[Path],
    data_dir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The JSON contains the runs on subsets of the training images, and none is trained twice."""
    caplog.set_level(logging.INFO)
    command = ["compare", *map(str, folders[1:3]), "--data-dir", str(data_dir), "--images", "10"]
    command += ["--out", str(tmp_path), "--sizes", "64", "128", "--size-epochs", "1"]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert re.search(r"cnn +1 +\d\d\.\d\d% \(one seed\) +[+-]\d+\.\d\d points", printed)
    assert f"report: {tmp_path / 'comparison.html'}" in printed
    assert "note: only one seed of mlp, cnn" in printed
    first = Comparison.model_validate_json((tmp_path / "comparison.json").read_bytes())
    runs = [(run.group, run.size, run.epoch_images) for run in first.sizes]
    assert runs == [("mlp", 64, 116), ("mlp", 128, 116), ("cnn", 64, 116), ("cnn", 128, 116)]
    assert caplog.text.count("training mlp on") == 2
    assert "Training-set size" in (tmp_path / "comparison.html").read_text()
    said: list[str] = []
    dataset = load_dataset(data_dir)
    groups = read_groups(folders[2:3], dataset)
    again, failures = run_learning_curve(
        groups, dataset, [64, 128], 1, folder=tmp_path, device=torch.device("cpu"), say=said.append
    )
    assert (again, failures, said) == (first.sizes[2:], [], [])
    cut, _ = run_learning_curve(
        groups, dataset, [64], 1, folder=tmp_path, device=torch.device("cpu"), say=said.append
    )
    assert ([run.epoch_images for run in cut], len(said)) == ([58], 1)


def test_sizes_of_a_distilled_group_are_refused_before_anything_is_measured(
    folders: list[Path], dataset: Dataset, tmp_path: Path
) -> None:
    """A distilled run cannot be repeated: its record identifies teachers only by hash."""
    distil = DistilConfig(teachers=("0" * 64,))
    distilled = _relative(tmp_path / "distilled", folders[1], dataset, distil=distil)
    said: list[str] = []
    plan = PLAN.model_copy(update={"sizes": (64,)})
    with pytest.raises(ValueError, match=r"--sizes.*distilled.*teachers"):
        compare([folders[1], distilled], dataset, plan, folder=tmp_path, say=said.append)
    assert said == []


@pytest.mark.parametrize(
    ("sizes", "named"), [((64, 1_501), "1,500 training images"), ((20,), "batch_size 32")]
)
def test_sizes_that_cannot_be_trained_are_refused_before_anything_is_measured(
    folders: list[Path], dataset: Dataset, tmp_path: Path, sizes: tuple[int, ...], named: str
) -> None:
    """Sizes above the number of labels or below one batch are refused."""
    said: list[str] = []
    plan = PLAN.model_copy(update={"sizes": sizes})
    with pytest.raises(ValueError, match=named):
        compare(folders[1:3], dataset, plan, folder=tmp_path, say=said.append)
    assert said == []


def test_a_run_that_fails_costs_no_measurement(
    folders: list[Path],
    data_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A run that diverges is skipped with a warning; a crash keeps the finished measurements."""
    command = ["compare", str(folders[1]), "--data-dir", str(data_dir), "--images", "10"]
    command += ["--out", str(tmp_path), "--sizes", "64", "128", "--size-epochs", "1"]

    def diverge(config: TrainConfig, train: LabelledImages, *rest: object, **kw: object) -> Fitted:
        if len(train.labels.unique(return_counts=True)[1]) and fails:
            raise fails.pop()
        return fit(config, train, *rest, **kw)  # type: ignore[arg-type]

    fails: list[BaseException] = [DivergedError("the training loss became nan in epoch 1")]
    monkeypatch.setattr("training.compare.learning_curve.fit", diverge)
    assert main(command) == 0
    figures = Comparison.model_validate_json((tmp_path / "comparison.json").read_bytes())
    assert [run.size for run in figures.sizes] == [128]
    assert any("64" in line and "became nan" in line for line in figures.warnings)

    for path in tmp_path.iterdir():
        path.unlink()
    fails.append(MemoryError("no memory left"))
    with pytest.raises(MemoryError):
        main(command)
    figures = Comparison.model_validate_json((tmp_path / "comparison.json").read_bytes())
    assert (figures.sizes, len(figures.curves)) == ([], 5)
    assert (tmp_path / "comparison.html").is_file()


def test_a_size_is_a_budget_of_labels(
    folders: list[Path], dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run's N images include its validation images."""
    seen: list[tuple[LabelledImages, LabelledImages]] = []

    def watched(
        config: TrainConfig, train: LabelledImages, validation: LabelledImages, **rest: Any
    ) -> Fitted:
        seen.append((train, validation))
        return fit(config, train, validation, **rest)

    monkeypatch.setattr("training.compare.learning_curve.fit", watched)
    groups = read_groups(folders[1:2], dataset)
    device = torch.device("cpu")
    run_learning_curve(
        groups, dataset, [100, 400], 1, folder=tmp_path, device=device, say=lambda _: None
    )
    for (train, validation), size in zip(seen, (100, 400), strict=True):
        known, held_out = (
            {bytes(image.numpy()) for image in part.images} for part in (train, validation)
        )
        assert len(held_out) == size // 10
        assert len(known | held_out) == size
        assert len(train) == 360


def test_a_broken_cache_of_sizes_is_refused(
    folders: list[Path], dataset: Dataset, tmp_path: Path
) -> None:
    """A cache that is not a list of runs is refused with its path and what to do."""
    (tmp_path / "sizes.json").write_text("[{}]")
    plan = PLAN.model_copy(update={"sizes": (64,), "images": 1})
    with pytest.raises(CheckpointError, match=r"sizes\.json is not a valid list.*delete it"):
        compare(folders[1:2], dataset, plan, folder=tmp_path)


def test_what_cannot_be_compared_is_refused(
    folders: list[Path], dataset: Dataset, tmp_path: Path
) -> None:
    """A repeated seed, other images, another split and an impossible plan are refused."""
    with pytest.raises(CheckpointError, match="same config and seed 1"):
        compare([folders[0], folders[0]], dataset)
    with pytest.raises(CheckpointError, match="no checkpoint to compare"):
        compare([], dataset)
    fewer = Dataset("fewer", "fewer", "here", dataset.train, dataset.train)
    with pytest.raises(CheckpointError, match=r"was trained on custom.*the images given are fewer"):
        compare(folders, fewer)
    record, _ = read_checkpoint(folders[1])
    validation = record.data.validation_images
    text = (folders[1] / "checkpoint.json").read_text()
    other = text.replace(f'"validation_images": {validation}', '"validation_images": 50')
    for path in folders[1].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "checkpoint.json").write_text(other)
    with pytest.raises(CheckpointError, match=f"held out 50 validation images.*{validation}"):
        compare([folders[2], tmp_path], dataset)
    for change, named in (
        ({"base": "rnn"}, "--base rnn: no such group; the groups are: mlp, cnn"),
        ({"picture_index": 300}, "the test images are 0 to 299"),
        ({"sizes": (64,)}, "a folder for their results"),
    ):
        with pytest.raises(ValueError, match=named):
            compare(folders, dataset, PLAN.model_copy(update=change))


def test_unlike_training_is_told(folders: list[Path], dataset: Dataset, tmp_path: Path) -> None:
    """A network trained for other epochs forms its own group, and the report warns about it."""
    short = _relative(tmp_path, folders[1], dataset, epochs=1)
    groups = read_groups([*folders[:2], short], dataset)
    assert [group.name for group in groups] == ["mlp (epochs=6)", "mlp (epochs=1)"]
    told = unfair_conditions(groups)
    assert len(told) == 1
    assert told[0].startswith("training differs in epochs: mlp (epochs=6) 6, mlp (epochs=1) 1;")
    assert single_seeds(groups)[0].startswith("only one seed of mlp (epochs=1):")
    assert unfair_conditions(groups[:1]) == single_seeds(groups[:1]) == []


def test_names_tell_groups_apart() -> None:
    """Names use a variant's name if one fits, and list only numbers and conditions that differ."""
    configs = [
        TrainConfig(model="cnn", architecture={"n1": 4}),
        TrainConfig(model="cnn", architecture={"n1": 8}, epochs=3),
        TrainConfig(model="cnn", architecture={"down": "strided", "n1": 8}),
        TrainConfig(model="mlp"),
    ]
    assert group_names(configs) == [
        "cnn (n1=4, epochs=10)",
        "cnn (n1=8, epochs=3)",
        "cnn-strided",
        "mlp",
    ]


def test_a_preset_of_the_plain_network_keeps_the_plain_name() -> None:
    """The CNN's full preset is still named after the CNN, although it has batch normalisation."""
    assert group_names([preset("cnn", "full")]) == ["cnn"]
    assert group_names([preset("cnn", "quick"), preset("cnn-batch-norm", "quick")]) == [
        "cnn",
        "cnn-batch-norm",
    ]
    assert group_names([preset("cnn", "best"), preset("cnn-strided", "best")]) == [
        "cnn",
        "cnn-strided",
    ]
    both = TrainConfig(model="cnn", architecture={"n1": 4, "batch_norm": True, "down": "strided"})
    assert group_names([both]) == ["cnn"]


def test_several_groups_against_one_base_are_corrected(compared: Comparison) -> None:
    """A p value of 0.03 is significant for a single comparison but not for one of two."""
    other = compared.alternatives[1]
    changed = other.model_copy(
        update={"p_value": 0.03, "interval": Interval(low=0.01, high=0.05), "difference": 0.03}
    )
    for corrected in (0.03, 0.06):
        one = changed.model_copy(update={"p_holm": corrected})
        for told in ([one], [one, one]):
            verdict = sentences.verdict(compared.model_copy(update={"alternatives": told}))
            assert ("not significant" in verdict) == (corrected > 0.05)
            assert f"p = {corrected:.4f} after Holm's correction" in verdict


def test_results_without_the_newer_figures_are_read(compared: Comparison) -> None:
    """A JSON file without corrected p values and Brier scores can still be read."""
    old = compared.model_dump()
    for alternative in old["alternatives"]:
        del alternative["p_value"], alternative["p_holm"]
    for group in old["groups"]:
        for network in group["networks"]:
            del network["calibration"]["brier_before"], network["calibration"]["brier_after"]
    read = Comparison.model_validate(old)
    assert read.groups[0].accuracy == compared.groups[0].accuracy
    assert read.alternatives[1].p_holm is None


def test_the_report_shows_the_proper_scores(
    compared: Comparison, dataset: Dataset, tmp_path: Path
) -> None:
    """The report shows log-likelihood and Brier score beside the calibration error."""
    text = write_report(compared, dataset, tmp_path).read_text()
    for group in compared.groups:
        of = [network.calibration for network in group.networks]
        assert f"{sum(one.loss_before for one in of) / len(of):.4f}" in text
        assert f"{sum(one.brier_before or 0 for one in of) / len(of):.4f}" in text
    assert "Brier" in text
