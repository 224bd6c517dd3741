"""Batches of an evaluation: every image once, in the order of the index."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from torch import Tensor

from sce_fast.data.faults import BadFilesError, evaluation_refusal
from sce_fast.data.image.augment import EvaluationView
from sce_fast.data.image.formats import decode_failure_reason
from sce_fast.data.image.graph import evaluation_feed, evaluation_pipeline
from sce_fast.data.image.sizes import decoded_sizes
from sce_fast.data.index import ImageIndex
from sce_fast.data.pipeline import next_outputs


def evaluation_batches(
    index: ImageIndex, view: EvaluationView, *, batch_size: int = 256, threads: int = 2, device: str = "cpu"
) -> Iterator[Tensor]:
    """Yield all images in the order of the index as (N, 3, crop, crop) float32; the last batch may be smaller.

    Raises:
        ValueError: batch_size is below 1, or a file has no readable header; no image is skipped.
        BadFilesError: a file cannot be decoded; the message names it.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}: expected at least 1")
    index.require_readable()
    starts = range(0, len(index), batch_size)
    parts = [slice(start, start + batch_size) for start in starts]
    background = index.background(view.background)
    settings: dict[str, Any] = {"background": background, "threads": threads, "device": device}
    feeds = (evaluation_feed(view, index.paths[i], index.sizes[i], index.alpha[i], background) for i in parts)
    pipeline = evaluation_pipeline(feeds, view, batch_size=batch_size, **settings)
    for start, part in zip(starts, parts, strict=True):
        try:
            (images,) = next_outputs(pipeline, device)
        except RuntimeError as error:
            paths = index.paths[part]
            sizes = decoded_sizes(paths, index.alpha[part], **settings)
            bad = {start + i: decode_failure_reason(paths[i]) for i in np.flatnonzero(sizes[:, 0] == 0).tolist()}
            if not bad:
                raise
            raise BadFilesError(evaluation_refusal(index.by_path(bad), len(index))) from error
        yield images
