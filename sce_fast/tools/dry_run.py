"""A dry run: everything of a training run but the training, in a temporary folder, and two steps with a small batch."""

import dataclasses
import io
import math
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from pathlib import Path

import numpy as np
from torch import Tensor, nn

from sce_fast.config import LossConfig, TrainConfig, replace
from sce_fast.data.image.augment import Augmentation
from sce_fast.distributed import Ranks, process_group
from sce_fast.tools.scan import KindScan
from sce_fast.train import Trainer
from sce_fast.train.curves import import_wandb
from sce_fast.train.estimate import in_mib, memory
from sce_fast.train.folder import choose_device, device_name, require_resumable
from sce_fast.train.preflight import require_apart
from sce_fast.util.files import printable

STEPS = 2
ROWS = 4  # images or videos of each rank in a step
WHOLE_FRAMES = 1.25  # bytes that decoding a batch needs, per byte of its whole frames; docs/video.md says how measured
QUEUED_STEPS = 2  # whose keys the queue of these steps holds


def dry_run(config: TrainConfig) -> None:
    """Print what a run would do, and take two steps with a small batch; also under torchrun.

    Networks, loader and evaluation are built and checked as for the run, in a temporary folder. Nothing is written to
    the run folder; lists of files are cached as always.

    Raises:
        ValueError, FileNotFoundError: the run would be refused.
        RuntimeError: a loss or gradient is not finite, or too many files cannot be decoded.
    """
    if config.wandb is not None:
        import_wandb()
    with process_group(choose_device(config.device)) as ranks, _temporary_folder(ranks) as folder:
        for lines in _report(config, folder, ranks):
            if ranks.is_first:
                print(lines, flush=True)


def _report(config: TrainConfig, folder: Path, ranks: Ranks) -> Iterator[str]:
    newest = ranks.first(lambda: None if (path := require_resumable(config)) is None else path.name)
    if newest is not None:  # which has the weights that the run began with, and more
        config = dataclasses.replace(config, init=None)
    trainer = Trainer(_elsewhere(config, folder / "run"), ranks)
    evaluated = dict(zip(("evaluation.train", "evaluation.test"), trainer.evaluation.indices, strict=False))
    require_apart(config, {"data": trainer.index, **evaluated})
    place = f"a resume would go on from {newest}" if newest else "a run would begin there"
    yield f"Dry run: nothing is written to {printable(config.out)}; {place}\n"
    kind = trainer.index.kind.removesuffix("s")
    scan = KindScan(kind, trainer.index, dict(trainer.index.bad), decoded=False, seconds=0.0)
    yield scan.table(trainer.index.listing.describe_ignored()) + "\n"
    for setting, index in evaluated.items():
        yield f"{setting}: {len(index)} {kind} files of {len(index.listing.classes)} classes"
    yield _plan(config, trainer)
    yield _networks(trainer.model)
    yield memory(trainer.training_step).describe(ranks.size)
    if trainer.index.kind == "videos":
        yield _decoding(config, trainer)
    _close(trainer)
    del trainer  # its networks make room for those of the steps
    yield from _small_steps(config, folder / "steps", ranks)


def _plan(config: TrainConfig, trainer: Trainer) -> str:
    """Return lines about views, steps, learning rate and loss."""
    sampling = config.clips.sampling()
    lines = list(map(_view_line, config.views.names, config.views.augmentations()))
    if sampling is not None:
        length = f"{sampling.seconds:g} s" if sampling.stride is None else f"one frame in {sampling.stride}"
        difference = f", temporal difference {sampling.temporal_difference:g}" if sampling.temporal_difference else ""
        lines.append(f"Clips: {sampling.frames} frames, {length}, sampler {sampling.sampler}{difference}")
    steps, optimizer, parts = trainer.steps_per_epoch, config.optimizer, config.accumulation
    on = device_name(trainer.device) + (f", {trainer.ranks.size} ranks" if trainer.ranks.size > 1 else "")
    in_parts = f", in {parts} parts" if parts > 1 else ""
    lines += [
        f"Steps: {config.epochs:,} epochs of {steps:,} steps of {config.batch_size} {config.kind}{in_parts}: "
        f"{trainer.total_steps:,} steps, {round(optimizer.warmup_epochs * steps):,} of them warm-up; on {on}, "
        f"{config.precision}",
        f"Peak learning rate: {config.learning_rate:.4g} = {optimizer.describe_scaling(config.batch_size)} with "
        f"{optimizer.name}, weight decay {optimizer.weight_decay:g}",
        _loss_line(config),
    ]
    if momentum := config.model.evaluation_momentum:
        lines.append(f"Evaluated: the student's average over the steps with momentum {momentum:g}")
    return "\n".join(lines)


def _view_line(name: str, view: Augmentation) -> str:
    low, high = view.scale
    text = f"View {name}: {view.size} pixels, crop {low:g} to {high:g} of the area, flip {view.flip:g}"
    if view.jitter:
        strengths = "/".join(f"{value:g}" for value in (view.brightness, view.contrast, view.saturation, view.hue))
        text += f", jitter {view.jitter:g} of {strengths}"
    for setting in ("grayscale", "blur", "solarize"):
        if value := getattr(view, setting):
            text += f", {setting} {value:g}"
    return text


def _loss_line(config: TrainConfig) -> str:
    loss, model, views = config.loss, config.model, len(config.views.names)
    terms = model.key_views * (views - 1) if model.symmetric else views - 1
    each = "every other view" if model.symmetric else "the first view"
    warmup = loss.target_temperature_warmup_epochs
    tau_m = _warmed_up(loss.target_temperature_start, loss.target_temperature, warmup)
    return (
        f"Loss: the mean of {terms} term{'' if terms == 1 else 's'}, queries of each view against keys of {each}; "
        f"τ {loss.temperature:g}, τ_m {tau_m}, λ {_coefficient(loss)}; {_candidates(config)}"
    )


def _coefficient(loss: LossConfig) -> str:
    text = _warmed_up(loss.coefficient_start, loss.coefficient, loss.coefficient_warmup_epochs)
    return text if loss.coefficient_end is None else f"{text}, then to {loss.coefficient_end:g}"


def _warmed_up(start: float, value: float, epochs: float) -> str:
    return f"{start:g} to {value:g} in {epochs:g} epochs" if epochs else f"{value:g}"


def _candidates(config: TrainConfig) -> str:
    loss, at_once = config.loss, config.batch_size // config.accumulation
    each = f"{config.model.dim} numbers in {loss.queue_dtype}"
    queue = f"queue of {loss.queue_size:,} keys of {each}" if loss.queue_size else "no queue"
    return queue + (f", and the other {at_once - 1:,} keys of the view in the batch" if loss.batch_keys else "")


def _networks(model: nn.Module) -> str:
    parts = {name: getattr(model, name) for name in ("backbone", "projector", "predictor")}
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items() if part is not None}
    listed = ", ".join(f"{name} {count:,}" for name, count in counts.items())
    return f"Parameters: {sum(counts.values()):,} ({listed})"


def _decoding(config: TrainConfig, trainer: Trainer) -> str:
    """Return a line about the memory that the frames of one batch need before they are resized."""
    sizes = trainer.index.sizes[[i for i in range(len(trainer.index)) if i not in trainer.index.bad]]
    frames = config.clips.frames * len(config.views.names) * (1 + config.clips.temporal_difference)
    count = WHOLE_FRAMES * trainer.loader.batch_size * frames * 3 * float(sizes.prod(axis=1, dtype=np.int64).mean())
    height, width = np.median(sizes, axis=0).astype(int).tolist()
    return (
        f"Decoding: about {in_mib(round(count))} for {trainer.loader.batch_size} videos at a time of, in the median, "
        f"{width} × {height} pixels"
    )


def _small_steps(config: TrainConfig, folder: Path, ranks: Ranks) -> Iterator[str]:
    """Take steps with the run's networks, a small batch and a short queue; yield a line about each."""
    small = reduced(config, ranks.size)
    # The run's own trainer has said all there is to say about the data.
    with redirect_stderr(io.StringIO()):
        trainer = Trainer(_elsewhere(small, folder), ranks)
    step, captured = trainer.training_step, trainer.captured_step
    steps = STEPS if captured is None or captured.reason else captured.warm_up + 1  # the last one is captured
    yield (
        f"{steps} steps of the same networks, reduced to a batch of {small.batch_size} and "
        f"{f'a queue of {small.loss.queue_size}' if small.loss.queue_size else 'no queue'}, at the peak rate for this "
        f"batch, {small.learning_rate:.3g}:"
    )
    take = captured or step
    for number in range(steps):
        started = time.perf_counter()
        views = next(trainer.loader).views
        loaded = time.perf_counter()
        measures = take([views], number=number, learning_rate=small.learning_rate, momentum=small.model.momentum)
        loss = float(measures["loss"])  # waits for the device
        if int(step.guard.failed_step) >= 0:
            raise RuntimeError(f"the loss or a gradient of step {number + 1} is not finite: loss {loss}")
        seconds = time.perf_counter() - loaded
        yield f"  step {number + 1}: loss {loss:.4f}, {loaded - started:.2f} s for data, {seconds:.2f} s for the step"
    yield f"Views {_shapes(views)} each; loss by the backend {step.backend}"
    if captured is not None:
        yield f"CUDA graph: {captured.describe()}"
    _close(trainer)


def reduced(config: TrainConfig, ranks: int) -> TrainConfig:
    """Return the config of steps with few rows, in one part, with a queue of a few steps and without evaluation."""
    together = config.batch_size // config.accumulation  # rows that all ranks see at a time
    groups = config.model.batch_norm_groups if config.model.batch_norm == "shuffle" else 1
    unit = math.lcm(ranks, groups)
    least = max(ROWS * ranks, 2 * groups)  # two rows of each group
    batch = min(-(-least // unit) * unit, together)
    keys = batch * (config.model.key_views if config.model.symmetric else 1)
    return replace(
        config,
        batch_size=batch,
        accumulation=1,
        loss={"queue_size": min(QUEUED_STEPS * keys, config.loss.queue_size)},
        evaluation={"train": None, "test": None},
    )


def _elsewhere(config: TrainConfig, out: Path) -> TrainConfig:
    """Return the config of a new run in another folder, without pictures and Weights & Biases."""
    return dataclasses.replace(
        config,
        out=out,
        resume=False,
        accept_changed_data=False,
        stretch_schedule=False,
        wandb=None,
        pictures=False,
    )


def _shapes(views: Sequence[Tensor]) -> str:
    return ", ".join(" × ".join(map(str, shape)) for shape in dict.fromkeys(tuple(view.shape) for view in views))


def _close(trainer: Trainer) -> None:
    trainer.loader.close()
    trainer.log.close(finished=False)


@contextmanager
def _temporary_folder(ranks: Ranks) -> Iterator[Path]:
    folder = ranks.first(lambda: tempfile.mkdtemp(prefix="sce-fast-dry-run-"))
    try:
        yield Path(folder)
    finally:
        if ranks.is_first:
            shutil.rmtree(folder, ignore_errors=True)
