"""Rows of a picture: images or film strips of videos, each followed by those with the most similar features."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sce_fast.data.image.augment import EvaluationView
from sce_fast.data.index import Index
from sce_fast.data.kinds import evaluation_inputs
from sce_fast.data.video.augment import ClipEvaluationView
from sce_fast.tools.film_strips import film_strips
from sce_fast.tools.pictures import Tile
from sce_fast.util.files import printable

QUERIES, NEIGHBOURS = {"images": 10, "videos": 8}, {"images": 5, "videos": 3}
NAME_LENGTH = 16  # of a class, in characters
SAME_CLASS, OTHER_CLASS = "#1a7f37", "#c2410c"


def neighbour_rows(
    queries: Index, train: Index, similarity: Tensor, nearest: Tensor, view: EvaluationView, *, threads: int
) -> list[list[Tile]]:
    """Return a row for each query: the query with its class, and its neighbours with similarities and classes.

    Args:
        queries: (n) samples.
        train: the samples among which neighbours were looked for.
        similarity: (n, k) cosines of each query and its neighbours.
        nearest: (n, k) numbers of the neighbours in train.
        view: how samples are shown; of a video, the clip in its middle.
        threads: number of threads that read files.
    """
    found = train.subset(nearest.flatten().numpy())
    pictures = _pictures(found, view, threads)
    rows = []
    for q, picture in enumerate(_pictures(queries, view, threads)):
        name, row = _class_of(queries, q), []
        for k, cosine in enumerate(similarity[q].tolist(), start=q * nearest.shape[1]):
            other = _class_of(found, k)
            color = "black" if not name else SAME_CLASS if other == name else OTHER_CLASS
            row.append(Tile(pictures[k], text=f"{cosine:.2f} {other}".rstrip(), color=color))
        rows.append([Tile(picture, text=name), *row])
    rows[0][0] = dataclasses.replace(rows[0][0], heading=queries.kind.removesuffix("s"))
    if len(rows[0]) > 1:
        heading = f"nearest {queries.kind}, with their cosine similarity"
        rows[0][1] = dataclasses.replace(rows[0][1], heading=heading)
    return rows


def spread(length: int, count: int) -> NDArray[np.int64]:
    """Return up to `count` numbers below `length` in equal distances: an index is sorted by class."""
    count = min(count, length)
    return np.arange(count) * length // max(count, 1)


def _class_of(index: Index, sample: int) -> str:
    """Return the name of a sample's class, cut to NAME_LENGTH; empty without classes."""
    if index.listing.labels is None:
        return ""
    name = printable(index.listing.classes[index.listing.labels[sample]])
    return name if len(name) <= NAME_LENGTH else f"{name[: NAME_LENGTH - 1]}…"


def _pictures(index: Index, view: EvaluationView, threads: int) -> Tensor:
    """Return the samples of an index as the evaluation sees them, (n, H, W, 3) in [0, 1]: images, or strips of clips.

    Of a video, this is the clip in the middle of it.
    """
    if not len(index):
        return torch.empty(0)
    if isinstance(view, ClipEvaluationView):
        view = dataclasses.replace(view, clips=1, crops=1)
    inputs = evaluation_inputs(index, view, threads=threads)
    return torch.cat([visible(views[:, 0], view.mean, view.std) for views in inputs])


def visible(views: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Return normalised images (N, 3, H, W), or clips (N, 3, F, H, W) as strips, as (N, H, W', 3) in [0, 1]."""
    return film_strips(views if views.dim() == 5 else views[:, :, None], mean, std)
