"""Options of the commands that train classifiers of clips, and the clips that they describe."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tyro.conf import OmitArgPrefixes

from sce_fast.config import to_json
from sce_fast.data.video.augment import ClipEvaluationView
from sce_fast.data.video.index import VideoIndex
from sce_fast.evaluate.supervised.run import Setup
from sce_fast.evaluate.supervised.settings import SupervisedSettings
from sce_fast.evaluate.supervised.videos import ClipCrop, ClipViews, VideoPreset, own_views, video_batches
from sce_fast.tools.supervised import Task
from sce_fast.train.folder import read_config
from sce_fast.util.settings import require_none


@dataclass(frozen=True, kw_only=True)
class ClipOptions:
    """How train and test clips look; only for backbones of clips."""

    frames: int | None = None
    """Frames of a clip. Default: the backbone's own number."""
    seconds: float | None = None
    """Time that a clip covers; a shorter video is one clip. Default: the backbone's own."""
    frame_rate: float | None = None
    """Frames per second of folders of extracted frames. Default: those of the run's own videos, or 30."""
    shorter_side: tuple[int, int] | None = None
    """Smallest and largest shorter side of the frames that train crops are taken from. Default: the preset's; without
    a preset, --resize and 5/4 of it."""
    flip: float | None = None
    """Probability of a horizontal flip of train clips. Default: the preset's; without a preset, at most the run's."""
    jitter: float | None = None
    """Probability of the colour jitter of train clips (brightness, contrast, saturation 0.4, hue 0.1). Default: the
    preset's."""
    grayscale: float | None = None
    """Probability that a train clip is converted to grey. Default: the preset's."""
    test_size: int | None = None
    """Side of the crops of test videos. Default: the shorter side that --resize gives them."""
    clips: int | None = None
    """Clips of each test video, from its start to its end, over which the softmax is averaged. Default: 10."""
    crops: Literal[1, 3] | None = None
    """Crops of each of these clips: 1 in the centre, or 3 along the longer side. Default: 3."""

    def given(self) -> dict[str, Any]:
        """Return the options that are given, by name."""
        return {name: value for name, value in vars(self).items() if value is not None}

    def require_none(self, why: str, **further: Any) -> None:
        """Raise an error if an option, or one of further options, is given although nothing depends on it.

        Raises:
            ValueError: see above; the message names the options and why.
        """
        require_none({**further, **vars(self)}, why)


TrainingClips = OmitArgPrefixes[ClipOptions]


def clip_views(
    run: Path,
    own: ClipEvaluationView,
    preset: VideoPreset,
    options: ClipOptions,
    *,
    named: bool,
    crop: ClipCrop | None = None,
    size: int | None = None,
    resize: int | None = None,
) -> ClipViews:
    """Return the clips of an evaluation.

    Args:
        run: run folder, exported file or weights from elsewhere.
        own: view of its backbone.
        preset: gives what is not given.
        options: change the preset.
        named: whether the user has chosen the preset; otherwise sizes and flip are the backbone's own.
        crop, size, resize: further options; see ClipViews.
    """
    views = preset.views
    if not named:
        views = dataclasses.replace(views, **own_views(own, size=size, resize=resize))
        if run.is_dir():
            views = dataclasses.replace(views, flip=min(views.flip, *read_config(run).views.flip))
    further = {"crop": crop, "size": size, "resize": resize, "test_size": resize}
    changes = {name: value for name, value in further.items() if value is not None} | options.given()
    return dataclasses.replace(views, **changes)


def video_setup(
    evaluation: str,
    task: Task,
    view: ClipEvaluationView,
    views: ClipViews,
    settings: SupervisedSettings,
    places: dict[str, Any],
) -> Setup:
    """Return the setup of an evaluation that trains on random clips.

    Args:
        evaluation: name of the command.
        task: of videos.
        view: of the task's test videos.
        views: the clips.
        settings: of the training.
        places: device, ranks and threads, as video_batches takes them.
    """
    assert isinstance(task.train, VideoIndex)
    assert isinstance(task.test, VideoIndex)
    batches = video_batches(task.train, task.test, view, settings, augmentation=views.augmentation(view), **places)
    return task.setup(evaluation, batches, settings, clips=to_json(views))
