"""The report command: curves of a run's log, views, and images or videos with their nearest neighbours."""

import dataclasses
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sce_fast.config import TrainConfig, replace
from sce_fast.data.index import ImageIndex
from sce_fast.data.loader import TrainingLoader
from sce_fast.data.video.index import VideoIndex
from sce_fast.evaluate import extract_features, labelled_indices
from sce_fast.evaluate.knn import nearest_rows
from sce_fast.export import open_backbone
from sce_fast.tools.arguments import Run
from sce_fast.tools.film_strips import SIDE as STRIP_SIDE
from sce_fast.tools.neighbours import NEIGHBOURS, QUERIES, neighbour_rows, spread, visible
from sce_fast.tools.pictures import SIDE, Curve, Tile, draw_curves, draw_rows
from sce_fast.train.checkpoint import checkpoints, read_state
from sce_fast.train.data import open_data, random_views
from sce_fast.train.folder import CHECKPOINTS, choose_device, read_config
from sce_fast.train.log import LOG, read_log

PAIRS = {"images": 10, "videos": 6}
POOL = 1000  # of the run's samples, among which neighbours are looked for: a minute of a large network on a CPU
CURVES = (
    Curve("loss", "loss"),
    Curve("gradient_norm", "gradient norm"),
    Curve("images_per_second", "images/s", from_zero=True),
    Curve("videos_per_second", "videos/s", from_zero=True),
)

AnyIndex = ImageIndex | VideoIndex


def write_report(run: Run, /) -> list[Path]:
    """Draw curves and pictures of a run into its folder and return the files.

    The files are loss.png, views.png, neighbours.png and, if kNN accuracies are logged, knn.png. Neighbours are shown
    for the config's labelled images; without these, for at most 1,000 of the run's own images. Videos appear as film
    strips: the frames of a clip side by side.

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
    """Draw the logged losses, with gradient norms and the rate if the log has them, and return the path."""
    lines = [event for event in events if event["event"] == "train"]
    found = [curve for curve in CURVES if any(line.get(curve.name) is not None for line in lines)]
    return draw_curves(lines, found, path)


def knn_curve(events: list[dict[str, Any]], path: Path) -> Path:
    """Draw the logged kNN accuracies and return the path."""
    return draw_curves([event for event in events if event["event"] == "knn"], [Curve("top1", "kNN top-1")], path)


def view_pairs(config: TrainConfig, path: Path) -> Path:
    """Draw the first samples of the first batch as the networks see them; return the path.

    The views of an image stand below each other, those of a video side by side.
    """
    index = open_data(config)
    views = random_views(replace(config, views={"dtype": "float32"}), index, threads=1)
    with closing(TrainingLoader(index, views, batch_size=min(PAIRS[index.kind], len(index)))) as loader:
        pictures = [
            [Tile(picture) for picture in visible(view, config.views.mean, config.views.std)]
            for view in next(loader).views
        ]
    names = [f"view {v}\n{name}" for v, name in enumerate(config.views.names)]
    if not config.clips.frames:
        return draw_rows(pictures, path, names=names)
    rows = [list(row) for row in zip(*pictures, strict=True)]
    rows[0] = [dataclasses.replace(tile, heading=n.replace("\n", ", ")) for tile, n in zip(rows[0], names, strict=True)]
    return draw_rows(rows, path, side=STRIP_SIDE)


def nearest_neighbours(run: Path, config: TrainConfig, path: Path) -> Path:
    """Draw some samples, each followed by the samples with the most similar features; return the path.

    If the config names labelled sets, the first ones are test samples and their neighbours train samples. Otherwise all
    are samples of the run, and none is its own neighbour.
    """
    device, threads, sets = choose_device(config.device), config.loader_threads, config.evaluation
    network, view = open_backbone(run).network.to(device), config.evaluation_view()
    labelled = sets.train is not None and sets.test is not None
    train: AnyIndex
    test: AnyIndex
    if sets.train is not None and sets.test is not None:
        train, test = labelled_indices(sets.train, sets.test, view, threads=threads)
    else:
        train = test = _pool(run, open_data(config))
    numbers = spread(len(test), QUERIES[test.kind])
    queries = test.subset(numbers)
    features = extract_features(network, train, view, device=device, threads=threads)
    asked = extract_features(network, queries, view, device=device, threads=threads)
    similarity, nearest = nearest_rows(asked, features, NEIGHBOURS[test.kind] + (not labelled))  # (queries, neighbours)
    if not labelled:
        similarity, nearest = _without(torch.from_numpy(numbers), similarity, nearest)
    rows = neighbour_rows(queries, train, similarity, nearest, view, threads=threads)
    return draw_rows(rows, path, first_apart=True, side=STRIP_SIDE if config.clips.frames else SIDE)


def _pool(run: Path, index: AnyIndex) -> AnyIndex:
    """Return up to POOL of the run's samples, spread over the index, without the files that the run knows as bad."""
    known: set[str] = set()
    for checkpoint in checkpoints(run / CHECKPOINTS)[-1:]:
        known = set(read_state(checkpoint)["bad_files"])
    entries = index.listing.entries()
    good = np.array([i for i, entry in enumerate(entries) if i not in index.bad and entry not in known])
    pool = index.subset(good[spread(len(good), POOL)])
    return dataclasses.replace(pool, listing=dataclasses.replace(pool.listing, unreadable={}))


def _without(own: Tensor, similarity: Tensor, nearest: Tensor) -> tuple[Tensor, Tensor]:
    """Drop each query's own number (n,) from its row, or the last neighbour if it is not there."""
    keep = nearest != own[:, None]
    keep[keep.all(1), -1] = False
    shape = len(own), nearest.shape[1] - 1
    return similarity[keep].view(shape), nearest[keep].view(shape)
