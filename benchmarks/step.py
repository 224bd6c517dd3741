"""Benchmark the training step: two views, both networks, loss, backward pass, optimizer, momentum update, queue.

sce-fast bench step                    ResNet-50, batch 256, 224 pixels on a GPU; ResNet-18, 8, 64 on a CPU
sce-fast bench step --images DIR       with the loader reading image files
sce-fast bench step --frames 8         clips of 8 frames: R3D-50, batch 32, 224 pixels on a GPU; R3D-18, 2, 64 on a CPU
sce-fast bench step --videos DIR       with the loader reading video files
"""

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import torch
from torch import Tensor

from sce_fast.benchmarks.machine import machine
from sce_fast.benchmarks.measure import StageTimer
from sce_fast.benchmarks.record import write_record
from sce_fast.config import ClipsConfig, LossConfig, ModelConfig, OptimizerConfig, TrainConfig, ViewsConfig, to_json
from sce_fast.train.capture import CapturedStep
from sce_fast.train.step import STAGES, TrainingStep
from sce_fast.util.layout import FORMATS, channels_last
from sce_fast.util.terminal import progress_bar

OURS = ("loss", "momentum", "queue")  # the stages that the method adds to two networks and an optimizer
Precision = Literal["bfloat16", "float32"]
Layout = Literal["channels-last", "channels-first"]


# Options that are not given, by the device. On two CPU cores such a run takes less than a minute.
DEFAULTS: dict[str, dict[str, Any]] = {
    "cuda": {
        "model.backbone": "resnet50", "batch-size": 256, "size": 224, "precision": "bfloat16", "warmup": 5, "steps": 20,
    },
    "cpu": {
        "model.backbone": "resnet18", "batch-size": 8, "size": 64, "precision": "float32", "warmup": 2, "steps": 10,
    },
    "cuda clips": {
        "model.backbone": "r3d50", "batch-size": 32, "size": 224, "precision": "bfloat16", "warmup": 5, "steps": 10,
    },
    "cpu clips": {
        "model.backbone": "r3d18", "batch-size": 2, "size": 64, "precision": "float32", "warmup": 1, "steps": 3,
    },
}  # fmt: skip
FRAMES = 8  # of the clips of video files, unless another number is given


@dataclass(frozen=True)
class Speed:
    """The times of a training step."""

    seconds: float  # per step, without pauses between steps
    images_per_second: float  # or videos, of which each gives two clips
    stages: dict[str, float]  # median seconds of each stage
    share_of_ours: float  # loss, momentum update and queue as a share of all stages
    backend: str  # that computed the loss
    peak_bytes: int | None  # of torch's allocator, on a GPU
    graph: str | None = None  # whether the step was captured, or why not, if that was asked for
    settings: dict[str, Any] = field(default_factory=dict)


def main(
    model: ModelConfig = ModelConfig(backbone="auto"),  # noqa: B008  (frozen)
    loss: LossConfig = LossConfig(queue_dtype="bfloat16"),  # noqa: B008
    batch_size: int | None = None,
    size: int | None = None,
    precision: Literal["auto"] | Precision = "auto",
    optimizer: Literal["sgd", "lars", "adamw"] = "lars",
    images: Path | None = None,
    frames: int | None = None,
    videos: Path | None = None,
    layout: Layout = "channels-last",
    cuda_graph: bool = False,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    threads: int = 2,
    warmup: int | None = None,
    steps: int | None = None,
    out: Path | None = None,
) -> Speed:
    """Measure seconds per training step, images per second, and the share of loss, momentum update and queue.

    The images are synthetic and on the device, or come from the loader as two strong views of image files. With frames
    or videos, the views are clips.

    Args:
        model: Networks. By default the backbone is resnet50 on a GPU and resnet18 on a CPU; r3d50 and r3d18 for clips.
        loss: Loss and queue.
        batch_size: Images or videos per step; by default 256 images or 32 videos on a GPU, and 8 or 2 on a CPU.
        size: Side of the views in pixels; by default 224 on a GPU and 64 on a CPU.
        precision: Precision of autocast; float32 turns it off. auto is bfloat16 on a GPU and float32 on a CPU.
        optimizer: sgd, lars or adamw.
        images: Folder of images for the loader; synthetic images by default.
        frames: Frames of a clip; images by default, and 8 frames with videos.
        videos: Folder of videos for the loader.
        layout: Order of weights and activations in memory.
        cuda_graph: Time the step captured in one CUDA graph; the stages are those of the step as it is.
        device: auto uses a GPU if there is one.
        threads: Threads of torch on a CPU, and of the loader.
        warmup: Steps before the timing; by default 5 on a GPU, and on a CPU 2, or 1 with clips.
        steps: Timed steps, in two runs (the whole step, and stage by stage); by default 20 on a GPU and 10 on a CPU, 10
            and 3 with clips.
        out: JSON file for the record.

    Raises:
        ValueError: both images and videos or frames are given.
    """
    if images is not None and (videos is not None or frames):
        raise ValueError(f"images={images}: expected no frames and no videos with it")
    frames = FRAMES if videos is not None and frames is None else frames or 0
    place = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    given: dict[str, Any] = {
        "model.backbone": model.backbone, "batch-size": batch_size, "size": size, "precision": precision,
        "warmup": warmup, "steps": steps,
    }  # fmt: skip
    chosen = with_defaults(f"{place} clips" if frames else place, given)
    model = replace(model, backbone=chosen["model.backbone"])
    batch_size, size, warmup, steps = (int(chosen[name]) for name in ("batch-size", "size", "warmup", "steps"))
    autocast: Precision = chosen["precision"]
    threads_before, here = torch.get_num_threads(), machine()
    if place == "cpu":
        torch.set_num_threads(threads)
    torch.manual_seed(0)
    try:
        with weights_and_inputs(layout):
            if videos is not None:
                views = loaded_clips(videos, batch_size, size, frames, place, threads)
            elif images is not None:
                views = loaded(images, batch_size, size, place, threads)
            else:
                views = synthetic(batch_size, size, place, frames)
            step = training_step(model, loss, batch_size, size, autocast, optimizer, place, frames)
            speed = measure(step, views, batch_size, warmup, steps, place, cuda_graph=cuda_graph)
    finally:
        torch.set_num_threads(threads_before)
    settings = {
        "model": to_json(model), "loss": to_json(loss), "batch_size": batch_size, "size": size, "device": place,
        "precision": autocast, "optimizer": optimizer, "steps": steps,
        "images": None if images is None else str(images), "threads": threads, "frames": frames,
        "videos": None if videos is None else str(videos), "layout": layout,
    }  # fmt: skip
    speed = replace(speed, settings=settings)
    print(table(speed, here["gpu"] if place == "cuda" else here["cpu"]))
    if out is not None:
        write_record(out, {"machine": here, **asdict(speed)})
    return speed


@contextmanager
def weights_and_inputs(layout: Layout) -> Iterator[None]:
    """Have networks and inputs that are made inside laid out in this order."""
    first = {dimensions: torch.contiguous_format for dimensions in FORMATS} if layout == "channels-first" else {}
    with mock.patch.dict(FORMATS, first):
        yield


def with_defaults(kind: str, given: dict[str, Any]) -> dict[str, Any]:
    """Return the options with the defaults of a kind of run for those that are None or "auto", and print them."""
    defaults = {name: value for name, value in DEFAULTS[kind].items() if given[name] in (None, "auto")}
    if defaults:
        options = " ".join(f"--{name} {value}" for name, value in defaults.items())
        print(f"Defaults for a {'GPU' if kind.startswith('cuda') else 'CPU'}: {options}")
    return given | defaults


def training_step(
    model: ModelConfig,
    loss: LossConfig,
    batch_size: int,
    size: int,
    precision: Precision,
    optimizer: str,
    device: str,
    frames: int = 0,
) -> TrainingStep:
    """Return the trainer's own step, guard and masks included."""
    rate = 0.1  # what every optimizer accepts; the time does not depend on it
    config = TrainConfig(
        data=Path(), out=Path(), batch_size=batch_size, precision=precision, model=model, loss=loss,
        views=ViewsConfig(sizes=(size,)), clips=ClipsConfig(frames=frames),
        optimizer=OptimizerConfig(name=optimizer, base_learning_rate=rate),  # type: ignore[arg-type]
    )  # fmt: skip
    return TrainingStep(config, torch.device(device))


def measure(
    step: TrainingStep,
    views: Iterator[list[Tensor]],
    batch_size: int,
    warmup: int,
    steps: int,
    device: str,
    *,
    cuda_graph: bool = False,
) -> Speed:
    """Time the steps twice: all together, captured or not, and stage by stage."""
    captured = CapturedStep(step) if cuda_graph else None
    if captured is not None and captured.reason is None:
        warmup = max(warmup, captured.warm_up + 1)
    with progress_bar(warmup + 2 * steps, "Measuring", unit="step") as bar:

        def one(batch: list[Tensor], taken: TrainingStep | CapturedStep) -> None:
            taken([batch], number=0, learning_rate=0.01, momentum=0.99)

        def timed(batch: list[Tensor]) -> dict[str, float]:
            timer = StageTimer(device)
            step.stage = timer.stage
            one(batch, step)
            return timer.seconds()

        def take(count: int) -> None:
            for _ in range(count):
                one(next(views), captured or step)
                bar.update()

        take(warmup)
        _wait(device)
        start = time.perf_counter()
        take(steps)
        _wait(device)
        seconds = (time.perf_counter() - start) / steps
        graph = None if captured is None else captured.describe()
        captured = None  # frees the graph's memory
        turns = []
        for _ in range(steps):
            turns.append(timed(next(views)))
            bar.update()
    stages = {name: statistics.median(turn[name] for turn in turns) for name in STAGES}
    share = sum(stages[name] for name in OURS) / sum(stages.values())
    peak = torch.cuda.max_memory_allocated() if device == "cuda" else None
    return Speed(seconds, batch_size / seconds, stages, share, step.backend, peak, graph)


def synthetic(batch_size: int, size: int, device: str, frames: int = 0) -> Iterator[list[Tensor]]:
    """Yield the same two random views, or clips of so many frames, on the device repeatedly."""
    shape = (batch_size, 3, *([frames] if frames else []), size, size)
    views = [torch.randn(shape, device=device) for _ in range(2)]
    views = [view.contiguous(memory_format=channels_last(view.dim())) for view in views]
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


def loaded_clips(
    folder: Path, batch_size: int, size: int, frames: int, device: str, threads: int
) -> Iterator[list[Tensor]]:
    """Yield the loader's clips of the videos of a folder, augmented as in the papers' runs on Kinetics."""
    from sce_fast.benchmarks.video_loader import SAMPLING, VIEWS
    from sce_fast.data.loader import TrainingLoader
    from sce_fast.data.video.index import index_videos
    from sce_fast.data.video.views import RandomClips

    index, where = index_videos(folder, threads=threads), "gpu" if device == "cuda" else "cpu"
    sampling, views = replace(SAMPLING, frames=frames), tuple(replace(view, size=size) for view in VIEWS)
    clips = RandomClips(index, sampling, views, seed=0, threads=threads, device=where)
    for batch in TrainingLoader(index, clips, batch_size=batch_size):
        yield [view.to(device, non_blocking=True) for view in batch.views]


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def table(speed: Speed, processor: str) -> str:
    """Return the times as text."""
    s = speed.settings
    total = sum(speed.stages.values())
    kind, size = ("clips", f"{s['frames']} × {s['size']}") if s["frames"] else ("images", s["size"])
    folder = s["images"] or s["videos"]
    source = f"synthetic {kind}" if folder is None else f"{kind} of {folder}"
    rate = f"{2 * speed.images_per_second:.0f} clips/s" if s["frames"] else f"{speed.images_per_second:.0f} images/s"
    layout = "" if s["layout"] == "channels-last" else f", {s['layout']}"
    lines = [
        f"{s['model']['backbone']}, batch {s['batch_size']}, {size} pixels, {s['precision']}{layout}, {source}, "
        f"{processor}: {1e3 * speed.seconds:.1f} ms per step, {rate}",
        f"  loss computed by backend {speed.backend}",
    ]
    lines += [] if speed.graph is None else [f"  CUDA graph: {speed.graph}"]
    lines += [f"  {name:<10}{1e3 * t:>10.3f} ms{t / total:>9.2%}" for name, t in speed.stages.items()]
    lines.append(f"  loss, momentum update and queue together {speed.share_of_ours:.2%}")
    return "\n".join(lines)


if __name__ == "__main__":
    import tyro

    tyro.cli(main)
