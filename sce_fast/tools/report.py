"""The report command: curves of a run's log, views, and images with their nearest neighbours."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sce_fast.config import TrainConfig
from sce_fast.data.evaluation import evaluation_batches
from sce_fast.data.image.views import RandomViews
from sce_fast.data.index import ImageIndex, index_images
from sce_fast.data.loader import TrainingLoader
from sce_fast.evaluate import extract_features, labelled_indices
from sce_fast.evaluate.knn import nearest_rows
from sce_fast.export import open_backbone
from sce_fast.tools.arguments import Run
from sce_fast.tools.pictures import Curve, Tile, draw_curves, draw_rows
from sce_fast.train.checkpoint import checkpoints, read_state
from sce_fast.train.folder import CHECKPOINTS, choose_device, read_config
from sce_fast.train.log import LOG, read_log
from sce_fast.util.files import printable

PAIRS = 10
QUERIES, NEIGHBOURS = 10, 5
POOL = 1000  # of the run's images, among which neighbours are looked for: a minute of a large network on a CPU
CURVES = (
    Curve("loss", "loss"),
    Curve("gradient_norm", "gradient norm"),
    Curve("images_per_second", "images/s", from_zero=True),
)
NAME_LENGTH = 16  # of a class, in characters
SAME_CLASS, OTHER_CLASS = "#1a7f37", "#c2410c"


def write_report(run: Run, /) -> list[Path]:
    """Draw curves and pictures of a run into its folder and return the files.

    The files are loss.png, views.png, neighbours.png and, if kNN accuracies are logged, knn.png. Neighbours are shown
    for the config's labelled images; without these, for at most 1,000 of the run's own images.

    Args:
        run: Run folder.

    Raises:
        FileNotFoundError: run is no run folder or has no checkpoint yet.
        ImportError: matplotlib is not installed.
    """
    run = Path(run)
    config = read_config(run)
    events = read_log(run / LOG)
    pictures = [loss_curve(events, run / "loss.png")]
    if any(event["event"] == "knn" for event in events):
        pictures.append(knn_curve(events, run / "knn.png"))
    pictures.append(view_pairs(config, run / "views.png"))
    pictures.append(nearest_neighbours(run, config, run / "neighbours.png"))
    return pictures


def loss_curve(events: list[dict[str, Any]], path: Path) -> Path:
    """Draw the logged losses, with gradient norms and images/s if the log has them, and return the path."""
    lines = [event for event in events if event["event"] == "train"]
    found = [curve for curve in CURVES if any(line.get(curve.name) is not None for line in lines)]
    return draw_curves(lines, found, path)


def knn_curve(events: list[dict[str, Any]], path: Path) -> Path:
    """Draw the logged kNN accuracies and return the path."""
    return draw_curves([event for event in events if event["event"] == "knn"], [Curve("top1", "kNN top-1")], path)


def view_pairs(config: TrainConfig, path: Path) -> Path:
    """Draw the first images of the first batch as the networks see them, a row per view; return the path."""
    index = index_images(config.data, threads=config.loader_threads)
    views = RandomViews(
        index, config.views.augmentations(), seed=config.seed, background=config.views.background, threads=1
    )
    loader = TrainingLoader(index, views, batch_size=min(PAIRS, len(index)))
    rows = [[Tile(image) for image in _visible(view, config)] for view in next(loader).views]
    return draw_rows(rows, path, names=[f"view {v}\n{name}" for v, name in enumerate(config.views.names)])


def nearest_neighbours(run: Path, config: TrainConfig, path: Path) -> Path:
    """Draw ten images, each followed by the images with the most similar features; return the path.

    If the config names labelled images, the ten are test images and their neighbours train images. Otherwise all are
    images of the run, and an image is not its own neighbour.
    """
    device, threads, folders = choose_device(config.device), config.loader_threads, config.evaluation
    network = open_backbone(run).network.to(device)
    labelled = folders.train is not None and folders.test is not None
    if folders.train is not None and folders.test is not None:
        train, test = labelled_indices(folders.train, folders.test, threads=threads)
    else:
        train = test = _pool(run, index_images(config.data, threads=threads))
    numbers = _spread(len(test), QUERIES)
    queries, view = test.subset(numbers), config.evaluation_view()
    features = extract_features(network, train, view, device=device, threads=threads)
    asked = extract_features(network, queries, view, device=device, threads=threads)
    similarity, nearest = nearest_rows(asked, features, NEIGHBOURS + (not labelled))  # (queries, neighbours)
    if not labelled:
        similarity, nearest = _without(torch.from_numpy(numbers), similarity, nearest)
    return draw_rows(_neighbour_rows(config, queries, train, similarity, nearest), path, first_apart=True)


def _pool(run: Path, index: ImageIndex) -> ImageIndex:
    """Return up to POOL of the run's images, spread over the index, without the files that the run knows as bad."""
    known: set[str] = set()
    for checkpoint in checkpoints(run / CHECKPOINTS)[-1:]:
        known = set(read_state(checkpoint)["bad_files"])
    good = np.array([i for i, name in enumerate(index.listing.names) if i not in index.bad and name not in known])
    pool = index.subset(good[_spread(len(good), POOL)])
    return dataclasses.replace(pool, listing=dataclasses.replace(pool.listing, unreadable={}))


def _spread(length: int, count: int) -> NDArray[np.int64]:
    """Return up to `count` numbers below `length` in equal distances: an index is sorted by class."""
    count = min(count, length)
    return np.arange(count) * length // max(count, 1)


def _without(own: Tensor, similarity: Tensor, nearest: Tensor) -> tuple[Tensor, Tensor]:
    """Drop each query's own number (n,) from its row, or the last neighbour if it is not there."""
    keep = nearest != own[:, None]
    keep[keep.all(1), -1] = False
    shape = len(own), nearest.shape[1] - 1
    return similarity[keep].view(shape), nearest[keep].view(shape)


def _neighbour_rows(
    config: TrainConfig, queries: ImageIndex, train: ImageIndex, similarity: Tensor, nearest: Tensor
) -> list[list[Tile]]:
    """Return a row for each query: the query with its class, and its neighbours with similarities and classes."""
    found = train.subset(nearest.flatten().numpy())
    pictures = _pictures(found, config)
    rows = []
    for q, picture in enumerate(_pictures(queries, config)):
        name, row = _class_of(queries, q), []
        for k, cosine in enumerate(similarity[q].tolist(), start=q * nearest.shape[1]):
            other = _class_of(found, k)
            color = "black" if not name else SAME_CLASS if other == name else OTHER_CLASS
            row.append(Tile(pictures[k], text=f"{cosine:.2f} {other}".rstrip(), color=color))
        rows.append([Tile(picture, text=name), *row])
    rows[0][0] = dataclasses.replace(rows[0][0], heading="image")
    if len(rows[0]) > 1:
        rows[0][1] = dataclasses.replace(rows[0][1], heading="nearest images, with their cosine similarity")
    return rows


def _class_of(index: ImageIndex, sample: int) -> str:
    """Return the name of a sample's class, cut to NAME_LENGTH; empty without classes."""
    if index.listing.labels is None:
        return ""
    name = printable(index.listing.classes[index.listing.labels[sample]])
    return name if len(name) <= NAME_LENGTH else f"{name[: NAME_LENGTH - 1]}…"


def _pictures(index: ImageIndex, config: TrainConfig) -> Tensor:
    """Return the images of an index as the evaluation sees them, (n, H, W, 3) in [0, 1]."""
    batches = evaluation_batches(index, config.evaluation_view(), threads=config.loader_threads)
    return _visible(torch.cat(list(batches)), config) if len(index) else torch.empty(0)


def _visible(images: Tensor, config: TrainConfig) -> Tensor:
    """Return normalised images (N, 3, H, W) as (N, H, W, 3) in [0, 1]."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (config.views.mean, config.views.std))
    return (images.cpu() * std + mean).clamp(0, 1).permute(0, 2, 3, 1)
