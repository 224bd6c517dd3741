"""Clips of whole frames round key frames, with the boxes of the persons in them."""

import dataclasses
from collections.abc import Generator, Iterator
from contextlib import closing
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate

from sce_fast.data.faults import BadFilesError, evaluation_refusal
from sce_fast.data.image.plan import evaluation_boxes
from sce_fast.data.video.augment import ClipEvaluationView
from sce_fast.data.video.clips import ClipSampling, uniform_clips
from sce_fast.data.video.decode import ClipRequest, VideoError, decode_clips
from sce_fast.data.video.index import VideoIndex
from sce_fast.evaluate.detection.annotations import Persons
from sce_fast.evaluate.detection.network import PersonClips
from sce_fast.util.ahead import Work, run_ahead

WHOLE = 1e6  # seconds, more than any sample has: a clip takes all of its sample's time
TEST_CLIPS = 8  # at a time; neighbours of other sizes are tested apart


def whole_time(view: ClipEvaluationView) -> ClipSampling:
    """Return the sampling of a clip that takes all of its sample's time, with the frames of a view's clips."""
    return ClipSampling(frames=view.sampling.frames, seconds=WHOLE)


class WholeClips:
    """Persons in clips of whole frames, which nothing random changes.

    Args:
        persons: boxes to show.
        index: a sample for each of their key frames.
        view: shorter side, normalisation and number of frames. Clips are not cropped.
        device: of the pixels.
        threads: number of threads that decode.
    """

    def __init__(
        self, persons: Persons, index: VideoIndex, view: ClipEvaluationView, *, device: torch.device, threads: int = 2
    ) -> None:
        self.persons, self.index = persons, index
        self._view = dataclasses.replace(view, sampling=whole_time(view))
        self._threads, self._device = threads, device

    def of(self, frames: NDArray[np.int64]) -> Iterator[PersonClips]:
        """Yield the clips of key frames (N,), batch by batch and in their order.

        Raises:
            BadFilesError: a file cannot be decoded; the message names it.
        """
        view = self._view
        resized, _ = evaluation_boxes(view, self.index.sizes)
        with closing(self._decoded(frames)) as decoded:
            for samples, pixels in decoded:
                height, width = resized[samples[0]].tolist()
                clips = torch.stack([self._normalised(clip, height, width) for clip in pixels])
                persons, rows, places = self.persons.of_frames(np.array(samples))
                boxes = self.persons.boxes[persons] * [width, height, width, height]
                yield PersonClips(clips, torch.from_numpy(boxes), torch.from_numpy(rows), places)

    def _decoded(self, samples: NDArray[np.int64]) -> Generator[tuple[list[int], list[NDArray[np.uint8]]], None, None]:
        """Yield samples and their clips (F, h, w, 3) of one size, batch by batch."""
        index = self.index
        frames = uniform_clips(self._view.sampling, index.timelines, samples, 1)[:, 0]
        requests = dict(zip(samples.tolist(), map(ClipRequest, frames), strict=True))

        def works() -> Iterator[Work[tuple[int, NDArray[np.uint8]]]]:
            for part in _parts_of_one_size(samples, index.sizes):
                size = sum(int(index.sizes[i].prod()) * 3 * self._view.sampling.frames for i in part)
                yield Work([partial(_decoded_clip, index, i, requests[i]) for i in part], size)

        with closing(run_ahead(works(), threads=self._threads)) as ready:
            for results in ready:
                yield [sample for sample, _ in results], [clip for _, clip in results]

    def _normalised(self, clip: NDArray[np.uint8], height: int, width: int) -> Tensor:
        """Return a clip (3, F, height, width) of decoded frames."""
        pixels = torch.from_numpy(clip).to(self._device).permute(0, 3, 1, 2).float() / 255  # (F, 3, h, w)
        resized = interpolate(pixels, (height, width), mode="bilinear", antialias=True, align_corners=False)
        view = self._view
        mean, std = (torch.tensor(values, device=self._device).view(3, 1, 1) for values in (view.mean, view.std))
        return ((resized - mean) / std).transpose(0, 1)


def _parts_of_one_size(samples: NDArray[np.int64], sizes: NDArray[np.int32]) -> Iterator[list[int]]:
    """Yield runs of at most TEST_CLIPS samples whose frames have the same size."""
    part: list[int] = []
    for sample in samples.tolist():
        if part and (len(part) == TEST_CLIPS or tuple(sizes[sample]) != tuple(sizes[part[0]])):
            yield part
            part = []
        part.append(sample)
    if part:
        yield part


def _decoded_clip(index: VideoIndex, sample: int, request: ClipRequest) -> tuple[int, NDArray[np.uint8]]:
    try:
        (clip,) = decode_clips(index, sample, [request])
    except VideoError as error:
        raise BadFilesError(
            evaluation_refusal(index.by_path({sample: error.reason}), len(index), index.kind)
        ) from error
    return sample, clip
