"""What a run trains on: its images or videos, and their random views."""

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
    """
    augmentations, sampling = config.views.augmentations(), config.clips.sampling()
    if sampling is not None:
        assert isinstance(index, VideoIndex)
        return RandomClips(index, sampling, augmentations, seed=config.seed, threads=threads, device=device)
    assert isinstance(index, ImageIndex)
    background = config.views.background
    return RandomViews(index, augmentations, seed=config.seed, background=background, threads=threads, device=device)
