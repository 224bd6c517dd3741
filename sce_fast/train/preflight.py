"""Checks of a new run before its folder is made: that it can run here, and that it does not write into its data."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from sce_fast.config import TrainConfig
from sce_fast.data.index import Index
from sce_fast.loss.backends import choose
from sce_fast.loss.problem import checked_problem
from sce_fast.train.folder import CHECKPOINTS
from sce_fast.train.step import TrainingStep
from sce_fast.util.files import printable
from sce_fast.util.layout import channels_last

REPLACED = (CHECKPOINTS, "tensorboard")  # folders of a run in which it removes files


def require_apart(config: TrainConfig, indices: dict[str, Index]) -> None:
    """Raise an error if the run folder lies among its data, where its pictures would become data.

    Links are resolved. Files of a list file may lie anywhere.

    Args:
        config: of the run.
        indices: setting → the images or videos that it names, as "data".

    Raises:
        ValueError: see above, or data lie where the run removes files.
    """
    out = Path(os.path.realpath(config.out))
    for setting, index in indices.items():
        root = index.listing.root
        named = Path(config.data if setting == "data" else getattr(config.evaluation, setting.rpartition(".")[2]))
        if named.is_dir():
            packed = index.listing.packed
            for folder in _folders(root, index.listing.names if packed is None else packed.files):
                if out == folder or folder in out.parents:
                    where = "is" if out == folder else "lies in"
                    raise ValueError(
                        f"out={printable(config.out)} {where} {setting}={printable(named)}, where its pictures would "
                        f"lie among the {index.kind}; choose a folder outside with --out"
                    )
        real = Path(os.path.realpath(root))
        for name in REPLACED:
            if out / name in (real, *real.parents):
                raise ValueError(
                    f"{setting}={printable(named)} lies in {name} of out={printable(config.out)}, where the run "
                    "removes files; choose another --out"
                )


def _folders(root: Path, names: Sequence[str]) -> Iterator[Path]:
    """Yield the real path of a folder of data, and of all folders in it on the way to a file."""
    seen = {""}
    for folder in {name.rpartition("/")[0] for name in names}:
        while folder not in seen:
            seen.add(folder)
            folder = os.path.dirname(folder)
    for folder in seen:
        yield Path(os.path.realpath(os.path.join(root, folder)))


def describe_long_queue(config: TrainConfig, samples: int, kind: str = "images") -> str | None:
    """Return a warning if the queue holds the keys of more than half of the samples, or None."""
    held = config.loss.queue_size / (config.model.key_views if config.model.symmetric else 1)
    if 2 * held <= samples:
        return None
    share = f"{held / samples:.0%} of the" if held < samples else "all"
    return (
        f"Warning: loss.queue_size={config.loss.queue_size}: the queue holds the keys of {share} {samples:,} {kind}, "
        f"so many {kind} meet an earlier key of their own among the negatives; a queue of a quarter of the {kind} is "
        "safer"
    )


def require_runnable(step: TrainingStep) -> None:
    """Try the networks on two black images or clips of each size, and the choice of the loss's backend; change nothing.

    Raises:
        ValueError: the networks do not take these inputs or this precision here, the backend cannot serve them, or
            torch.compile does not work.
    """
    config = step.config
    key = torch.full((2, config.model.dim), config.model.dim**-0.5, dtype=step.dtype, device=step.device)
    query = key.clone().requires_grad_()
    settings = config.loss.arguments()
    backend = settings.pop("backend")
    if config.loss.batch_keys:
        settings["batch_keys"] = key.to(step.candidate_dtype)
    queue = None if step.queue is None else step.queue.keys
    problem = checked_problem(query, key, queue, needs_statistics=True, **settings)
    try:
        choose(backend, problem)
    except ValueError as error:
        raise ValueError(f"loss.{error}") from error
    if config.compile:
        try:
            torch.compile(torch.sin)(torch.zeros(2, device=step.device))
        except Exception as error:
            raise ValueError(f"compile=True: torch.compile does not work here: {error}") from error
    for shape in config.input_shapes():
        try:
            _try_networks(step, shape)
        except Exception as error:
            inputs = f"clips of {config.clips.frames} frames" if config.clips.frames else "images"
            raise ValueError(
                f"model.backbone={config.model.backbone!r} does not take {inputs} of {shape[-1]} pixels in "
                f"precision={config.precision!r} on {step.device}: {type(error).__name__}: {error}"
            ) from error


def _try_networks(step: TrainingStep, shape: tuple[int, ...]) -> None:
    inputs = torch.zeros(2, *shape, device=step.device, dtype=step.dtype)
    inputs = inputs.to(memory_format=channels_last(inputs.dim()))
    devices = [step.device] if step.device.type == "cuda" else []
    step.model.eval()  # batch statistics stay
    try:
        with (
            torch.no_grad(),
            torch.random.fork_rng(devices),
            torch.autocast(step.device.type, dtype=step.autocast, enabled=step.autocast is not None),
        ):
            step.model.encode_query(inputs)
    finally:
        step.model.train()
