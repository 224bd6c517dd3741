"""The demo: SCE learns from digits that stand at random places, and a table shows what it learned."""

import dataclasses
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from sce_fast.config import TrainConfig
from sce_fast.evaluate import extract_features, knn_top1, linear_top1, pixel_features
from sce_fast.model import build_model
from sce_fast.recipes import demo
from sce_fast.run import CONFIG, SUMMARY, read_config
from sce_fast.tools.digits import write_digits
from sce_fast.tools.report import write_report
from sce_fast.train import Trainer, write_summary

STAGES = {"raw_pixels": "raw pixels", "untrained": "untrained network", "": "after SCE pretraining"}


def run_demo(
    *,
    data: Path = Path("data/digits"),
    out: Path = Path("runs/demo"),
    seed: int = 42,
    epochs: int | None = None,
    coefficient: float = 0.5,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    pictures: bool = True,
) -> dict[str, object]:
    """Writes the images, trains on them, evaluates on held-out ones, and returns what summary.json holds.

    A demo that was interrupted goes on; a finished one is moved aside to OUT.1, OUT.2, ….

    Args:
        data: where the images are written, once.
        out: run folder.
        seed: of weights and data order.
        epochs: by default the recipe's.
        coefficient: λ of the loss.
        device: auto takes the GPU when there is one.
        pictures: draw the curves, view pairs and neighbours.
    """
    train, test = write_digits(data)
    config = dataclasses.replace(demo(data=train, out=out, test=test), seed=seed, device=device)
    config = dataclasses.replace(
        config, epochs=epochs or config.epochs, loss=dataclasses.replace(config.loss, coefficient=coefficient)
    )
    config = dataclasses.replace(config, resume=_make_room(config))
    trainer = Trainer(config)
    labels = tuple(torch.as_tensor(index.labels) for index in trainer.evaluation_indices)
    print(
        f"{len(trainer.index)} digits to learn from without their labels, {len(labels[1])} held out, "
        f"{config.epochs} epochs, on {trainer.device}"
    )
    view, threads, indices = config.evaluation_view(), config.loader_threads, trainer.evaluation_indices

    def features(backbone: nn.Module) -> list[Tensor]:
        return [extract_features(backbone, index, view, device=trainer.device, threads=threads) for index in indices]

    stages = {
        "raw_pixels": [pixel_features(index, view, threads=threads) for index in indices],
        "untrained": features(_untrained_backbone(config).to(trainer.device)),
    }
    summary = dataclasses.asdict(trainer.train())
    stages[""] = features(trainer.model.backbone)
    for stage, (train_features, test_features) in stages.items():
        suffix = f"_{stage}" if stage else ""
        sets = (train_features, labels[0], test_features, labels[1])
        summary[f"knn_top1{suffix}"] = knn_top1(*sets, neighbours=config.evaluation.neighbours)
        summary[f"linear_top1{suffix}"] = linear_top1(*sets)
    write_summary(out, summary)
    print(table(summary))
    drawn = write_report(out) if pictures else []
    print(f"In {out}: {', '.join([SUMMARY, *(picture.name for picture in drawn)])}")
    return summary


def table(summary: dict[str, object]) -> str:
    """What the features are worth, a line a stage."""
    lines = [f"\n{'held-out digits, top-1':<24}{'kNN':>8}{'linear':>9}"]
    for stage, title in STAGES.items():
        suffix = f"_{stage}" if stage else ""
        lines.append(f"{title:<24}{summary[f'knn_top1{suffix}']:>8.3f}{summary[f'linear_top1{suffix}']:>9.3f}")
    lines.append(
        f"{summary['steps']} steps in {summary['seconds']:.0f} s, {summary['images_per_second']:.0f} images/s, "
        f"{summary['data_wait_share']:.0%} of the time waiting for data; final loss {summary['final_loss']:.3f}\n"
    )
    return "\n".join(lines)


def _make_room(config: TrainConfig) -> bool:
    """Whether to resume the run in the folder; one that is finished or of other settings is moved aside."""
    out = config.out
    if not (out / CONFIG).exists():
        return False
    same = dataclasses.replace(read_config(out), resume=config.resume) == config
    if same and not (out / SUMMARY).exists():
        return True
    number = next(n for n in range(1, 10**6) if not out.with_name(f"{out.name}.{n}").exists())
    aside = out.with_name(f"{out.name}.{number}")
    out.rename(aside)
    print(f"The earlier {out} is now {aside}")
    return False


def _untrained_backbone(config: TrainConfig) -> nn.Module:
    """The backbone as the trainer makes it from this seed."""
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        return build_model(config.model).backbone
