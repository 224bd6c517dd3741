"""Images and videos side by side: what a run and an evaluation do with either kind."""

from collections.abc import Generator
from pathlib import Path
from typing import Any

from torch import Tensor

from sce_fast.data.image.augment import EvaluationView
from sce_fast.data.index import ImageIndex, Index, index_images
from sce_fast.data.sources import Listing
from sce_fast.data.video.augment import ClipEvaluationView
from sce_fast.data.video.index import VideoIndex, index_videos


def open_index(path: str | Path | Listing, view: EvaluationView, *, threads: int = 2) -> ImageIndex | VideoIndex:
    """Return the index of the images of a folder or list file, or of its videos for a ClipEvaluationView.

    Args:
        path: as for index_images and index_videos; a listing holds videos.
        view: of the samples.
        threads: number of threads that read files.

    Raises:
        FileNotFoundError, ValueError: as index_images and index_videos; or a listing of videos is given for images.
    """
    if isinstance(view, ClipEvaluationView):
        return index_videos(path, threads=threads, frame_rate=view.frame_rate)
    if isinstance(path, Listing):
        raise ValueError(f"{path.title} lists videos, but the backbone takes images; expected one that takes clips")
    return index_images(path, threads=threads)


def evaluation_inputs(index: Index, view: EvaluationView, **settings: Any) -> Generator[Tensor, None, None]:
    """Yield what a network sees of all samples, in their order: (N, 1, 3, crop, crop) of images.

    Videos give (N, clips · crops, 3, F, crop, crop).

    Args:
        settings: of evaluation_batches or evaluation_clips.

    Raises:
        ValueError, BadFilesError: as evaluation_batches.
    """
    # These modules load DALI.
    if isinstance(view, ClipEvaluationView):
        from sce_fast.data.video.evaluation import evaluation_clips

        assert isinstance(index, VideoIndex)
        yield from evaluation_clips(index, view, **settings)
    else:
        from sce_fast.data.evaluation import evaluation_batches

        assert isinstance(index, ImageIndex)
        for images in evaluation_batches(index, view, **settings):
            yield images[:, None]
