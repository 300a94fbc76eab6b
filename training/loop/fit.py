"""The training loop: AdamW with a one-cycle schedule, and augmentation of whole batches.

All computations of a step stay on the device; no value is copied to the CPU before the end of an
epoch. Convolutions run in the channels-last format, which is faster than channels first.

A task (``training.loop.tasks``) defines the loss and the number of images per sample. The final
weights are those of the last epoch, when the learning rate has annealed, or their moving average
(``training.loop.ema``). Nothing is selected by validation metrics, so these are not biased upwards
as a maximum of noisy values would be. Test images are not passed to this module.

Shape suffixes: N images, C channels, H and W pixels, K classes.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from tqdm import tqdm

from training.checkpoint import AnyEpoch
from training.config import TrainConfig
from training.data import LabelledImages, fingerprint, standardise, to_pixels
from training.data.augment import augment
from training.evaluation.prediction import forward_tuple
from training.loop.distillation import Teachers
from training.loop.distributed import DistributedContext, current_context
from training.loop.ema import averaged_model
from training.loop.resume import Progress, load_progress, restore, save_progress
from training.loop.tasks import Task, Trained, task_of
from training.models import build_model

# Epoch e of seed s is seeded with s * this + e: runs of up to so many epochs share no epoch's seed.
SEED_STRIDE = 100_003
# Added per process to seed its layers; on a CPU, only the low 32 bits of a seed have an effect.
PROCESS_STRIDE = 1_000_000_007


class DivergedError(ValueError):
    """The loss became NaN or infinite; the message has the epoch and what to try."""


@dataclass(frozen=True)
class Fitted:
    """A trained module (the last epoch's weights, on its device) and the metrics of each epoch."""

    module: nn.Module
    history: list[AnyEpoch]


@dataclass
class _Run:
    """A run: its fixed settings, and its state, which changes from step to step."""

    config: TrainConfig
    task: Task
    context: DistributedContext
    steps_per_epoch: int
    module: nn.Module
    averaged: AveragedModel | None
    # The module, possibly wrapped to average gradients, possibly compiled.
    called: Callable[..., Any]
    teachers: Teachers | None
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.OneCycleLR
    history: list[AnyEpoch]

    @property
    def kept(self) -> nn.Module:
        """The module that is evaluated and saved: the average, if there is one."""
        return self.averaged.module if self.averaged else self.module

    @property
    def modules(self) -> dict[str, nn.Module]:
        """The modules whose tensors are part of the run's state, by the prefix of their names."""
        return {"module": self.module} | ({"ema": self.averaged} if self.averaged else {})


def fit(  # noqa: PLR0913 - a run, its images, its teachers, and where its state goes
    config: TrainConfig,
    train: LabelledImages,
    validation: LabelledImages,
    *,
    device: torch.device,
    folder: Path,
    data_sha256: str,
    resume: bool = False,
    teachers: Sequence[nn.Module] = (),
    on_epoch: Callable[[AnyEpoch], None] = lambda record: None,
) -> Fitted:
    """Train a model, and save the state in ``folder`` after each epoch so that it can be resumed.

    Processes that have joined (``training.loop.distributed``) train together; only the first one
    saves states. The same config, data, device, threads and versions give the same weights,
    whether or not the run is resumed.

    Args:
        config: What to train and how.
        train: Images to train on.
        validation: Images on which each epoch is measured; nothing is selected by the results.
        device: Where to compute; the whole training set is copied there.
        folder: Folder for the resume state.
        data_sha256: The data set's fingerprint; a run can only be resumed on the same data.
        resume: Continue from the state in ``folder`` instead of starting anew.
        teachers: The networks that ``config.distil`` names, in its order.
        on_epoch: Called with each epoch's metrics as soon as they are known, in each process.

    Raises:
        CheckpointError: There is no state to resume, or it has another config or data set.
        DivergedError: The loss became NaN or infinite.
    """
    make_deterministic(device)
    train = train.to(device)
    run = _start(config, device, len(train), teachers)
    images = {"data_sha256": data_sha256, "split_sha256": fingerprint(validation)}
    if resume:
        progress, tensors = load_progress(folder)
        progress.require_same(config, **images, folder=folder)
        restore(progress, tensors, run.modules, run.optimizer, run.scheduler)
        run.history = list(progress.history)
    for epoch in range(len(run.history), config.epochs):
        record = _epoch(run, train, validation, epoch)
        run.history.append(record)
        if run.context.is_first:
            progress = Progress(
                config=config,
                **images,
                history=run.history,
                scheduler=run.scheduler.state_dict(),
                optimizer_groups=run.optimizer.state_dict()["param_groups"],
            )
            save_progress(folder, progress, run.modules, run.optimizer)
        on_epoch(record)
    # The format of a module loaded from its checkpoint, so that metrics are bit-equal.
    module = run.kept.eval().to(memory_format=torch.contiguous_format)
    return Fitted(module, run.history)


def seed_epoch(
    config: TrainConfig, epoch: int, context: DistributedContext, device: torch.device
) -> torch.Generator:
    """Seed an epoch from the run's seed and its number, so that a resumed run draws the same.

    PyTorch's global generators, which layers such as dropout draw from, are seeded for this
    process: each process drops other units in its share of a batch.

    Returns:
        The generator for the order of the images and their augmentation, on the device; it is
        the same in all processes.
    """
    seed = config.seed * SEED_STRIDE + epoch + 1
    torch.manual_seed(seed + (context.rank + 1) * PROCESS_STRIDE)
    return torch.Generator(device).manual_seed(seed)


def make_deterministic(device: torch.device) -> None:
    """Make PyTorch use only deterministic algorithms.

    On CUDA, an operator without one logs a warning instead of stopping the run, because which
    operators these are was not measured on a GPU.
    """
    on_cuda = device.type == "cuda"
    torch.use_deterministic_algorithms(True, warn_only=on_cuda)
    # By default, each new tensor is filled with NaN, to reveal reads of uninitialised memory.
    # That takes a tenth of the time.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    if on_cuda:
        torch.backends.cudnn.benchmark = False


def parameter_groups(module: nn.Module, config: TrainConfig) -> list[dict[str, Any]]:
    """The optimizer's groups; parameters with one axis (norms, biases) may go without decay."""
    if config.decay_norms_and_biases:
        return [{"params": list(module.parameters()), "weight_decay": config.weight_decay}]
    return [
        {
            "params": [p for p in module.parameters() if (p.ndim > 1) == decayed],
            "weight_decay": config.weight_decay if decayed else 0.0,
        }
        for decayed in (True, False)
    ]


def _start(
    config: TrainConfig, device: torch.device, images: int, teachers: Sequence[nn.Module]
) -> _Run:
    context = current_context()
    context.require_equal_shares(config.batch_size)
    steps = images // config.batch_size
    if steps == 0:
        raise ValueError(
            f"batch_size {config.batch_size} is larger than the {images} training images; "
            "use a smaller one"
        )
    torch.manual_seed(config.seed * SEED_STRIDE)
    module = build_model(config.model, config.architecture)
    module = module.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(
        parameter_groups(module, config), lr=config.max_learning_rate, fused=True
    )
    called: Callable[..., Any] = context.wrapped(module)
    if config.compiled:
        # On CUDA, the passes are recorded once and replayed: launches dominate a small network.
        called = torch.compile(called, mode="reduce-overhead" if device.type == "cuda" else None)
    return _Run(
        config=config,
        task=task_of(config),
        context=context,
        steps_per_epoch=steps,
        module=module,
        averaged=averaged_model(module, config.ema_decay) if config.ema_decay else None,
        called=called,
        teachers=Teachers.of(config, teachers, device),
        optimizer=optimizer,
        scheduler=torch.optim.lr_scheduler.OneCycleLR(
            optimizer, config.max_learning_rate, total_steps=steps * config.epochs + 1
        ),
        history=[],
    )


def _epoch(run: _Run, train: LabelledImages, validation: LabelledImages, epoch: int) -> AnyEpoch:
    config, context, device = run.config, run.context, train.images.device
    generator = seed_epoch(config, epoch, context, device)
    count = run.steps_per_epoch * config.batch_size
    # Each input has its own order of the images, so two inputs get other pairs in each epoch.
    orders = [
        torch.randperm(len(train), device=device, generator=generator)[:count]
        for _ in range(run.task.inputs)
    ]
    loss_sum = torch.zeros((), device=device)
    correct = torch.zeros((), device=device, dtype=torch.int64)
    bar = tqdm(
        zip(*(order.split(config.batch_size) for order in orders), strict=True),
        total=run.steps_per_epoch,
        desc=f"{config.model} epoch {epoch + 1}/{config.epochs}",
        unit_scale=config.batch_size,
        unit="img",
        leave=False,
        # None hides the bar without a terminal; only the first process may show one.
        disable=None if context.is_first else True,
    )
    run.module.train()
    for index in bar:
        loss, batch_correct = _step(run, [train.select(context.share(i)) for i in index], generator)
        loss_sum += loss
        correct += batch_correct
    mean_loss = float(context.total(loss_sum) / (run.steps_per_epoch * context.size))
    if not math.isfinite(mean_loss):
        raise DivergedError(
            f"the training loss became {mean_loss} in epoch {epoch + 1}; "
            f"try a lower --learning-rate than {config.max_learning_rate}"
        )
    learning_rate = float(run.scheduler.get_last_lr()[0])
    trained = Trained(epoch, mean_loss, int(context.total(correct)) / count, learning_rate)
    return run.task.validate(run.kept, validation, trained)


def _step(
    run: _Run, batch: Sequence[LabelledImages], generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Make one update; return the loss on this process's share and its correct answers."""
    config, context = run.config, run.context
    inputs_NCHW = [
        standardise(
            augment(to_pixels(part.images), config.augment, generator, context.size, context.share)
        )
        for part in batch
    ]
    labels_N = [part.labels for part in batch]
    in_bfloat16 = config.precision == "bfloat16"
    with torch.autocast(inputs_NCHW[0].device.type, torch.bfloat16, enabled=in_bfloat16):
        outputs = forward_tuple(run.called, inputs_NCHW)
        soft_targets_NK = run.teachers.soft_targets(inputs_NCHW[0]) if run.teachers else None
    outputs = tuple(output.float() for output in outputs)
    loss = run.task.loss(outputs, inputs_NCHW, labels_N, config.label_smoothing)
    if run.teachers and soft_targets_NK is not None:
        loss = run.teachers.mixed_loss(loss, outputs[0], soft_targets_NK)
    run.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    run.optimizer.step()
    run.scheduler.step()
    if run.averaged:
        run.averaged.update_parameters(run.module)
    return loss.detach(), run.task.correct(outputs, labels_N)
