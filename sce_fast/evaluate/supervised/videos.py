"""Labelled videos as batches: one random clip of each in training, and several clips and crops of each in a test."""

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

import torch

from sce_fast.data.image.augment import Augmentation
from sce_fast.data.video.augment import ClipEvaluationView
from sce_fast.data.video.clips import ClipSampling
from sce_fast.data.video.index import VideoIndex
from sce_fast.data.video.views import RandomClips
from sce_fast.distributed import Ranks
from sce_fast.evaluate.supervised.batches import LoadedBatches
from sce_fast.evaluate.supervised.images import SCALE
from sce_fast.evaluate.supervised.settings import SupervisedSettings

ClipCrop = Literal["scaled", "resized"]
JITTER: dict[str, float] = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1}
TEST_VIDEOS = 16  # at a time; fewer where their clips take much memory


@dataclass(frozen=True, kw_only=True)
class ClipViews:
    """The clips that a protocol trains on and tests with."""

    crop: ClipCrop = "scaled"
    """Train crops: scaled, a crop of frames whose shorter side is drawn from `shorter_side`; resized, a resized crop of
    8 to 100 % of the area."""
    size: int = 224
    """Side of the train crops in pixels."""
    shorter_side: tuple[int, int] = (256, 320)
    """Smallest and largest shorter side of the frames that scaled crops are taken from."""
    flip: float = 0.5
    """Probability of a horizontal flip."""
    jitter: float = 0.0
    """Probability of the colour jitter (brightness, contrast and saturation 0.4, hue 0.1)."""
    grayscale: float = 0.0
    """Probability of conversion to grey."""
    resize: int = 256
    """Shorter side of a test video's frames in pixels."""
    test_size: int = 256
    """Side of the test crops in pixels."""
    clips: int = 10
    """Clips of a test video, spread evenly from its start to its end."""
    crops: int = 3
    """Crops of each of them: 3 along the longer side, or 1 in the centre."""
    frames: int | None = None
    """Frames of a clip; None for the backbone's own number."""
    seconds: float | None = None
    """Time that a clip covers; None for the backbone's own."""
    frame_rate: float | None = None
    """Frames per second of folders of extracted frames; None for the backbone's own number."""

    def augmentation(self, view: ClipEvaluationView) -> Augmentation:
        """Return the augmentation of the train clips, with the normalisation of a test view.

        Raises:
            ValueError: a setting is out of range.
        """
        how: dict[str, Any] = {"scale": SCALE} if self.crop == "resized" else {"shorter_side": self.shorter_side}
        random: dict[str, Any] = {"flip": self.flip, "jitter": self.jitter, "grayscale": self.grayscale, **JITTER}
        return Augmentation(size=self.size, mean=view.mean, std=view.std, **how, **random)

    def test_view(self, own: ClipEvaluationView) -> ClipEvaluationView:
        """Return the view of the test videos, with the normalisation of a backbone's own view.

        Raises:
            ValueError: a setting is out of range.
        """
        sampling = ClipSampling(
            frames=own.sampling.frames if self.frames is None else self.frames,
            seconds=own.sampling.seconds if self.seconds is None else self.seconds,
            stride=own.sampling.stride if self.seconds is None else None,
        )
        return dataclasses.replace(
            own,
            resize=self.resize,
            crop=self.test_size,
            clips=self.clips,
            crops=self.crops,
            sampling=sampling,
            frame_rate=own.frame_rate if self.frame_rate is None else self.frame_rate,
        )


@dataclass(frozen=True)
class VideoPreset:
    """A published protocol: the training, and the clips of train and test videos."""

    settings: SupervisedSettings
    views: ClipViews
    splits: tuple[int, ...] = (1,)
    """Numbers of the published splits over which results are averaged."""


def own_views(own: ClipEvaluationView, *, size: int | None = None, resize: int | None = None) -> dict[str, Any]:
    """Return the sizes of ClipViews that fit a backbone as the published sizes fit a backbone of 224 pixels.

    Args:
        own: view of the backbone.
        size: of the train crops; by default the backbone's own.
        resize: shorter side of a test video's frames; by default the backbone's own, or 8/7 of a size that is given.

    Example:
        >>> own_views(ClipEvaluationView(resize=128, crop=112))
        {'size': 112, 'shorter_side': (128, 160), 'resize': 128, 'test_size': 128}
    """
    if resize is None:
        resize = own.resize if size is None else round(size * 8 / 7)
    size = own.crop if size is None else size
    return {"size": size, "shorter_side": (resize, round(resize * 1.25)), "resize": resize, "test_size": resize}


def video_batches(
    train: VideoIndex,
    test: VideoIndex,
    view: ClipEvaluationView,
    settings: SupervisedSettings,
    *,
    augmentation: Augmentation,
    device: torch.device,
    ranks: Ranks | None = None,
    threads: int = 2,
) -> LoadedBatches:
    """Return batches of one random clip of each train video, and the test videos as `view` shows them.

    Args:
        train, test: videos with the same class numbers.
        view: of the test videos; its sampling is that of the train clips too.
        settings: batch size and seed.
        augmentation: of the train clips.
        device: of the pixels.
        ranks: that share each batch; by default one.
        threads: number of threads that decode.

    Raises:
        ValueError: the batch is larger than the train set, or cannot be shared among the ranks.

    Example:
        >>> views = ClipViews(size=112, shorter_side=(128, 160), resize=128, test_size=128)
        >>> view = views.test_view(ClipEvaluationView())
        >>> batches = video_batches(
        ...     train, test, view, settings, augmentation=views.augmentation(view), device=torch.device("cpu")
        ... )
        >>> clips, labels = next(batches)  # (N, 3, 8, 112, 112), (N,)
    """
    where = "gpu" if device.type == "cuda" else "cpu"
    views = RandomClips(train, view.sampling, (augmentation,), seed=settings.seed, threads=threads, device=where)
    return LoadedBatches(train, views, test, view, settings, test_batch_size=TEST_VIDEOS, threads=threads, ranks=ranks)
