"""Clips round key frames: where they lie in the videos, and random crops to train on with the boxes of the persons."""

import os
import warnings
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sce_fast.data.faults import EMPTY_PART
from sce_fast.data.image.augment import Augmentation
from sce_fast.data.image.plan import ViewPlan, plan_view
from sce_fast.data.sources import Listing, Names, Part, is_frame_folder, is_video_name
from sce_fast.data.video.augment import ClipEvaluationView
from sce_fast.data.video.index import VideoIndex, index_videos
from sce_fast.data.video.views import RandomClips
from sce_fast.distributed import Ranks
from sce_fast.evaluate.detection.annotations import Persons
from sce_fast.evaluate.detection.network import PersonClips, numbers_in_batch
from sce_fast.evaluate.detection.testing import PersonTests, ShownPersons
from sce_fast.evaluate.detection.whole import whole_time
from sce_fast.evaluate.supervised.batches import LoaderBatches
from sce_fast.evaluate.supervised.settings import SupervisedSettings
from sce_fast.util.files import printable


def key_frame_index(
    persons: Persons, videos: Path, *, seconds: float, first_second: float, frame_rate: float, threads: int
) -> VideoIndex:
    """Return an index with a sample for each key frame: the part of its video that a clip covers.

    Args:
        persons: whose key frames are wanted.
        videos: folder of video files NAME.mp4 (or another ending) or folders NAME of numbered frames, at any depth.
        seconds: time that a clip covers, half of it before the key frame.
        first_second: second of the annotations at which the videos begin.
        frame_rate: frames per second of folders of frames.
        threads: number of threads that read files.

    Raises:
        FileNotFoundError: the folder does not exist.
        ValueError: a key frame lies before the first second or after the end of its video.
    """
    found = _videos_in(Path(videos))
    names = [found.get(video, f"{video}.mp4") for video, _ in persons.frames]
    parts: list[Part] = []
    for video, second in persons.frames:
        middle = second - first_second
        if middle < 0:
            raise ValueError(
                f"first_second={first_second:g}: the key frame at second {second} of {video} lies before it"
            )
        parts.append((max(middle - seconds / 2, 0.0), middle + seconds / 2))
    whole = list(dict.fromkeys(names))
    listing = Listing(Path(videos), Names.of(names + whole), None, [], parts=[*parts, *[None] * len(whole)])
    index = index_videos(listing, threads=threads, frame_rate=frame_rate)
    lengths = dict(zip(whole, index.timelines.seconds(np.arange(len(names), len(index))).tolist(), strict=True))
    index = index.subset(np.arange(len(names)))
    _require_inside(persons, index, first_second)
    named = zip(names, persons.frames, strict=True)
    if first_second > 0 and (long := [name for name, (_, second) in named if second < lengths[name]]):
        warnings.warn(
            f"first_second={first_second:g}: {printable(long[0])} lasts {lengths[long[0]]:.0f} seconds, so it may be a "
            "whole film, which begins at second 0; pass --first-second 0 then",
            stacklevel=2,
        )
    return index


def _require_inside(persons: Persons, index: VideoIndex, first_second: float) -> None:
    late = [persons.frames[sample] for sample, reason in index.bad.items() if reason == EMPTY_PART]
    if late:
        raise ValueError(
            f"first_second={first_second:g}: {len(late)} key frames lie after the end of their video, such as second "
            f"{late[0][1]} of {late[0][0]}; expected the second of the annotations at which the videos begin"
        )


class PersonBatches(LoaderBatches, PersonTests):
    """Batches of random crops of clips with boxes, and the test persons.

    Args:
        train: persons to train on.
        train_index: a sample for each of their key frames.
        test: persons to score, in clips of whole frames, or with their features.
        view: of the test clips; its number of frames is that of the train clips.
        settings: batch size and seed.
        augmentation: of the train clips.
        device: of the pixels.
        ranks: that share each batch, and the test key frames.
        threads: number of threads that decode.

    Raises:
        ValueError: the batch is larger than the number of train key frames, or cannot be shared among the ranks.
    """

    kind = "clips"

    def __init__(
        self,
        train: Persons,
        train_index: VideoIndex,
        test: ShownPersons,
        view: ClipEvaluationView,
        settings: SupervisedSettings,
        *,
        augmentation: Augmentation,
        device: torch.device,
        ranks: Ranks | None = None,
        threads: int = 2,
    ) -> None:
        views = RandomClips(
            train_index,
            whole_time(view),
            (augmentation,),
            seed=settings.seed,
            threads=threads,
            device="gpu" if device.type == "cuda" else "cpu",
        )
        LoaderBatches.__init__(self, train_index, views, settings, ranks or Ranks())
        PersonTests.__init__(self, test, self.ranks)
        self.train, self._augmentation = train, augmentation

    def __next__(self) -> tuple[PersonClips, Tensor]:
        """Return clips with boxes, and the actions (n, A) of the persons.

        Raises:
            BadFilesError: a file cannot be decoded; the message names it.
        """
        batch, index = self._batch(), self._train_index
        plan = plan_view(
            self._augmentation,
            index.sizes[batch.samples],
            seed=self._loader.seed,
            epoch=batch.epoch,
            samples=batch.samples,
            view=0,
        )
        persons, rows, places = self.train.of_frames(batch.samples)
        shares = self.train.boxes[persons]
        boxes = cropped_boxes(shares, index.sizes[batch.samples][rows], plan, rows, self._augmentation.size)
        numbers = numbers_in_batch(rows, places, len(batch.samples), self.ranks)
        clips = PersonClips(batch.views[0], torch.from_numpy(boxes), torch.from_numpy(rows), numbers)
        return clips, torch.from_numpy(self.train.actions[persons])


def cropped_boxes(
    shares: NDArray[np.float64], sizes: NDArray[np.int32], plan: ViewPlan, rows: NDArray[np.int64], size: int
) -> NDArray[np.float64]:
    """Return boxes (n, 4) in pixels of cropped, resized and flipped clips; what lies outside is cut off.

    Args:
        shares: (n, 4) left, top, right, bottom as shares of the frames.
        sizes: (n, 2) height and width of each person's frames.
        plan: of the clips.
        rows: (n,) number of each person's clip in the plan.
        size: side of the crops after resizing.
    """
    top, left, bottom, right = plan.boxes[rows].T[:, :, None]  # (n, 1)
    height, width = sizes.T[:, :, None]
    across = (shares[:, 0::2] * width - left) * size / (right - left)  # (n, 2) left, right
    down = (shares[:, 1::2] * height - top) * size / (bottom - top)
    across = np.where(plan.flip[rows][:, None], size - across[:, ::-1], across)
    return np.stack([across[:, 0], down[:, 0], across[:, 1], down[:, 1]], axis=1).clip(0, size)


def _videos_in(folder: Path) -> dict[str, str]:
    """Return name → relative path of the videos and the folders of frames below a folder.

    Raises:
        FileNotFoundError: the folder does not exist.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"videos={folder}: no such folder")
    found: dict[str, str] = {}
    for root, folders, files in os.walk(folder, followlinks=True):
        relative = os.path.relpath(root, folder)
        if relative != "." and is_frame_folder(files):
            found.setdefault(os.path.basename(root), relative)
            folders.clear()
        for name in filter(is_video_name, files):
            found.setdefault(os.path.splitext(name)[0], os.path.normpath(os.path.join(relative, name)))
    return found
