"""The samples of a batch as the graphs take them: clips that are decoded already, or videos that DALI decodes."""

import enum
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from sce_fast.data.image.graph import path_arrays
from sce_fast.data.pipeline import Feed
from sce_fast.data.video.colour import correction
from sce_fast.data.video.decode import ClipRequest, VideoError, decode_clips
from sce_fast.data.video.index import VideoIndex
from sce_fast.util.files import printable

# Share of decoding in the time of decoding and augmenting: of H.264 with 256 lines, two clips of 8 frames, 224 pixels.
DECODING_SHARE = 0.6


class Ways(enum.Flag):
    """The ways that the samples of a graph may take."""

    AHEAD = enum.auto()  # decoded and cropped before they reach the graph
    DALI = enum.auto()  # decoded in the graph
    BOTH = AHEAD | DALI
    RECOLOURED = enum.auto()  # with DALI: the graph corrects the colours of what it decodes


def ways_of(by_dali: NDArray[np.bool_], recoloured: NDArray[np.bool_]) -> Ways:
    """Return the ways of samples, given whether DALI decodes each, and whether the colours must then be corrected."""
    ways = Ways.DALI if by_dali.all() else Ways.BOTH if by_dali.any() else Ways.AHEAD
    return ways | Ways.RECOLOURED if (by_dali & recoloured).any() else ways


def share_threads(by_dali: NDArray[np.bool_], threads: int, device: str) -> tuple[int, int]:
    """Return the number of threads that decode ahead of time, and that of DALI's threads: together threads + 1.

    The two wait for each other now and then, hence one more.

    Args:
        by_dali: (n,) whether DALI decodes each video.
        device: "cpu", or "gpu", which leaves DALI's threads little to do.
    """
    share = (DECODING_SHARE if device == "cpu" else 1.0) * np.count_nonzero(~by_dali) / max(len(by_dali), 1)
    ahead = min(max(round((threads + 1) * share), 1), threads)
    return ahead, threads + 1 - ahead


@dataclass(frozen=True)
class ClipInput:
    """One sample of a batch."""

    sample: int
    path: bytes
    offset: int  # number that the sample's first frame has in its file
    matrix: int  # of its colours, a key of colour.WEIGHTS
    requests: tuple[ClipRequest, ...]  # the frames of each clip and their box
    frames: NDArray[np.int64]  # (K,) the frames of all requests, each once, ascending
    orders: tuple[NDArray[np.int32], ...]  # for each request (F,): place of each frame, from the request's first on
    vectors: tuple[NDArray[np.float32], ...]  # one for each clip; see clip_input
    size: int  # bytes of the decoded requests
    clips: tuple[NDArray[np.uint8], ...] | None = None  # the decoded requests; None if DALI decodes them

    def decoded(self, index: VideoIndex) -> "ClipInput":
        """Return this sample with its clips.

        Raises:
            VideoError: the file is bad.
            RuntimeError: the decoder failed in an unknown way; the message names the file.
        """
        try:
            return replace(self, clips=tuple(decode_clips(index, self.sample, self.requests)))
        except VideoError:
            raise
        except BaseException as error:  # a SystemExit would end the run as if it were complete
            why = ": ".join(filter(None, [type(error).__name__, str(error)]))
            raise RuntimeError(f"{printable(os.fsdecode(self.path))}: {why}") from error


def clip_input(index: VideoIndex, sample: int, clips: Sequence[tuple[NDArray, NDArray, NDArray]]) -> ClipInput:
    """Return a planned sample that is not decoded.

    DALI decodes each frame once and in ascending order, as it starts again at the beginning of the file for a frame
    that it has passed. A clip's vector holds where the clip lies in the decoded frames, from (frame, row, column) to
    (frame, row, column), and then the settings of its augmentation. Numbers of pixels are exact in float32.

    Args:
        clips: the numbers of each clip's frames, its box, and its settings.
    """
    decoded = np.unique(np.concatenate([frames for frames, _, _ in clips]))
    vectors, orders, size = [], [], 0
    for frames, (top, left, bottom, right), settings in clips:
        places = decoded.searchsorted(frames)
        first, end = places.min(), places.max() + 1
        orders.append((places - first).astype(np.int32))
        vectors.append(np.array([first, top, left, end, bottom, right, *settings], dtype=np.float32))
        size += len(frames) * 3 * int(bottom - top) * int(right - left)
    return ClipInput(
        sample=sample,
        path=index.path(sample),
        offset=int(index.timelines.offset[sample]),
        matrix=index.colours[sample].matrix,
        requests=tuple(ClipRequest(frames, box) for frames, box, _ in clips),
        frames=decoded,
        orders=tuple(orders),
        vectors=tuple(vectors),
        size=size,
    )


def clip_feed(inputs: Sequence[ClipInput], ways: Ways) -> Feed:
    """Return the inputs of a graph that takes these ways.

    They are file, frames, and order of each clip's frames; the correction of colours; whether the sample is decoded
    already; the decoded clips; and the vectors.
    """
    feed: list[list[NDArray]] = []
    if Ways.DALI in ways:
        feed += [path_arrays([i.path for i in inputs]), [(i.frames + i.offset).astype(np.int32) for i in inputs]]
        feed += [
            [order.astype(np.int32) for order in orders] for orders in zip(*(i.orders for i in inputs), strict=True)
        ]
    if Ways.RECOLOURED in ways:
        feed.append([correction(i.matrix) for i in inputs])
    if Ways.BOTH in ways:
        feed.append([np.array(i.clips is not None) for i in inputs])
    if Ways.AHEAD in ways:
        absent = np.zeros((1, 1, 1, 3), dtype=np.uint8)
        for r in range(len(inputs[0].requests)):
            feed.append([absent if i.clips is None else i.clips[r] for i in inputs])
    feed += [list(vectors) for vectors in zip(*(i.vectors for i in inputs), strict=True)]
    return tuple(feed)
