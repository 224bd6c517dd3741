"""What a run trains on: its images or videos, and their random views."""

from typing import Any

import torch

from sce_fast.config import TrainConfig
from sce_fast.data.image.views import RandomViews
from sce_fast.data.index import ImageIndex, Index
from sce_fast.data.kinds import open_index
from sce_fast.data.loader import Views
from sce_fast.data.video.index import VideoIndex
from sce_fast.data.video.views import RandomClips


def open_data(config: TrainConfig) -> ImageIndex | VideoIndex:
    """Return the index of what a config trains on.

    Raises:
        FileNotFoundError, ValueError: as index_images, index_videos and subset.
    """
    return config.subset.of(open_index(config.data, config.evaluation_view(), threads=config.loader_threads))


def random_views(config: TrainConfig, index: Index, *, threads: int, device: str = "cpu") -> Views:
    """Return the random views of a config's images, or the random clips of its videos.

    Args:
        device: "cpu", or "gpu" for the current CUDA device.

    Raises:
        ValueError: as RandomViews.
    """
    augmentations, sampling = config.views.augmentations(), config.clips.sampling()
    settings: dict[str, Any] = {"seed": config.seed, "threads": threads, "device": device}
    # A run may resume on another device, so a CPU takes its own kernel whatever a GPU should take.
    photometric = config.views.photometric if device == "gpu" else "auto"
    settings |= {"photometric": photometric, "dtype": _dtype(config, device)}
    if sampling is not None:
        assert isinstance(index, VideoIndex)
        return RandomClips(index, sampling, augmentations, **settings)
    assert isinstance(index, ImageIndex)
    return RandomViews(index, augmentations, background=config.views.background, **settings)


def _dtype(config: TrainConfig, device: str) -> torch.dtype:
    """Return the dtype of the views on a device."""
    wanted = config.views.dtype
    if wanted == "auto":
        wanted = "float32"
        if device == "gpu" and config.precision in ("bfloat16", "float16"):
            wanted = config.precision
    return getattr(torch, wanted)
