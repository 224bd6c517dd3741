"""Clips from encoded videos with FFmpeg (PyAV), and from folders of extracted frames."""

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from sce_fast.data.faults import CHANGED, DAMAGED, FRAMES_MISSING, MISSING, UNREADABLE, status_or_reason
from sce_fast.data.sources.frames import frame_files
from sce_fast.data.video.colour import Converter
from sce_fast.data.video.index import VideoIndex
from sce_fast.data.video.probe import FRAMES
from sce_fast.data.video.stream import VideoError, planned_frames

Box = tuple[int, int, int, int]  # top, left, bottom, right
Cut = Callable[[Box], NDArray[np.uint8]]  # part of a frame as encoded → RGB (h, w, 3)


@dataclass(frozen=True)
class ClipRequest:
    """The frames of a clip, and the part of them that is needed."""

    frames: NDArray[np.int64]  # (F,) numbers in any order, repeated or not
    box: NDArray[np.int32] | None = None  # (4,) top, left, bottom, right in upright frames; None is all


def decode_clips(index: VideoIndex, sample: int, requests: Sequence[ClipRequest]) -> list[NDArray[np.uint8]]:
    """Return the clips (F, h, w, 3) of a video: upright, RGB, cropped. One pass through the file serves all requests.

    Frames that no request names are not converted, and not even decoded where the codec allows it.

    Raises:
        VideoError: the file vanished or changed, is damaged, or its format is unsupported; `reason` says which.
        ValueError: a frame number or a box lies outside the video.

    Example:
        >>> first, second = decode_clips(index, 7, [ClipRequest(np.arange(0, 64, 8)), ClipRequest(np.arange(30, 38))])
    """
    height, width = index.sizes[sample].tolist()
    whole: Box = (0, 0, height, width)
    boxes: list[Box] = [whole if r.box is None else tuple(r.box.tolist()) for r in requests]
    uses: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for i, request in enumerate(requests):
        for place, number in enumerate(request.frames.tolist()):
            uses[number].append((i, place))
    _require_inside(index, sample, boxes, uses)
    clips = [
        np.empty((len(request.frames), bottom - top, right - left, 3), dtype=np.uint8)
        for request, (top, left, bottom, right) in zip(requests, boxes, strict=True)
    ]
    rotation = int(index.rotations[sample])
    numbers = np.array(sorted(uses), dtype=np.int64)
    read = _extracted_frames if index.codecs[sample] == FRAMES else _decoded_frames
    for number, cut in read(index, sample, numbers):
        needed = _bounding_box(boxes[i] for i, _ in uses[number])
        part = np.rot90(cut(_box_before_rotation(needed, rotation, height, width)), -rotation // 90)
        for i, place in uses[number]:
            top, left, bottom, right = boxes[i]
            clips[i][place] = part[top - needed[0] : bottom - needed[0], left - needed[1] : right - needed[1]]
    return clips


def _require_inside(index: VideoIndex, sample: int, boxes: list[Box], numbers: Iterable[int]) -> None:
    height, width = index.sizes[sample].tolist()
    frames = int(index.timelines.frames[sample])
    for box in boxes:
        top, left, bottom, right = box
        if not (0 <= top < bottom <= height and 0 <= left < right <= width):
            raise ValueError(f"box {box}: expected top, left, bottom, right within {height} × {width} pixels")
    for number in numbers:
        if not 0 <= number < frames:
            raise ValueError(f"frame {number}: expected 0 to {frames - 1}")


def _bounding_box(boxes: Iterable[Box]) -> Box:
    tops, lefts, bottoms, rights = zip(*boxes, strict=True)
    return min(tops), min(lefts), max(bottoms), max(rights)


def _box_before_rotation(box: Box, rotation: int, height: int, width: int) -> Box:
    """Return where a part of an upright frame lies in the frame as encoded.

    Args:
        rotation: degrees clockwise from the encoded to the upright frame.
        height, width: of the upright frame.
    """
    top, left, bottom, right = box
    if rotation == 90:
        return width - right, top, width - left, bottom
    if rotation == 180:
        return height - bottom, width - right, height - top, width - left
    if rotation == 270:
        return left, height - bottom, right, height - top
    return box


def _extracted_frames(index: VideoIndex, sample: int, numbers: NDArray[np.int64]) -> Iterator[tuple[int, Cut]]:
    """Yield planned frames of a folder of image files."""
    from PIL import Image

    folder, offset = index.path(sample), int(index.timelines.offset[sample])
    try:
        files = frame_files(folder)
    except ValueError as error:
        raise VideoError(folder, FRAMES_MISSING) from error
    except OSError as error:
        raise VideoError(folder, UNREADABLE if os.path.exists(folder) else MISSING) from error
    for number in numbers.tolist():
        if offset + number >= len(files):
            raise VideoError(folder, FRAMES_MISSING)
        file = files[offset + number]
        if isinstance(reason := status_or_reason(file), str):
            raise VideoError(file, reason)
        try:
            with Image.open(os.fsdecode(file)) as image:
                pixels = np.asarray(image.convert("RGB"))
        except Exception as error:  # Pillow raises errors of many types
            raise VideoError(file, DAMAGED) from error
        _require_size(index, sample, file, *pixels.shape[:2])
        yield number, partial(_cut, pixels)


def _cut(pixels: NDArray[np.uint8], box: Box) -> NDArray[np.uint8]:
    top, left, bottom, right = box
    return pixels[top:bottom, left:right]


def _decoded_frames(index: VideoIndex, sample: int, numbers: NDArray[np.int64]) -> Iterator[tuple[int, Cut]]:
    """Yield planned frames of an encoded video."""
    convert = Converter(index.colours[sample])
    for number, frame in planned_frames(index, sample, numbers):
        _require_size(index, sample, index.path(sample), frame.height, frame.width)
        yield number, partial(convert, frame)


def _require_size(index: VideoIndex, sample: int, path: bytes, height: int, width: int) -> None:
    """Raise an error if a frame as encoded has not the size that the index has."""
    upright = (width, height) if index.rotations[sample] in (90, 270) else (height, width)
    if upright != tuple(index.sizes[sample].tolist()):
        raise VideoError(path, CHANGED)
