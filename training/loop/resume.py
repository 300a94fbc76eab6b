"""Save the state after an epoch in one safetensors file, so that a run can be resumed.

Tensors are in the file's body; everything else is JSON in its header. Random generators need not
be saved: each epoch seeds them from the run's seed and the epoch's number.

A folder belongs to one run at a time, and an unfinished run is only discarded on request.
"""

import fcntl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from pydantic import BaseModel, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from training.atomic import write_atomically
from training.checkpoint import SHOWN_HASH, AnyEpoch, CheckpointError
from training.config import TrainConfig

RESUME_NAME = "resume.safetensors"
LOCK_NAME = ".lock"


class Progress(BaseModel, frozen=True):
    """The state of a run except its tensors."""

    config: TrainConfig
    data_sha256: str
    split_sha256: str | None = None  # missing in states of older versions
    history: list[AnyEpoch]
    scheduler: dict[str, object]
    optimizer_groups: list[dict[str, object]]

    def require_same(
        self, config: TrainConfig, *, data_sha256: str, split_sha256: str, folder: Path
    ) -> None:
        """Raise ``CheckpointError``, naming what differs, unless the run to resume is this one."""
        then, now = self.config.model_dump(), config.model_dump()
        differing = [
            f"{name}: {then[name]} then, {now[name]} now" for name in now if then[name] != now[name]
        ]
        if differing:
            raise CheckpointError(
                f"the unfinished run in {folder} differs in {'; '.join(differing)}: give its "
                "options, or discard it with --restart"
            )
        if self.data_sha256 != data_sha256:
            raise CheckpointError(
                f"the unfinished run in {folder} used images with sha256 "
                f"{self.data_sha256[:SHOWN_HASH]}, the images given have "
                f"{data_sha256[:SHOWN_HASH]}: give its images, or discard it with --restart"
            )
        if self.split_sha256 not in (None, split_sha256):
            raise CheckpointError(
                f"the unfinished run in {folder} held out other validation images than this "
                "version of the code does, so it was trained on some that are held out now; "
                "begin again with --restart"
            )


@contextmanager
def run_folder(folder: Path, *, resume: bool, restart: bool) -> Iterator[None]:
    """Lock a folder for one run, creating it if needed; the lock ends with the process at latest.

    Args:
        folder: Folder of the run's state and its checkpoint.
        resume: Whether the run continues from the state in the folder.
        restart: Whether to discard the state of an unfinished run.

    Raises:
        CheckpointError: Another run has locked the folder; or an unfinished run left its state
            there, and neither ``resume`` nor ``restart`` is set.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK_NAME).open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise CheckpointError(
                f"another run is writing to {folder}; wait for it, or give another --out"
            ) from error
        state = folder / RESUME_NAME
        if restart:
            state.unlink(missing_ok=True)
        elif state.exists() and not resume:
            raise CheckpointError(
                f"{folder} contains the state of an unfinished run ({RESUME_NAME}); continue it "
                "with --resume, discard it with --restart, or give another --out"
            )
        yield


def save_progress(
    folder: Path,
    progress: Progress,
    modules: Mapping[str, nn.Module],
    optimizer: torch.optim.Optimizer,
) -> None:
    """Atomically replace the folder's resume file with the state after an epoch.

    Args:
        folder: The run's folder; created if needed.
        progress: The part of the state that is not tensors.
        modules: Modules by the prefix for their tensors' names.
        optimizer: The optimizer, whose state gets the prefix "optimizer".
    """
    states = {prefix: module.state_dict() for prefix, module in modules.items()}
    for index, state in optimizer.state_dict()["state"].items():
        states[f"optimizer.{index}"] = state
    content = save_tensors(
        {
            f"{prefix}.{name}": tensor.detach().cpu().contiguous()
            for prefix, state in states.items()
            for name, tensor in state.items()
        },
        metadata={"progress": progress.model_dump_json()},
    )
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / RESUME_NAME, content)


def load_progress(folder: Path) -> tuple[Progress, dict[str, Tensor]]:
    """Load the state of an unfinished run: its progress, and its tensors by name, on the CPU.

    Raises:
        CheckpointError: There is no state, or it cannot be read.
    """
    path = folder / RESUME_NAME
    if not path.is_file():
        raise CheckpointError(
            f"nothing to resume in {folder}: {RESUME_NAME} is missing; leave --resume out"
        )
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            progress = Progress.model_validate_json((file.metadata() or {})["progress"])
    except (SafetensorError, ValidationError, KeyError) as error:
        raise CheckpointError(f"{path} is not the state of an unfinished run: {error}") from error
    return progress, tensors


def restore(
    progress: Progress,
    tensors: dict[str, Tensor],
    modules: Mapping[str, nn.Module],
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LRScheduler,
) -> None:
    """Load a state from ``load_progress`` into a run's modules, optimizer and scheduler."""
    for prefix, module in modules.items():
        module.load_state_dict(_under(f"{prefix}.", tensors))
    states: dict[int, dict[str, Tensor]] = {}
    for name, tensor in _under("optimizer.", tensors).items():
        index, field = name.split(".")
        states.setdefault(int(index), {})[field] = tensor
    optimizer.load_state_dict({"state": states, "param_groups": progress.optimizer_groups})
    for weight, state in optimizer.state.items():
        for name, tensor in state.items():
            if tensor.shape == weight.shape:  # row-major in the file; here as the weight
                state[name] = torch.empty_like(weight).copy_(tensor)
    scheduler.load_state_dict(dict(progress.scheduler))


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
