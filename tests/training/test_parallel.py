"""Under torchrun, two processes train to the weights of one process, up to rounding."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from training.__main__ import main
from training.config import AFFINE, TrainConfig
from training.data import load_dataset
from training.data.augment import augment
from training.loop import fit as fit_module
from training.loop.distributed import DistributedContext

REPOSITORY = Path(__file__).parent.parent.parent
# No dropout or batch normalisation: they depend on how the batch is divided.
NETWORK = ["--model", "mlp", "--arch", "hidden=[16]", "--arch", "dropout=0"]
NETWORK += ["--arch", "batch_norm=false", "--batch-size", "50", "--device", "cpu"]
# Relative to the largest weight: the order of sums differs, and AdamW amplifies it in 54 updates.
BOUND = 1e-5
BENT = AFFINE.model_copy(
    update={"elastic_px": 0.5, "stretch": 2.5, "stroke": 0.5, "coarse_share": 0.3}
)


def _weights(checkpoint: Path) -> dict[str, Tensor]:
    (file,) = checkpoint.glob("weights-*.safetensors")
    return load_file(file)


def _alone(data_dir: Path, out: Path, *further: str) -> dict[str, Tensor]:
    command = ["train", *NETWORK, "--data-dir", str(data_dir), "--out", str(out)]
    assert main([*command, *further]) == 0
    return _weights(out)


def _together(data_dir: Path, out: Path, *further: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", "-m", "training", "train", *NETWORK]
    command += ["--data-dir", str(data_dir), "--out", str(out), *further]
    variables = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, cwd=REPOSITORY, env=variables, capture_output=True, text=True, timeout=240
    )


def _furthest(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    """The largest difference between two weights, relative to the largest weight."""
    assert ours.keys() == theirs.keys()
    largest = max(float(tensor.abs().max()) for tensor in ours.values())
    return max(float((ours[name] - theirs[name]).abs().max()) for name in ours) / largest


def test_two_processes_give_the_weights_of_one(data_dir: Path, tmp_path: Path) -> None:
    """The weights agree on distorted images, and only the first process prints and writes."""
    ran = _together(data_dir, tmp_path / "two", "--epochs", "2")
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.count("epoch  2/2") == 1
    assert "2 processes" in ran.stdout
    found = _weights(tmp_path / "two")
    assert _furthest(found, _alone(data_dir, tmp_path / "one", "--epochs", "2")) < BOUND
    other = _alone(data_dir, tmp_path / "other", "--epochs", "2", "--seed", "1")
    assert _furthest(found, other) > 100 * BOUND


def test_a_run_of_one_is_taken_up_by_two(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted after its first epoch and resumed under torchrun, it ends where it would have.

    So do averaged weights.
    """
    run = ["--epochs", "2", "--ema", "0.9"]
    expected = _alone(data_dir, tmp_path / "whole", *run)

    def interrupted(*_: object) -> str:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("training.train._Clock.after", interrupted)
        command = ["train", *NETWORK, "--data-dir", str(data_dir), *run]
        assert main([*command, "--out", str(tmp_path / "cut")]) == 130
    ran = _together(data_dir, tmp_path / "cut", *run, "--resume")
    assert ran.returncode == 0, ran.stderr
    assert "epoch  1/2" not in ran.stdout
    found = _weights(tmp_path / "cut")
    assert _furthest(found, expected) < BOUND


def test_shares_are_equal_and_whole() -> None:
    """The shares contain each image of a batch once; a batch without equal shares is refused."""
    batch = torch.arange(12)
    shares = [DistributedContext(rank, 3).share(batch) for rank in range(3)]
    assert [len(share) for share in shares] == [4, 4, 4]
    assert torch.equal(torch.cat(shares).sort().values, batch)
    with pytest.raises(
        ValueError, match="batch_size 10 cannot be divided equally among 3 processes"
    ):
        DistributedContext(0, 3).require_equal_shares(10)


def test_an_image_is_distorted_alike_however_many_share_the_batch() -> None:
    """An image's draws depend on its position in the whole batch."""
    images = torch.rand(8, 1, 28, 28)
    whole = augment(images, BENT, torch.Generator().manual_seed(3))
    for rank in range(2):
        context = DistributedContext(rank, 2)
        found = augment(
            context.share(images),
            BENT,
            torch.Generator().manual_seed(3),
            context.size,
            context.share,
        )
        assert torch.equal(found, context.share(whole))


class _Pretended(DistributedContext):
    """One of two processes, without a second process."""

    def total(self, figure: Tensor) -> Tensor:
        """This process's own figure."""
        return figure

    def wrapped(self, module: nn.Module) -> nn.Module:
        """The module itself, without averaging gradients."""
        return module


def test_dropout_draws_for_each_process_by_itself(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both processes share the batch's distortions but draw dropout masks independently."""
    dropped: dict[int, Tensor] = {}
    images = load_dataset(data_dir).train.select(torch.arange(64))
    config = TrainConfig(
        model="mlp",
        architecture={"hidden": [64], "dropout": 0.5, "batch_norm": False},
        epochs=1,
        batch_size=64,
        augment=BENT,
    )
    for rank in (0, 1):

        def watch(module: nn.Dropout, x_NF: Tensor, rank: int = rank) -> Tensor:
            if not module.training:
                return x_NF
            return x_NF * dropped.setdefault(rank, functional.dropout(torch.ones_like(x_NF)))

        monkeypatch.setattr(fit_module, "current_context", lambda rank=rank: _Pretended(rank, 2))
        monkeypatch.setattr(nn.Dropout, "forward", watch)
        cpu = torch.device("cpu")
        fit_module.fit(config, images, images, device=cpu, folder=tmp_path, data_sha256="")
    assert dropped[0].shape == dropped[1].shape == (32, 64)
    assert not torch.equal(dropped[0], dropped[1])
