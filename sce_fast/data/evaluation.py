"""Batches of an evaluation: every image once, in the order of the index."""

from collections.abc import Iterator
from contextlib import ExitStack, closing
from typing import Any

import numpy as np
from torch import Tensor

from sce_fast.data.faults import BadFilesError, evaluation_refusal
from sce_fast.data.image.augment import EvaluationView
from sce_fast.data.image.graph import evaluation_feed, evaluation_pipeline
from sce_fast.data.image.sizes import decoded_sizes
from sce_fast.data.index import ImageIndex
from sce_fast.data.pipeline import next_outputs, shut_down


def evaluation_batches(
    index: ImageIndex,
    view: EvaluationView,
    *,
    batch_size: int = 256,
    threads: int = 2,
    device: str = "cpu",
    skipped: dict[int, str] | None = None,
) -> Iterator[Tensor]:
    """Yield all images in the order of the index as (N, 3, crop, crop) float32; some batches may be smaller.

    Args:
        skipped: if given, bad files raise no error: they are left out and added here, as sample → reason.

    Raises:
        ValueError: batch_size is below 1, or a file has no readable header.
        BadFilesError: a file cannot be decoded; the message names it.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}: expected at least 1")
    if skipped is None:
        index.require_readable()
    else:
        skipped |= index.bad
    background, pillow = index.background(view.background), index.by_pillow(view.background)
    settings: dict[str, Any] = {"background": background, "threads": threads, "device": device}
    samples, files = np.array([i for i in range(len(index)) if i not in index.bad], dtype=np.int64), index.files
    while len(samples):
        parts = [samples[start : start + batch_size] for start in range(0, len(samples), batch_size)]
        with closing(files.items_ahead(iter(parts))) as ready, ExitStack() as ending:
            feeds = (
                evaluation_feed(view, items, index.sizes[part], pillow[part], background)
                for part, items in zip(parts, ready, strict=True)
            )
            pipeline = evaluation_pipeline(feeds, view, batch_size=batch_size, contents=files.are_contents, **settings)
            ending.callback(shut_down, pipeline)
            for part in parts:
                try:
                    (images,) = next_outputs(pipeline, device)
                except RuntimeError as error:
                    sizes = decoded_sizes(files, part, pillow[part], **settings)
                    failed = part[sizes[:, 0] == 0].tolist()
                    bad = {sample: files.failure_reason(sample) for sample in failed}
                    if not bad:
                        raise
                    if skipped is None:
                        raise BadFilesError(evaluation_refusal(index.by_path(bad), len(index), index.kind)) from error
                    skipped |= bad
                    break
                samples = samples[len(part) :]
                yield images
        samples = np.array([i for i in samples.tolist() if i not in (skipped or {})], dtype=np.int64)
