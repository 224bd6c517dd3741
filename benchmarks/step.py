"""Benchmark the training step: two views, both networks, loss, backward pass, optimizer, momentum update, queue.

sce-fast bench step                    ResNet-50, batch 256, 224 pixels on a GPU; ResNet-18, 8, 64 on a CPU
sce-fast bench step --images DIR       with the loader reading image files
"""

import statistics
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from sce_fast.benchmarks.machine import machine
from sce_fast.benchmarks.measure import StageTimer
from sce_fast.benchmarks.record import write_record
from sce_fast.config import LossConfig, ModelConfig, OptimizerConfig, TrainConfig, ViewsConfig, to_json
from sce_fast.train.step import STAGES, TrainingStep
from sce_fast.util.terminal import progress_bar

OURS = ("loss", "momentum", "queue")  # the stages that the method adds to two networks and an optimizer
Precision = Literal["bfloat16", "float32"]


# Options that are not given, by the device. On two CPU cores such a run takes less than a minute.
DEFAULTS: dict[str, dict[str, Any]] = {
    "cuda": {
        "model.backbone": "resnet50", "batch-size": 256, "size": 224, "precision": "bfloat16", "warmup": 5, "steps": 20,
    },
    "cpu": {
        "model.backbone": "resnet18", "batch-size": 8, "size": 64, "precision": "float32", "warmup": 2, "steps": 10,
    },
}  # fmt: skip


@dataclass(frozen=True)
class Speed:
    """The times of a training step."""

    seconds: float  # per step, without pauses between steps
    images_per_second: float
    stages: dict[str, float]  # median seconds of each stage
    share_of_ours: float  # loss, momentum update and queue as a share of all stages
    backend: str  # that computed the loss
    peak_bytes: int | None  # of torch's allocator, on a GPU
    settings: dict[str, Any] = field(default_factory=dict)


def main(
    model: ModelConfig = ModelConfig(backbone="auto"),  # noqa: B008  (frozen)
    loss: LossConfig = LossConfig(queue_dtype="bfloat16"),  # noqa: B008
    batch_size: int | None = None,
    size: int | None = None,
    precision: Literal["auto"] | Precision = "auto",
    optimizer: Literal["sgd", "lars", "adamw"] = "lars",
    images: Path | None = None,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    threads: int = 2,
    warmup: int | None = None,
    steps: int | None = None,
    out: Path | None = None,
) -> Speed:
    """Measure seconds per training step, images per second, and the share of loss, momentum update and queue.

    The images are synthetic and on the device, or come from the loader as two strong views of image files.

    Args:
        model: Networks. By default the backbone is resnet50 on a GPU and resnet18 on a CPU.
        loss: Loss and queue.
        batch_size: Images per step; by default 256 on a GPU and 8 on a CPU.
        size: Side of the views in pixels; by default 224 on a GPU and 64 on a CPU.
        precision: Precision of autocast; float32 turns it off. auto is bfloat16 on a GPU and float32 on a CPU.
        optimizer: sgd, lars or adamw.
        images: Folder of images for the loader; synthetic images by default.
        device: auto uses a GPU if there is one.
        threads: Threads of torch on a CPU, and of the loader.
        warmup: Steps before the timing; by default 5 on a GPU and 2 on a CPU.
        steps: Timed steps, in two runs (the whole step, and stage by stage); by default 20 on a GPU and 10 on a CPU.
        out: JSON file for the record.
    """
    place = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    given: dict[str, Any] = {
        "model.backbone": model.backbone, "batch-size": batch_size, "size": size, "precision": precision,
        "warmup": warmup, "steps": steps,
    }  # fmt: skip
    chosen = with_defaults(place, given)
    model = replace(model, backbone=chosen["model.backbone"])
    batch_size, size, warmup, steps = (int(chosen[name]) for name in ("batch-size", "size", "warmup", "steps"))
    autocast: Precision = chosen["precision"]
    threads_before, here = torch.get_num_threads(), machine()
    if place == "cpu":
        torch.set_num_threads(threads)
    torch.manual_seed(0)
    try:
        views = (
            synthetic(batch_size, size, place) if images is None else loaded(images, batch_size, size, place, threads)
        )
        step = training_step(model, loss, batch_size, size, autocast, optimizer, place)
        speed = measure(step, views, batch_size, warmup, steps, place)
    finally:
        torch.set_num_threads(threads_before)
    settings = {
        "model": to_json(model), "loss": to_json(loss), "batch_size": batch_size, "size": size, "device": place,
        "precision": autocast, "optimizer": optimizer, "steps": steps,
        "images": None if images is None else str(images), "threads": threads,
    }  # fmt: skip
    speed = replace(speed, settings=settings)
    print(table(speed, here["gpu"] if place == "cuda" else here["cpu"]))
    if out is not None:
        write_record(out, {"machine": here, **asdict(speed)})
    return speed


def with_defaults(device: str, given: dict[str, Any]) -> dict[str, Any]:
    """Return the options with the device's defaults for those that are None or "auto", and print these defaults."""
    defaults = {name: value for name, value in DEFAULTS[device].items() if given[name] in (None, "auto")}
    if defaults:
        options = " ".join(f"--{name} {value}" for name, value in defaults.items())
        print(f"Defaults for a {'GPU' if device == 'cuda' else 'CPU'}: {options}")
    return given | defaults


def training_step(
    model: ModelConfig, loss: LossConfig, batch_size: int, size: int, precision: Precision, optimizer: str, device: str
) -> TrainingStep:
    """Return the trainer's own step, guard and masks included."""
    rate = 0.1  # what every optimizer accepts; the time does not depend on it
    config = TrainConfig(
        data=Path(), out=Path(), batch_size=batch_size, precision=precision, model=model, loss=loss,
        views=ViewsConfig(sizes=(size,)),
        optimizer=OptimizerConfig(name=optimizer, base_learning_rate=rate),  # type: ignore[arg-type]
    )  # fmt: skip
    return TrainingStep(config, torch.device(device))


def measure(
    step: TrainingStep, views: Iterator[list[Tensor]], batch_size: int, warmup: int, steps: int, device: str
) -> Speed:
    """Time the steps twice: all together, and stage by stage."""
    with progress_bar(warmup + 2 * steps, "Measuring", unit="step") as bar:

        def one(batch: list[Tensor]) -> None:
            step([batch], number=0, learning_rate=0.01, momentum=0.99)

        def timed(batch: list[Tensor]) -> dict[str, float]:
            timer = StageTimer(device)
            step.stage = timer.stage
            one(batch)
            return timer.seconds()

        def take(count: int) -> None:
            for _ in range(count):
                one(next(views))
                bar.update()

        take(warmup)
        _wait(device)
        start = time.perf_counter()
        take(steps)
        _wait(device)
        seconds = (time.perf_counter() - start) / steps
        turns = []
        for _ in range(steps):
            turns.append(timed(next(views)))
            bar.update()
    stages = {name: statistics.median(turn[name] for turn in turns) for name in STAGES}
    share = sum(stages[name] for name in OURS) / sum(stages.values())
    peak = torch.cuda.max_memory_allocated() if device == "cuda" else None
    return Speed(seconds, batch_size / seconds, stages, share, step.backend, peak)


def synthetic(batch_size: int, size: int, device: str) -> Iterator[list[Tensor]]:
    """Yield the same two random views on the device repeatedly."""
    views = [torch.randn(batch_size, 3, size, size, device=device) for _ in range(2)]
    views = [view.contiguous(memory_format=torch.channels_last) for view in views]
    while True:
        yield views


def loaded(folder: Path, batch_size: int, size: int, device: str, threads: int) -> Iterator[list[Tensor]]:
    """Yield the loader's strong views of the images of a folder."""
    from sce_fast.data.image.views import RandomViews
    from sce_fast.data.index import index_images
    from sce_fast.data.loader import TrainingLoader

    augmentations = ViewsConfig(names=("strong", "strong"), sizes=(size,)).augmentations()
    index, where = index_images(folder, threads=threads), "gpu" if device == "cuda" else "cpu"
    views = RandomViews(index, augmentations, seed=0, threads=threads, device=where)
    for batch in TrainingLoader(index, views, batch_size=batch_size):
        yield [view.to(device, non_blocking=True).contiguous(memory_format=torch.channels_last) for view in batch.views]


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def table(speed: Speed, processor: str) -> str:
    """Return the times as text."""
    s = speed.settings
    total = sum(speed.stages.values())
    source = "synthetic images" if s["images"] is None else f"images of {s['images']}"
    lines = [
        f"{s['model']['backbone']}, batch {s['batch_size']}, {s['size']} pixels, {s['precision']}, {source}, "
        f"{processor}: {1e3 * speed.seconds:.1f} ms per step, {speed.images_per_second:.0f} images/s",
        f"  loss computed by backend {speed.backend}",
    ]
    lines += [f"  {name:<10}{1e3 * t:>10.3f} ms{t / total:>9.2%}" for name, t in speed.stages.items()]
    lines.append(f"  loss, momentum update and queue together {speed.share_of_ours:.2%}")
    return "\n".join(lines)


if __name__ == "__main__":
    import tyro

    tyro.cli(main)
