"""The report command: curves of loss and kNN accuracy, views, and test images with their nearest neighbours."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sce_fast.config import TrainConfig
from sce_fast.data.evaluation import evaluation_batches
from sce_fast.data.index import ImageIndex, index_images
from sce_fast.data.loader import TrainingLoader
from sce_fast.evaluate import extract_features, labelled_indices
from sce_fast.evaluate.knn import nearest_rows
from sce_fast.export import open_backbone
from sce_fast.tools.arguments import Run
from sce_fast.train.folder import choose_device, read_config
from sce_fast.train.log import LOG, read_log

PAIRS = 10
QUERIES, NEIGHBOURS = 10, 5


def write_report(run: Run, /) -> list[Path]:
    """Draw curves and pictures of a run into its folder and return the files.

    The files are loss.png and views.png. If the config names labelled images, knn.png and neighbours.png are drawn too.

    Args:
        run: Run folder.

    Raises:
        FileNotFoundError: run is no run folder or has no checkpoint yet.
        ImportError: matplotlib is not installed.
    """
    config = read_config(run)
    events = read_log(run / LOG)
    pictures = [loss_curve(events, run / "loss.png"), view_pairs(config, run / "views.png")]
    if config.evaluation.train and config.evaluation.test:
        pictures.append(knn_curve(events, run / "knn.png"))
        folders = config.evaluation.train, config.evaluation.test
        pictures.append(nearest_neighbours(run, *folders, run / "neighbours.png"))
    return pictures


def loss_curve(events: list[dict[str, Any]], path: Path) -> Path:
    """Draw the logged losses and return the path."""
    lines = [event for event in events if event["event"] == "train"]
    return _curve([e["step"] for e in lines], [e["loss"] for e in lines], "loss", path)


def knn_curve(events: list[dict[str, Any]], path: Path) -> Path:
    """Draw the logged kNN accuracies and return the path."""
    lines = [event for event in events if event["event"] == "knn"]
    return _curve([e["step"] for e in lines], [e["top1"] for e in lines], "kNN top-1", path, marker="o")


def view_pairs(config: TrainConfig, path: Path) -> Path:
    """Draw the first images of the first batch as the networks see them, a row per view; return the path."""
    index = index_images(config.data, threads=config.loader_threads)
    loader = TrainingLoader(
        index,
        config.views.augmentations(),
        batch_size=min(PAIRS, len(index)),
        seed=config.seed,
        background=config.views.background,
        threads=1,
    )
    batch = next(loader)
    rows = [list(_visible(view, config)) for view in batch.views]
    return _grid(rows, [f"view {v}: {name}" for v, name in enumerate(config.views.names)], path)


def nearest_neighbours(run: Path, train_folder: Path, test_folder: Path, path: Path) -> Path:
    """Draw ten test images, each followed by the train images with the most similar features; return the path."""
    backbone, config = open_backbone(run).network, read_config(run)
    device, threads = choose_device(config.device), config.loader_threads
    indices = labelled_indices(train_folder, test_folder, threads=threads)
    train, test = (
        extract_features(backbone.to(device), index, config.evaluation_view(), device=device, threads=threads)
        for index in indices
    )
    queries = torch.arange(QUERIES) * len(test) // QUERIES  # spread over the classes: the index is sorted by class
    _, nearest = nearest_rows(test[queries], train, NEIGHBOURS)  # (queries, neighbours)
    query_pictures = _pictures(indices[1], queries, config)
    neighbour_pictures = _pictures(indices[0], nearest.flatten(), config).unflatten(0, nearest.shape)
    rows = [[query, *neighbours] for query, neighbours in zip(query_pictures, neighbour_pictures, strict=True)]
    return _grid(rows, ["query, then its nearest"] + [""] * (len(rows) - 1), path)


def _pictures(index: ImageIndex, samples: Tensor, config: TrainConfig) -> Tensor:
    """Return these samples of an index as the evaluation sees them, (n, H, W, 3) in [0, 1]."""
    batches = evaluation_batches(index.subset(samples.numpy()), config.evaluation_view(), threads=config.loader_threads)
    return _visible(torch.cat(list(batches)), config)


def _visible(images: Tensor, config: TrainConfig) -> Tensor:
    """Return normalised images (N, 3, H, W) as (N, H, W, 3) in [0, 1]."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (config.views.mean, config.views.std))
    return (images.cpu() * std + mean).clamp(0, 1).permute(0, 2, 3, 1)


def _curve(steps: list[int], values: list[float], label: str, path: Path, marker: str = "") -> Path:
    figure = _figure(6, 3.5)
    axes = figure.subplots()
    axes.plot(steps, values, marker=marker)
    axes.set_xlabel("step")
    axes.set_ylabel(label)
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120, bbox_inches="tight")
    return path


def _grid(rows: list[list[Tensor]], titles: list[str], path: Path) -> Path:
    figure = _figure(max(map(len, rows)), len(rows) * 1.15)
    all_axes = figure.subplots(len(rows), max(map(len, rows)), squeeze=False)
    for axes_row, row, title in zip(all_axes, rows, titles, strict=True):
        for axes in axes_row:
            axes.axis("off")
        for axes, image in zip(axes_row, row, strict=True):
            axes.imshow(image.numpy(), interpolation="nearest")
        axes_row[0].set_title(title, fontsize=8, loc="left")
    figure.savefig(path, dpi=120, bbox_inches="tight")
    return path


def _figure(width: float, height: float) -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("pictures need matplotlib and Pillow: pip install matplotlib pillow") from error
    return Figure(figsize=(width, height))
