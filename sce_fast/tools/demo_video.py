"""The video demo: SCE learns from moving digits, and a table shows what it has learned of motion and digit."""

import dataclasses
from itertools import product
from pathlib import Path

import torch
from torch import Tensor

from sce_fast.config import Device, TrainConfig
from sce_fast.data.sources import list_videos
from sce_fast.evaluate import knn_top1, logistic_top1, pixel_features
from sce_fast.recipes.demo_video import demo_video
from sce_fast.tools.demo import STAGES, make_room, untrained_backbone
from sce_fast.tools.moving_digits import LABELS, PARTS, MovingDigits, write_moving_digits
from sce_fast.tools.report import write_report
from sce_fast.train import Trainer
from sce_fast.train.folder import SUMMARY, write_summary
from sce_fast.util.files import printable

PIXELS = 16  # side of a frame whose raw pixels are compared


def demo_video_config(videos: MovingDigits, out: Path, *, seed: int, epochs: int | None, device: Device) -> TrainConfig:
    """Return the config of the video demo's recipe with these changes; the kNN during training classifies motions."""
    length = {} if epochs is None else {"epochs": epochs}
    train, test = (videos.videos(part, "motion") for part in PARTS)
    return demo_video(train, out, test=test, seed=seed, device=device, **length)


def run_demo_video(
    *,
    data: Path = Path("data/moving_digits"),
    out: Path = Path("runs/demo-video"),
    seed: int = 42,
    epochs: int | None = None,
    device: Device = "auto",
    pictures: bool = True,
) -> dict[str, object]:
    """Learn from videos without their labels, print a table of accuracies and write OUT/summary.json.

    An interrupted demo is resumed. A finished demo is moved aside, to OUT.1, OUT.2 and so on.

    Args:
        data: Folder of the videos, which are written by the first demo.
        out: Run folder.
        seed: Seed of weights, video order, clips and augmentations.
        epochs: Passes over the videos; by default those of the recipe.
        device: Device. auto takes a GPU if there is one.
        pictures: Draw curves, film strips of clip pairs, and nearest neighbours.

    Returns:
        The contents of OUT/summary.json.
    """
    data, out = Path(data), Path(out)
    videos = write_moving_digits(data)
    config = demo_video_config(videos, out, seed=seed, epochs=epochs, device=device)
    trainer = Trainer(dataclasses.replace(config, resume=make_room(config)))
    trainer.resumes_by = "The same command"
    indices = trainer.evaluation.indices
    print(
        f"{len(trainer.index)} videos to learn from without labels, {len(indices[1])} held out, "
        f"{config.epochs} epoch{'' if config.epochs == 1 else 's'}, on {trainer.device}"
    )
    small = dataclasses.replace(config.evaluation_view(), resize=PIXELS, crop=PIXELS)
    untrained = untrained_backbone(config).to(trainer.device)
    stages = {
        "_raw_pixels": [pixel_features(index, small, threads=config.loader_threads) for index in indices],
        "_untrained": [trainer.evaluation.features(untrained, index) for index in indices],
    }
    summary = dataclasses.asdict(trainer.train())
    stages[""] = [trainer.evaluation.features(trainer.training_step.evaluated, index) for index in indices]
    for (suffix, (train, test)), label in product(stages.items(), LABELS):
        train_labels, test_labels = (labels_of(videos, part, label) for part in PARTS)
        sets = (train, train_labels, test, test_labels)
        summary[f"{label}_knn_top1{suffix}"] = knn_top1(*sets, neighbours=config.evaluation.neighbours)
        summary[f"{label}_linear_top1{suffix}"] = logistic_top1(*sets)
    print(table(summary))
    drawn = write_report(out) if pictures else []
    write_summary(out, summary)  # last: the summary marks the demo as finished
    print(f"In {printable(out)}: {', '.join([SUMMARY, *(picture.name for picture in drawn)])}")
    return summary


def labels_of(videos: MovingDigits, part: str, label: str) -> Tensor:
    """Return the class numbers (n,) of a part's videos, in the order of its lists."""
    return torch.tensor(list_videos(videos.videos(part, label)).labels)


def table(summary: dict[str, object]) -> str:
    """Return a table of the accuracies, a line per stage."""
    columns = list(product(LABELS, ("knn", "linear")))
    lines = [
        f"\n{'':<24}{'motion':>17}{'digit':>17}",
        f"{'held-out videos, top-1':<24}" + f"{'kNN':>8}{'linear':>9}" * len(LABELS),
    ]
    for suffix, title in STAGES.items():
        accuracies = (summary[f"{label}_{kind}_top1{suffix}"] for label, kind in columns)
        lines.append(f"{title:<24}" + "".join(f"{value:>{8 + i % 2}.3f}" for i, value in enumerate(accuracies)))
    lines.append(
        f"{summary['steps']} steps in {summary['seconds']:.0f} s, {summary['samples_per_second']:.0f} videos/s, "
        f"{summary['data_wait_share']:.0%} of the time waiting for data; final loss {summary['final_loss']:.3f}\n"
    )
    return "\n".join(lines)
