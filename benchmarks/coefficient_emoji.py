"""Train on emoji from two or from six views at equal cost, for `sce-fast bench coefficient --data emoji`.

Prediction, written before the runs. The papers find that a target between the extremes is best: on ImageNet-100 they
report 81.5 for λ = 0, 82.9 for λ = 0.5 and 81.1 for λ = 1 (second-hand), and 75.4 for six views against 72.7 for two
views of ImageNet after 200 epochs, which is not at equal cost. Emoji have what soft targets are for: with InfoNCE
(λ = 1) an image is pushed away from its variants in the queue. So λ = 0.25 to 0.75 should have the best kNN accuracy,
by about one point; λ = 1 should find the fewest variants among the nearest neighbours; λ = 0 is at risk in a short run,
because its only target is the similarities of a teacher that has learned nothing yet. docs/benchmarks.md has what was
measured.
"""

import dataclasses
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from sce_fast.benchmarks.emoji_variants import base_of, write_emoji_variants
from sce_fast.benchmarks.machine import machine
from sce_fast.config import EvaluationConfig, LossConfig, ModelConfig, OptimizerConfig, TrainConfig, ViewsConfig
from sce_fast.evaluate import knn_accuracy, pixel_features
from sce_fast.method.build import build_model
from sce_fast.recipes.imagenet import MULTI_CROP, TWO_CROPS
from sce_fast.tools.demo import finished_summary, make_room, untrained_backbone
from sce_fast.train import Trainer
from sce_fast.train.folder import write_summary
from sce_fast.util.rows import unit_rows

PUBLISHED_SIDE, SIDE = 224, 32  # of the largest views; the blur and all views are smaller by the same factor
# A fifth of a drawing seldom shows what it is: 40 epochs with these crops gave a better kNN accuracy than 60 with the
# published ones (λ = 0.5, seed 1).
PUBLISHED_LEAST_AREA, LEAST_AREA = 0.2, 0.5  # of the largest views
VIEWS = {"two-crop": TWO_CROPS, "multi-crop": MULTI_CROP}
# Equal work per run: with six views an image costs 2.99 times as many operations (image_flops) as with two.
EPOCHS = {"two-crop": 39, "multi-crop": 13}
MOMENTUM = {"two-crop": 0.99, "multi-crop": 0.971}  # the teacher averages over 3% of the steps, as with recipe folder
COLUMNS = {
    "knn_top1": "kNN top-1",
    "knn_mean_per_class": "mean of the classes",
    "variants": "variants among neighbours",
    "final_loss": "final loss",
    "cpu_seconds": "CPU seconds",
}


def finished_run(run: Path, images: Path, views: str, seed: int, coefficient: float) -> dict[str, Any]:
    """Return the summary of this run; a run folder that finished with the same settings is not run again.

    An interrupted run goes on. Its `cpu_seconds`, the CPU time of all threads for training, is then None.
    """
    config = emoji_config(*write_emoji_variants(images), run, views=views, seed=seed, coefficient=coefficient)
    if (summary := finished_summary(config)) is not None:
        return summary
    resumes, commit = make_room(config), machine()["commit"]  # now, because the checkout may change during the run
    trainer = Trainer(dataclasses.replace(config, resume=resumes))
    trainer.resumes_by = "The same command"
    started = time.process_time()
    summary = dataclasses.asdict(trainer.train())
    summary["cpu_seconds"] = None if resumes else round(time.process_time() - started, 1)
    summary["flops"] = image_flops(config) * len(trainer.index) * config.epochs
    summary["commit"] = commit
    summary |= accuracies(config, trainer)
    write_summary(run, summary)
    return summary


def accuracies(config: TrainConfig, trainer: Trainer) -> dict[str, float]:
    """Return the table's columns for a trained network, and with a suffix those of raw pixels and before training."""
    evaluation, view = trainer.evaluation, config.evaluation_view()
    untrained = untrained_backbone(config).to(trainer.device)
    stages = {
        "_raw_pixels": [pixel_features(index, view, threads=config.loader_threads) for index in evaluation.indices],
        "_untrained": [evaluation.features(untrained, index) for index in evaluation.indices],
        "": [evaluation.features(trainer.training_step.evaluated, index) for index in evaluation.indices],
    }
    labels = [torch.as_tensor(index.labels) for index in evaluation.indices]
    bases = [base_of(Path(name).stem) for name in evaluation.indices[0].listing.entries()]
    found = {}
    for suffix, (train, test) in stages.items():
        (accuracy,) = knn_accuracy(train, labels[0], test, labels[1], neighbours=(config.evaluation.neighbours,))
        found[f"knn_top1{suffix}"] = accuracy.top1
        found[f"knn_mean_per_class{suffix}"] = accuracy.mean_per_class
        found[f"variants{suffix}"] = variants_found(train, bases)
    return found


def emoji_config(train: Path, test: Path, out: Path, *, views: str, seed: int, coefficient: float) -> TrainConfig:
    """Return the config of a run.

    As in the papers' ablation of λ, the teacher sees a weak view, the student the strong ones. Network and optimizer
    are what the recipe folder chooses for so few images, with four times its learning rate, the usual stem, which saves
    three quarters of the work, and a queue of 2,048 keys.
    """
    published, scale = VIEWS[views], SIDE / PUBLISHED_SIDE
    return TrainConfig(
        data=train,
        out=out,
        epochs=EPOCHS[views],
        batch_size=64,
        seed=seed,
        log_every=57,
        checkpoint_every=57,
        pictures=False,
        views=ViewsConfig(
            names=("weak", *["strong"] * (len(published["names"]) - 1)),
            sizes=tuple(round(size * scale) for size in published["sizes"]),
            scales=tuple((low * LEAST_AREA / PUBLISHED_LEAST_AREA, high) for low, high in published["scales"]),
            blur_sigma=((0.1, 2.0 * scale),),
            background="white",  # the outlines are black
        ),
        model=ModelConfig(
            backbone="resnet18",
            width=16,
            projector_hidden=(512,),
            dim=128,
            projector_norm="hidden",
            predictor_hidden=0,
            symmetric=False,
            momentum=MOMENTUM[views],
            momentum_schedule="constant",
        ),
        loss=LossConfig(temperature=0.1, target_temperature=0.05, coefficient=coefficient, queue_size=2048),
        optimizer=OptimizerConfig(name="sgd", base_learning_rate=0.96, weight_decay=5e-4, warmup_epochs=2),
        evaluation=EvaluationConfig(train=train, test=test, every=10, resize=SIDE * 9 // 8, crop=SIDE),
    )


def image_flops(config: TrainConfig) -> int:
    """Return the floating-point operations of both backbones for one training image, as torch counts them.

    The student takes a forward and a backward pass of every view but the first, the teacher a forward pass of the first
    view. Left out are the heads and the loss, which add 15% with two and 17% with six views, and the loader.
    """
    backbone = build_model(config.model).backbone.to("meta")  # shapes without numbers
    views = [torch.empty(2, *config.input_shape(view.size), device="meta") for view in config.views.augmentations()]
    with FlopCounterMode(display=False) as counter:
        with torch.no_grad():
            backbone(views[0])
        for view in views[1:]:
            backbone(view).sum().backward()
    return counter.get_total_flops() // 2


def variants_found(features: Tensor, bases: list[str]) -> float:
    """Return the share of variants among the nearest neighbours of an image, averaged over images that have variants.

    An image with r variants, images of the same base emoji, has r neighbours here. The share is 1 if all variants are
    nearer than any other image.

    Args:
        features: (n, F), of which the rows are normalised here.
        bases: base emoji of each image.
    """
    numbers = {base: number for number, base in enumerate(dict.fromkeys(bases))}
    group = torch.tensor([numbers[base] for base in bases])
    same = (group[:, None] == group).fill_diagonal_(False)
    counts = same.sum(1)
    rows = unit_rows(features)
    nearest = (rows @ rows.T).fill_diagonal_(-torch.inf).topk(int(counts.max()), dim=1).indices
    within = torch.arange(nearest.shape[1]) < counts[:, None]
    found = (same.gather(1, nearest) & within).sum(1)
    return (found / counts)[counts > 0].mean().item()
