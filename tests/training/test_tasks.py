"""Networks for tasks other than one digit use the same training loop with other metrics."""

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from training.__main__ import main
from training.checkpoint import (
    AnyEpoch,
    CheckpointError,
    ImageRecord,
    PairRecord,
    open_checkpoint,
    read_checkpoint,
)
from training.config import TrainConfig
from training.data import LabelledImages, load_dataset
from training.evaluation.reconstruction import evaluate_images
from training.evaluation.two_input import evaluate_pairs, fixed_pairs
from training.loop.fit import Fitted, fit
from training.loop.tasks import PairTask

NUMBERS: dict[str, dict[str, Any]] = {
    "two-input": {"n1": 2, "n2": 4, "n3": 16, "n4": 16, "dropout": 0.2},
    "autoencoder": {"n1": 2, "n2": 4, "code": 8},
}


@pytest.fixture(scope="module")
def trained(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny checkpoint of each such network, trained by the command line."""
    folder = tmp_path_factory.mktemp("trained")
    for model, numbers in NUMBERS.items():
        command = ["train", "--model", model, "--epochs", "3", "--batch-size", "32"]
        command += [f"--arch={name}={value}" for name, value in numbers.items()]
        command += ["--data-dir", str(data_dir), "--out", str(folder / model), "--device", "cpu"]
        assert main(command) == 0
    return folder


def test_a_pair_network_records_each_answer_and_all_three(trained: Path, data_dir: Path) -> None:
    """Its metrics are measured on pairs, exceed chance and can be reproduced from its weights."""
    record, module = open_checkpoint(trained / "two-input")
    assert isinstance(record, PairRecord)
    test = record.test
    assert test.pairs == 300
    assert test.images_name.startswith("300 pairs of ")
    assert min(test.first.accuracy, test.second.accuracy) > 0.4
    assert test.accuracy <= min(test.first.accuracy, test.second.accuracy, test.sum.accuracy)
    assert len(test.misclassified) == round((1 - test.accuracy) * 300)
    again = evaluate_pairs(module, load_dataset(data_dir).test, "the same images")
    assert (again.accuracy, again.sum) == (test.accuracy, test.sum)
    assert record.history[record.epoch_kept].validation_accuracy == record.validation.accuracy


def test_an_autoencoder_records_its_error_after_the_last_epoch(
    trained: Path, data_dir: Path
) -> None:
    """Mean squared error and PSNR are consistent, and come from the last epoch's weights."""
    record, module = open_checkpoint(trained / "autoencoder")
    assert isinstance(record, ImageRecord)
    images = load_dataset(data_dir).test
    empty_mse = float((images.images.double() / 255).square().mean())
    assert record.test.mse < 0.8 * empty_mse  # better than an empty image
    assert record.test.psnr_db == pytest.approx(
        -10 * torch.tensor(record.test.mse).log10().item(), abs=1e-3
    )
    # In training, convolutions are channels last, which changes the order of sums.
    last = record.history[-1].validation_mse
    assert record.validation.mse == pytest.approx(last, rel=1e-6)
    assert evaluate_images(module, images, "the same images").mse == record.test.mse
    assert (trained / "autoencoder" / "rebuilt.png").read_bytes().startswith(b"\x89PNG")


def test_evaluate_prints_the_figures_of_the_task(
    trained: Path, data_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The output for pair networks and autoencoders does not claim a digit's accuracy."""
    for model, words in (("two-input", "all three answers correct"), ("autoencoder", "PSNR")):
        assert main(["evaluate", str(trained / model), "--data-dir", str(data_dir)]) == 0
        assert words in capsys.readouterr().out


def test_who_wants_a_digits_checkpoint_gets_no_other(trained: Path) -> None:
    """A checkpoint of another task is refused with its network's name."""
    with pytest.raises(
        CheckpointError, match="the network two-input, which is not a digit classifier"
    ):
        read_checkpoint(trained / "two-input")


def _fit(model: str, data: LabelledImages, folder: Path, **changes: Any) -> Fitted:
    further = {name: changes.pop(name) for name in ("resume", "on_epoch") if name in changes}
    settings = {"epochs": 2, "batch_size": 32, "augment": {"shift_px": 2}, **changes}
    config = TrainConfig.model_validate(
        {"model": model, "architecture": NUMBERS[model], **settings}
    )
    train, validation = data.select(torch.arange(160)), data.select(torch.arange(160, 200))
    device = torch.device("cpu")
    return fit(config, train, validation, device=device, folder=folder, data_sha256="", **further)


def _sha256(fitted: Fitted) -> str:
    digest = hashlib.sha256()
    for tensor in fitted.module.state_dict().values():
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


@pytest.mark.parametrize("model", NUMBERS)
def test_runs_of_every_task_repeat_and_resume_to_the_same_weights(
    model: str, data_dir: Path, tmp_path: Path
) -> None:
    """Repeated and resumed runs are bit-equal, and another seed gives other weights."""
    data = load_dataset(data_dir).train
    once = _sha256(_fit(model, data, tmp_path / "once"))
    assert _sha256(_fit(model, data, tmp_path / "again")) == once
    assert _sha256(_fit(model, data, tmp_path / "other", seed=1)) != once

    def interrupt(_: AnyEpoch) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _fit(model, data, tmp_path / "stopped", on_epoch=interrupt)
    assert _sha256(_fit(model, data, tmp_path / "stopped", resume=True)) == once


def test_the_loss_of_a_pair_is_that_of_all_three_answers() -> None:
    """The loss is the sum of the cross-entropies of both digits and of their sum."""
    generator = torch.Generator().manual_seed(0)
    logits = [torch.randn(4, count, generator=generator) for count in (10, 10, 19)]
    first, second = torch.tensor([0, 3, 9, 9]), torch.tensor([0, 8, 9, 1])
    expected = sum(
        float(functional.cross_entropy(scores, target))
        for scores, target in zip(logits, (first, second, first + second), strict=True)
    )
    loss = PairTask().loss(logits, [], [first, second], 0.0)
    assert float(loss) == pytest.approx(expected)


def test_training_pairs_are_drawn_anew_in_each_epoch(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each epoch uses the same images on either side, in other pairs."""
    learnt, seen = PairTask.loss, list[Tensor]()

    def spy(task: PairTask, answers: Any, inputs: Any, labels: Any, label_smoothing: float) -> Any:
        if inputs:  # validation has none
            seen.append(torch.stack(list(labels)))
        return learnt(task, answers, inputs, labels, label_smoothing)

    monkeypatch.setattr(PairTask, "loss", spy)
    _fit("two-input", load_dataset(data_dir).train, tmp_path)
    one, other = torch.cat(seen[:5], dim=1), torch.cat(seen[5:], dim=1)
    assert one.shape == other.shape == (2, 160)
    for side in (0, 1):
        assert torch.equal(one[side].sort().values, other[0].sort().values)
        assert not torch.equal(one[side], other[side])
    assert not torch.equal(one[0], one[1])


class _ReadsFirstPixels(nn.Module):
    """Reads the digits correctly from the first pixels, and their sum always wrongly."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, first_NCHW: Tensor, second_NCHW: Tensor) -> tuple[Tensor, ...]:
        """Logits of the digits that the first pixels hold, and of one more than their sum."""
        digits = [
            ((x[:, 0, 0, 0] * 0.3081 + 0.1307) * 255).round().long()
            for x in (first_NCHW, second_NCHW)
        ]
        wrong = (digits[0] + digits[1] + 1).clamp(max=18)
        one_hot = nn.functional.one_hot
        return tuple(
            self.scale * 9 * one_hot(read, count)
            for read, count in zip((*digits, wrong), (10, 10, 19), strict=True)
        )


def _marked(digits: list[int]) -> LabelledImages:
    images = torch.zeros(len(digits), 28, 28, dtype=torch.uint8)
    images[:, 0, 0] = torch.tensor(digits, dtype=torch.uint8)
    return LabelledImages(images, torch.tensor(digits))


def test_each_answer_of_a_pair_is_judged_by_itself() -> None:
    """Right digits with a sum one too large score 100%, 100% and 0%, and are never consistent."""
    figures = evaluate_pairs(_ReadsFirstPixels(), _marked([0, 1, 2, 3, 4]), "five images")
    answers = [figures.first, figures.second, figures.sum]
    assert [answer.accuracy for answer in answers] == [1, 1, 0]
    assert [figures.accuracy, figures.consistent] == [0, 0]
    assert figures.loss == pytest.approx(
        figures.first.loss + figures.second.loss + figures.sum.loss
    )
    for miss in figures.misclassified:
        assert miss.right == (miss.first_index, miss.second_index, sum(miss.right[:2]))
        assert miss.read_as == (*miss.right[:2], miss.right[2] + 1)


def test_fixed_pairs_use_each_image_once_on_either_side_and_are_always_the_same() -> None:
    """The second images are a permutation of all images in another order than the first."""
    images = _marked(list(range(10)) * 5)
    pairs, again = fixed_pairs(images), fixed_pairs(images)
    assert pairs.first_index.tolist() == list(range(50))
    assert sorted(pairs.second_index.tolist()) == list(range(50))
    assert pairs.second_index.tolist() != list(range(50))
    assert torch.equal(pairs.second.images, again.second.images)
    assert torch.equal(pairs.second.labels, images.labels[pairs.second_index])


class _Constant(nn.Module):
    """Returns an image of one standardised value."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.tensor(value))

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """The same value for every pixel."""
        return torch.zeros_like(x_NCHW) + self.value


def test_an_image_error_is_of_ink_between_0_and_1() -> None:
    """Values below 0 count as 0: an empty image has no error, one half full of ink has 1/2."""
    images = torch.zeros(2, 28, 28, dtype=torch.uint8)
    images[1, :14] = 255
    figures = evaluate_images(_Constant(-9.0), LabelledImages(images, torch.tensor([3, 8])), "two")
    assert figures.mse_per_digit[3] == 0
    assert figures.mse_per_digit[8] == pytest.approx(0.5)
    assert figures.mse_per_digit[0] is None
    assert figures.mse == pytest.approx(0.25)
    assert figures.psnr_db == pytest.approx(6.02, abs=0.01)
    assert [image.index for image in figures.worst] == [1, 0]
    empty = LabelledImages(images[:1], torch.tensor([3]))
    assert evaluate_images(_Constant(-9.0), empty, "one").psnr_db is None
