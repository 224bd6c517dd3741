"""The demo command: SCE learns from digits at random positions, and a table shows what it has learned."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sce_fast.config import Device, TrainConfig
from sce_fast.evaluate import knn_top1, logistic_top1, pixel_features
from sce_fast.method.build import build_model
from sce_fast.recipes import demo
from sce_fast.tools.digits import write_digits
from sce_fast.tools.report import write_report
from sce_fast.train import Trainer
from sce_fast.train.folder import CONFIG, SUMMARY, read_config, write_summary
from sce_fast.util.files import printable

STAGES = {"_raw_pixels": "raw pixels", "_untrained": "untrained network", "": "after SCE pretraining"}


def demo_config(
    train: Path, test: Path, out: Path, *, seed: int, epochs: int | None, coefficient: float, device: Device
) -> TrainConfig:
    """Return the config of the demo's recipe with these changes."""
    length = {} if epochs is None else {"epochs": epochs}
    return demo(train, out, test=test, seed=seed, device=device, loss={"coefficient": coefficient}, **length)


def run_demo(
    *,
    data: Path = Path("data/digits"),
    out: Path = Path("runs/demo"),
    seed: int = 42,
    epochs: int | None = None,
    coefficient: float = 0.5,
    device: Device = "auto",
    pictures: bool = True,
) -> dict[str, object]:
    """Learn from real digit images without their labels, print a table of accuracies and write OUT/summary.json.

    An interrupted demo is resumed. A finished demo is moved aside, to OUT.1, OUT.2 and so on.

    Args:
        data: Folder of the images, which are written by the first demo.
        out: Run folder.
        seed: Seed of weights, image order and augmentations.
        epochs: Passes over the images; by default the recipe's 30.
        coefficient: Weight λ of the own key in the target.
        device: Device. auto takes a GPU if there is one.
        pictures: Draw curves, view pairs and nearest neighbours.

    Returns:
        The contents of OUT/summary.json.
    """
    data, out = Path(data), Path(out)
    train, test = write_digits(data)
    config = demo_config(train, test, out, seed=seed, epochs=epochs, coefficient=coefficient, device=device)
    trainer = Trainer(dataclasses.replace(config, resume=make_room(config)))
    trainer.resumes_by = "The same command"
    indices = trainer.evaluation.indices
    labels = [torch.as_tensor(index.labels) for index in indices]
    print(
        f"{len(trainer.index)} digits to learn from without labels, {len(indices[1])} held out, "
        f"{config.epochs} epoch{'' if config.epochs == 1 else 's'}, on {trainer.device}"
    )
    view, threads, untrained = config.evaluation_view(), config.loader_threads, untrained_backbone(config)
    untrained = untrained.to(trainer.device)
    stages = {
        "_raw_pixels": [pixel_features(index, view, threads=threads) for index in indices],
        "_untrained": [trainer.evaluation.features(untrained, index) for index in indices],
    }
    summary = dataclasses.asdict(trainer.train())
    stages[""] = [trainer.evaluation.features(trainer.training_step.evaluated, index) for index in indices]
    for suffix, (train_features, test_features) in stages.items():
        sets = (train_features, labels[0], test_features, labels[1])
        summary[f"knn_top1{suffix}"] = knn_top1(*sets, neighbours=config.evaluation.neighbours)
        summary[f"linear_top1{suffix}"] = logistic_top1(*sets)
    print(table(summary))
    drawn = write_report(out) if pictures else []
    write_summary(out, summary)  # last: the summary marks the demo as finished
    print(f"In {printable(out)}: {', '.join([SUMMARY, *(picture.name for picture in drawn)])}")
    return summary


def table(summary: dict[str, object]) -> str:
    """Return a table of the accuracies, a line per stage."""
    lines = [f"\n{'held-out digits, top-1':<24}{'kNN':>8}{'linear':>9}"]
    for suffix, title in STAGES.items():
        lines.append(f"{title:<24}{summary[f'knn_top1{suffix}']:>8.3f}{summary[f'linear_top1{suffix}']:>9.3f}")
    lines.append(
        f"{summary['steps']} steps in {summary['seconds']:.0f} s, {summary['samples_per_second']:.0f} images/s, "
        f"{summary['data_wait_share']:.0%} of the time waiting for data; final loss {summary['final_loss']:.3f}\n"
    )
    return "\n".join(lines)


def make_room(config: TrainConfig) -> bool:
    """Return whether to resume the run in the folder. A finished run or one with other settings is moved aside."""
    out = config.out
    if not (out / CONFIG).exists():
        return False
    if is_run_of(config) and not (out / SUMMARY).exists():
        return True
    number = next(n for n in range(1, 10**6) if not out.with_name(f"{out.name}.{n}").exists())
    aside = out.with_name(f"{out.name}.{number}")
    out.rename(aside)
    print(f"The earlier {printable(out)} is now {printable(aside)}")
    return False


def is_run_of(config: TrainConfig) -> bool:
    """Return whether the run in the config's folder was started with this config."""
    try:
        return dataclasses.replace(read_config(config.out), resume=config.resume) == config
    except ValueError:  # written by another version, or truncated
        return False


def finished_summary(config: TrainConfig) -> dict[str, Any] | None:
    """Return the summary in the config's folder if a run has finished there with this config, otherwise None."""
    path = config.out / SUMMARY
    return json.loads(path.read_text()) if path.exists() and is_run_of(config) else None


def untrained_backbone(config: TrainConfig) -> nn.Module:
    """Return the backbone that the trainer builds from this seed."""
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        return build_model(config.model).backbone
