"""The index of videos: what probing finds in each file, cached, and the timelines of the samples."""

import hashlib
import math
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from sce_fast.data.cache import cache_file_of, take_rows
from sce_fast.data.faults import EMPTY_PART
from sce_fast.data.index import Index
from sce_fast.data.sources import Listing, Names, list_videos
from sce_fast.data.stamps import file_stamps
from sce_fast.data.video.colour import Colour, encoded_lines, full_ranges, matrices
from sce_fast.data.video.files import Ragged, probed_files
from sce_fast.data.video.probe import FRAMES
from sce_fast.data.video.timeline import Timelines

_ROUNDING = 1e-6  # of a tick, by which a time in seconds may be inexact
FRAME_RATE = 30.0  # frames per second of extracted frames


@dataclass(frozen=True)
class VideoIndex(Index):
    """The videos of a data set, when their frames are shown, and what decoders must know of them."""

    kind: ClassVar[str] = "videos"
    listing: Listing
    sizes: NDArray[np.int32]  # (n, 2) height, width after rotation; 0 for bad files
    bad: dict[int, str]  # sample → reason, of files that cannot be used and of parts without frames
    timelines: Timelines
    streams: NDArray[np.int16]  # (n,) number of the video stream in its file
    codecs: NDArray[np.str_]  # (n,) FFmpeg's codec name, such as "h264"; "frames" for a folder of extracted frames
    pixel_formats: NDArray[np.str_]  # (n,) FFmpeg's name, such as "yuv420p"
    rotations: NDArray[np.int16]  # (n,) degrees clockwise (0, 90, 180, 270) that make a decoded frame upright
    matrices: NDArray[np.int8]  # (n,) declared colour space as FFmpeg's AVColorSpace; 2: undeclared
    ranges: NDArray[np.int8]  # (n,) declared range as FFmpeg's AVColorRange; 0: undeclared
    # Numbers of the key frames in each sample's file; by order of decoding if it is not timed. Frames before the first
    # one are decoded from the file's beginning: an edit list has left out their key frame.
    key_frames: Ragged
    timed: NDArray[np.bool_]  # (n,) whether each frame has a time of its own; otherwise decoders must count frames
    plain: NDArray[np.bool_]  # (n,) whether DALI numbers the frames of the file alike
    one_picture: NDArray[np.bool_]  # (n,) whether every packet holds one progressive picture that is shown

    @cached_property
    def colours(self) -> list[Colour]:
        """How each video's numbers stand for colours."""
        matrix = matrices(self.matrices, self.codecs, encoded_lines(self.sizes, self.rotations))
        full = full_ranges(self.ranges, self.pixel_formats)
        return [Colour(*values) for values in zip(matrix.tolist(), full.tolist(), strict=True)]

    def facts(self, part: slice = slice(None)) -> list[list[int]]:
        return np.column_stack([self.sizes[part], self.timelines.frames[part]]).tolist()

    def rows(self, rows: NDArray[np.int64], listing: Listing, bad: dict[int, str]) -> "VideoIndex":
        return VideoIndex(
            listing,
            take_rows(self.sizes, rows),
            bad,
            _timeline_rows(self.timelines, rows),
            streams=take_rows(self.streams, rows),
            codecs=take_rows(self.codecs, rows),
            pixel_formats=take_rows(self.pixel_formats, rows),
            rotations=take_rows(self.rotations, rows),
            matrices=take_rows(self.matrices, rows),
            ranges=take_rows(self.ranges, rows),
            key_frames=self.key_frames.take(rows),
            timed=take_rows(self.timed, rows),
            plain=take_rows(self.plain, rows),
            one_picture=take_rows(self.one_picture, rows),
        )


def index_videos(
    path: str | Path | Listing, *, threads: int = 2, cache: Path | None = None, frame_rate: float = FRAME_RATE
) -> VideoIndex:
    """Return the index of a folder or list file of videos. Files that did not change are read from the cache.

    The index also lists files that are missing, damaged or without a video stream; its `bad` holds the reasons. The
    frames of a part are those shown in [start, end), counted from the first frame of the file.

    Args:
        path: any path that list_videos accepts, or a listing, such as read_split returns.
        threads: number of threads that read files.
        cache: folder of the cache; as for index_images.
        frame_rate: frames per second of folders of extracted frames.

    Raises:
        FileNotFoundError, ValueError: as list_videos; ValueError: the frame rate is not positive.
    """
    if not 0 < frame_rate < math.inf:
        raise ValueError(f"frame_rate={frame_rate}: expected frames per second, more than 0")
    listing = path if isinstance(path, Listing) else list_videos(path)
    number = {name: i for i, name in enumerate(dict.fromkeys(listing.names))}  # a list file may name parts of a file
    names = Names.of(number)
    paths = [os.fsencode(os.path.join(listing.root, name)) for name in number]
    stamps, unopened = file_stamps(listing.root, names, folders=True)
    files = probed_files(_cache_file(path, cache, names), names, paths, stamps, set(unopened), threads)
    rows = np.array([number[name] for name in listing.names], dtype=np.int64)
    reasons = {**{i: str(files.reasons[i]) for i in np.flatnonzero(files.reasons != "").tolist()}, **unopened}
    bad = {sample: reasons[row] for sample, row in enumerate(rows.tolist()) if row in reasons}
    samples = files.take(rows)
    timelines = Timelines(
        samples.frames,
        np.zeros(len(rows), dtype=np.int64),
        np.where(samples.codecs == FRAMES, 1 / frame_rate, samples.tick),
        samples.first,
        samples.step,
        samples.duration,
        {i: files.variable[rows[i]] for i in np.flatnonzero((samples.step == 0) & (samples.frames > 0)).tolist()},
    )
    for sample, part in enumerate(listing.parts or ()):
        if part is not None and timelines.frames[sample]:
            _cut(timelines, sample, part)
            if not timelines.frames[sample]:
                bad[sample] = EMPTY_PART
                samples.sizes[sample] = 0
    return VideoIndex(
        listing,
        samples.sizes,
        bad,
        timelines,
        streams=samples.streams,
        codecs=samples.codecs,
        pixel_formats=samples.pixel_formats,
        rotations=samples.rotations,
        matrices=samples.matrices,
        ranges=samples.ranges,
        key_frames=samples.key_frames,
        timed=samples.timed,
        plain=samples.plain,
        one_picture=samples.one_picture,
    )


def _cache_file(path: str | Path | Listing, cache: Path | None, names: Names) -> Path:
    """Return the file of the cache; the parts of a split have the same folder and other names."""
    if isinstance(path, Listing):
        digest = hashlib.sha256(os.fsencode("\0".join(names))).hexdigest()[:16]
        return cache_file_of(path.root, cache, f"-videos-{digest}")
    return cache_file_of(path, cache, "-videos")


def _cut(timelines: Timelines, sample: int, part: tuple[float, float]) -> None:
    """Reduce a sample to the frames that are shown in [start, end) seconds."""
    frames, tick, step = int(timelines.frames[sample]), timelines.tick[sample], int(timelines.step[sample])
    whole = timelines.variable.pop(sample, None)
    # In whole ticks, as the product of a frame number and an inexact tick may lie on either side of a time.
    start, end = (math.ceil(seconds / tick - _ROUNDING) for seconds in part)
    if whole is None:
        begin, stop = (min(-(-time // step), frames) for time in (start, end))
        shift, rest = begin * step, timelines.duration[sample] if stop == frames else stop * step
    else:
        begin, stop = np.searchsorted(whole, [start, end]).tolist()
        shift, rest = (whole[i] if i < frames else timelines.duration[sample] for i in (begin, stop))
        timelines.variable[sample] = whole[begin:stop] - shift
    timelines.frames[sample] = stop - begin
    timelines.offset[sample] = begin
    timelines.first[sample] += shift
    timelines.duration[sample] = rest - shift


def _timeline_rows(timelines: Timelines, rows: NDArray[np.int64]) -> Timelines:
    return Timelines(
        take_rows(timelines.frames, rows),
        take_rows(timelines.offset, rows),
        take_rows(timelines.tick, rows),
        take_rows(timelines.first, rows),
        take_rows(timelines.step, rows),
        take_rows(timelines.duration, rows),
        {new: timelines.variable[old] for new, old in enumerate(rows.tolist()) if old in timelines.variable},
    )
