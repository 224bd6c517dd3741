"""Clips of an evaluation: every video once, in the order of the index."""

from collections import deque
from collections.abc import Generator, Iterator
from contextlib import ExitStack, closing
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sce_fast.data.faults import BadFilesError, evaluation_refusal
from sce_fast.data.image.plan import evaluation_boxes
from sce_fast.data.pipeline import Feed, next_outputs, shut_down
from sce_fast.data.video.augment import ClipEvaluationView
from sce_fast.data.video.clips import uniform_clips
from sce_fast.data.video.decode import VideoError
from sce_fast.data.video.graph import evaluation_clip_pipeline, refused_by_dali
from sce_fast.data.video.index import VideoIndex
from sce_fast.data.video.inputs import ClipInput, Ways, clip_feed, clip_input, share_threads, ways_of
from sce_fast.data.video.routes import recoloured, routes
from sce_fast.util.ahead import Work, run_ahead

BYTES_AT_ONCE = 2**28  # of a batch's frames before and after resizing


def evaluation_clips(
    index: VideoIndex,
    view: ClipEvaluationView,
    *,
    batch_size: int = 16,
    threads: int = 2,
    device: str = "cpu",
    skipped: dict[int, str] | None = None,
) -> Iterator[Tensor]:
    """Yield the clips of all videos in the order of the index as (N, clips · crops, 3, F, crop, crop) float32.

    The crops of a clip stand side by side. N is below batch_size where the frames would take much memory.

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
    samples = np.array([i for i in range(len(index)) if i not in index.bad], dtype=np.int64)
    clips = _UniformClips(index, view, batch_size=batch_size, threads=threads, device=device, skipped=skipped)
    while len(samples):
        used: deque[_Used] = deque()  # handed to DALI, not yet returned
        with closing(clips.feeds(samples, used)) as feeds, ExitStack() as ending:
            pipeline = clips.pipeline(feeds)
            ending.callback(shut_down, pipeline)
            while True:
                try:
                    outputs = next_outputs(pipeline, device)
                except StopIteration:
                    return
                except RuntimeError as error:
                    if isinstance(error, BadFilesError) or not used or not clips.recover(used[0].by_dali):
                        raise
                    break
                samples = samples[samples > used.popleft().last]
                yield _side_by_side(outputs, view.clips)


class _Used(NamedTuple):
    """What is remembered of a batch; clips that are decoded ahead of time take much memory."""

    last: int  # its last sample
    by_dali: list[ClipInput]  # samples left to DALI


class _UniformClips:
    """The uniform clips of videos, as planned, decoded ahead of time or left to DALI."""

    def __init__(
        self,
        index: VideoIndex,
        view: ClipEvaluationView,
        *,
        batch_size: int,
        threads: int,
        device: str,
        skipped: dict[int, str] | None,
    ) -> None:
        self._index, self._view, self._batch_size, self._skipped = index, view, batch_size, skipped
        self._by_dali, self._recoloured = routes(index, device), recoloured(index)
        self._pool_threads, self._dali_threads = share_threads(self._by_dali, threads, device)
        self._device = device

    def feeds(self, samples: NDArray[np.int64], used: deque[_Used]) -> Generator[Feed, None, None]:
        """Yield the pipeline's inputs, batch by batch, and note each batch in `used`.

        Raises:
            BadFilesError: a file cannot be decoded, and bad files are not skipped.
        """
        ways = ways_of(self._by_dali, self._recoloured)
        work = (Work([partial(self._decoded, i) for i in part], self._bytes(part)) for part in self._parts(samples))
        with closing(run_ahead(work, threads=self._pool_threads)) as ready:
            for results in ready:
                bad = {i.sample: reason for i, reason in results if reason is not None}
                if bad and self._skipped is None:
                    index = self._index
                    raise BadFilesError(evaluation_refusal(index.by_path(bad), len(index), index.kind))
                if self._skipped is not None:
                    self._skipped |= bad
                if inputs := [i for i, reason in results if reason is None]:
                    used.append(_Used(inputs[-1].sample, [i for i in inputs if i.clips is None]))
                    yield clip_feed(inputs, ways)

    def pipeline(self, feeds: Iterator[Feed]) -> Any:
        """Build the pipeline that turns feeds into crops."""
        return self._build(feeds, ways_of(self._by_dali, self._recoloured), self._batch_size)

    def recover(self, inputs: list[ClipInput]) -> bool:
        """Have those of these videos that DALI refuses decoded ahead of time, and return whether there are any."""
        one_by_one = partial(self._build, ways=Ways.DALI, batch_size=1, prefetch=1)
        refused = refused_by_dali(inputs, one_by_one)
        self._by_dali[[i.sample for i in refused]] = False
        return bool(refused)

    def _build(self, feeds: Iterator[Feed], ways: Ways, batch_size: int, prefetch: int = 2) -> Any:
        return evaluation_clip_pipeline(
            feeds,
            self._view,
            ways=ways,
            batch_size=batch_size,
            threads=self._dali_threads,
            device=self._device,
            prefetch=prefetch,
        )

    def _parts(self, samples: NDArray[np.int64]) -> Iterator[list[ClipInput]]:
        """Yield the planned samples in batches of at most batch_size videos and BYTES_AT_ONCE, or of one video."""
        part: list[ClipInput] = []
        for start in range(0, len(samples), self._batch_size):
            for planned in self._planned(samples[start : start + self._batch_size]):
                if part and (len(part) == self._batch_size or self._bytes([*part, planned]) > BYTES_AT_ONCE):
                    yield part
                    part = []
                part.append(planned)
        if part:
            yield part

    def _planned(self, samples: NDArray[np.int64]) -> list[ClipInput]:
        view, sizes = self._view, self._index.sizes[samples]
        frames = uniform_clips(view.sampling, self._index.timelines, samples, view.clips)
        boxes = np.concatenate([np.zeros_like(sizes), sizes], axis=1)
        resized, corners = evaluation_crops(view, sizes)
        settings = np.concatenate([resized, corners.reshape(len(samples), -1)], axis=1)
        return [
            clip_input(self._index, sample, [(frames[n].reshape(-1), boxes[n], settings[n])])
            for n, sample in enumerate(samples.tolist())
        ]

    def _decoded(self, planned: ClipInput) -> tuple[ClipInput, str | None]:
        """Return a sample, decoded unless DALI does it, and the reason if it is bad; runs in the pool."""
        if self._by_dali[planned.sample]:
            return planned, None
        try:
            return planned.decoded(self._index), None
        except VideoError as error:
            return planned, error.reason

    def _bytes(self, part: list[ClipInput]) -> int:
        """Return the bytes of a batch's decoded frames and of its crops in float32."""
        frames = sum(len(i.requests[0].frames) for i in part)
        return sum(i.size for i in part) + frames * self._view.crops * 3 * self._view.crop**2 * 4


def evaluation_crops(view: ClipEvaluationView, sizes: NDArray[np.int32]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Return sizes after resizing (N, 2), and top and left of each crop (N, crops, 2).

    One crop is the centre. Three crops lie at the start, in the middle and at the end of the longer side.
    """
    resized, boxes = evaluation_boxes(view, sizes)
    corners = np.repeat(boxes[:, None, :2], view.crops, axis=1)
    if view.crops == 3:
        rows, longer = np.arange(len(sizes)), resized.argmax(axis=1)
        corners[rows, 0, longer] = 0
        corners[rows, 2, longer] = resized[rows, longer] - view.crop
    return resized, corners


def _side_by_side(outputs: list[Tensor], clips: int) -> Tensor:
    """Return (N, clips · crops, 3, F, crop, crop) of one tensor (N, clips · F, 3, crop, crop) for each crop."""
    crops = torch.stack(outputs, dim=1)  # (N, crops, clips · F, 3, crop, crop)
    together = crops.unflatten(2, (clips, -1)).permute(0, 2, 1, 4, 3, 5, 6)  # (N, clips, crops, 3, F, crop, crop)
    return together.flatten(1, 2).contiguous()
