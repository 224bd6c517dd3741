"""Planned frames of an encoded video: where to seek, what to decode, and how frames are recognised."""

import os
from collections.abc import Container, Iterable, Iterator
from itertools import chain, dropwhile
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sce_fast.data.faults import DAMAGED, NO_VIDEO_STREAM, UNREADABLE, UNSUPPORTED, status_or_reason
from sce_fast.data.video.containers import container_facts
from sce_fast.data.video.index import VideoIndex
from sce_fast.data.video.probe import demuxed, failure_reason, opened
from sce_fast.util.files import printable

if TYPE_CHECKING:
    import av
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.stream import VideoStream


# A decoder holds back some frames to put them in order. A key frame this close is reached sooner by decoding on.
FRAMES_HELD_BACK = 4
# Some containers seek by the time of decoding, and miss a key frame that is decoded before it is shown. Such seeks are
# repeated this much earlier.
SECONDS_EARLIER = (0, 1, 4, 16)
_CHUNK_HEADER = 8  # bytes before the content of a packet in AVI
_PROGRESSIVE, _INTRA = 1, 1  # FFmpeg's AV_FIELD_PROGRESSIVE and AV_PICTURE_TYPE_I


class VideoError(RuntimeError):
    """Raised when planned frames of a video cannot be decoded; `reason` is one of the words of data/faults.py."""

    def __init__(self, path: bytes, reason: str) -> None:
        super().__init__(f"{printable(os.fsdecode(path))}: {reason}")
        self.reason = reason


def planned_frames(index: VideoIndex, sample: int, numbers: NDArray[np.int64]) -> Iterator[tuple[int, "av.VideoFrame"]]:
    """Yield number and frame, as encoded, of each planned frame.

    Frames are recognised by the time at which they are shown; in files without such times by counting from the
    beginning. A planned frame that does not come after a seek is looked for again from the beginning, where nothing is
    left out: a seek may lead to a key frame from which the decoder cannot start, and a decoder that must guess how long
    to hold back frames may drop some.

    Args:
        numbers: (K,) numbers of the frames, ascending.

    Raises:
        VideoError: a planned frame does not come, or comes damaged.
    """
    import av

    path = index.path(sample)
    if isinstance(reason := status_or_reason(path), str):
        raise VideoError(path, reason)
    timed = bool(index.timed[sample])
    keys = index.timelines.ticks(sample, numbers) if timed else numbers + index.timelines.offset[sample]
    missing = dict(zip(keys.tolist(), numbers.tolist(), strict=True))
    failure: Exception | None = None
    for seeks in (True, False) if timed else (False,):
        try:
            with opened(path) as container:
                stream = _stream(container, int(index.streams[sample]), path)
                if seeks:
                    found = _after_seeks(container, stream, missing, _runs(index, sample, numbers))
                else:
                    packets = _packets(container, stream)
                    if len(index.key_frames[sample]):  # the index has no frames before the first one
                        packets = dropwhile(lambda packet: not packet.is_keyframe, packets)
                    frames = _decode(stream, packets, None)
                    found = _by_time(frames, missing, keys.tolist()) if timed else _by_count(frames, missing)
                yield from found
        except av.FFmpegError as error:
            failure = error
        if not missing:
            return
    raise VideoError(path, _reason(path, failure)) from failure


def _reason(path: bytes, failure: Exception | None) -> str:
    """Return why a planned frame of a file that the index could read did not come."""
    reason = DAMAGED if failure is None else failure_reason(path, failure)
    return _unknown_reason(path) if reason == UNSUPPORTED else reason


def _unknown_reason(path: bytes) -> str:
    """Return why FFmpeg finds something in a file that it does not know: it may be the rest of something longer."""
    try:
        return DAMAGED if container_facts(path).truncated else UNSUPPORTED
    except OSError:
        return UNREADABLE


def _stream(container: "InputContainer", number: int, path: bytes) -> "VideoStream":
    """Return a stream of a file, to be decoded in this thread. Packets of other streams are not read."""
    from av.stream import Discard
    from av.video.stream import VideoStream

    stream = container.streams[number] if number < len(container.streams) else None
    if not isinstance(stream, VideoStream):
        raise VideoError(path, NO_VIDEO_STREAM)
    if stream.codec_context is None:
        raise VideoError(path, _unknown_reason(path))
    for other in container.streams:
        if other is not stream:
            other.discard = Discard.all
    stream.codec_context.thread_count = 1
    return stream


def _runs(index: VideoIndex, sample: int, numbers: NDArray[np.int64]) -> list[tuple[int, list[int]]]:
    """Return where to seek, and the planned frames to decode from there, both in ticks."""
    lines = index.timelines
    offset = lines.offset[sample]
    runs = split_into_runs(numbers + offset, np.asarray(index.key_frames[sample]))
    ticks = [lines.ticks(sample, np.append(run, max(key, offset)) - offset).tolist() for key, run in runs]
    return [(key, run) for *run, key in ticks]


def split_into_runs(numbers: NDArray[np.int64], key_frames: NDArray[np.int64]) -> list[tuple[int, NDArray[np.int64]]]:
    """Return runs of frames to decode without a seek between them, each with the key frame to start from.

    Args:
        numbers: (K,) numbers of the planned frames, ascending.
        key_frames: numbers of the key frames, ascending.

    Example:
        >>> split_into_runs(np.array([3, 14, 40]), np.array([0, 12, 24, 36]))
        [(0, array([3])), (12, array([14])), (36, array([40]))]
    """
    keys = np.concatenate([[0], key_frames])  # an edit list may hide the first one
    starts = keys[keys.searchsorted(numbers, "right") - 1]
    cuts = np.flatnonzero(starts[1:] > numbers[:-1] + FRAMES_HELD_BACK) + 1
    first = [0, *cuts.tolist()]
    return [(int(starts[i]), run) for i, run in zip(first, np.split(numbers, cuts), strict=True)]


def _after_seeks(
    container: "InputContainer", stream: "VideoStream", missing: dict[int, int], runs: list[tuple[int, list[int]]]
) -> Iterator[tuple[int, "av.VideoFrame"]]:
    """Yield the frames of each run, up to a run of which a frame does not come."""
    for key, run in runs:
        if missing.keys().isdisjoint(run):  # decoded with the run before
            continue
        yield from _by_time(_frames_from_key(container, stream, key, run[0], missing), missing, run)
        if not missing.keys().isdisjoint(run):
            return


def _frames_from_key(
    container: "InputContainer", stream: "VideoStream", key: int, first: int, missing: dict[int, int]
) -> Iterator["av.VideoFrame"]:
    """Yield the frames from a key frame on; none if no seek leads to a key frame shown by the time `first`.

    A key frame that is no intra frame starts a periodic refresh: the frames after it are whole only by and by. The
    decoder calls them so too early.
    """
    for seconds in SECONDS_EARLIER:
        container.seek(key - int(seconds / (stream.time_base or 1)), stream=stream)
        packets = _packets(container, stream)
        start = next((packet for packet in packets if packet.is_keyframe), None)
        if start is not None and start.pts is not None and start.pts <= first:
            frames = _decode(stream, chain([start], packets), missing)
            shown = next((frame for frame in frames if frame.pts is not None and frame.pts >= start.pts), None)
            if shown is not None and shown.pts == start.pts and shown.pict_type == _INTRA:
                yield from chain([shown], frames)
            return


def _packets(container: "InputContainer", stream: "VideoStream") -> Iterator["Packet"]:
    """Yield the packets of a stream, up to damage that would make the times of later packets wrong.

    AVI holds no times, only an index. FFmpeg passes over bytes that are no packets, and does not count what was there.
    """
    entries = stream.index_entries if container.format.name == "avi" else ()
    for packet in demuxed(container, stream):
        if entries and packet.size:
            place = entries.search_timestamp(packet.dts, any_frame=True)
            entry = entries[max(place, 0)]
            if entry.timestamp == packet.dts and entry.size != packet.size and entry.pos + _CHUNK_HEADER != packet.pos:
                return
        yield packet


def _decode(
    stream: "VideoStream", packets: Iterable["Packet"], planned: Container[int] | None
) -> Iterator["av.VideoFrame"]:
    """Yield the frames of packets, except for some that are not planned and that no other frame needs.

    Args:
        planned: ticks of planned frames; None returns all frames.
    """
    context = stream.codec_context
    skips = _may_skip(context)
    for packet in packets:
        if not packet.size and packet.dts is not None:
            continue  # how AVI repeats a frame; to a decoder it is the end of the file
        if skips and planned is not None:
            context.skip_frame = "DEFAULT" if packet.pts is None or packet.pts in planned else "NONREF"
        yield from stream.decode(packet)


def _by_time(
    frames: Iterable["av.VideoFrame"], missing: dict[int, int], ticks: list[int]
) -> Iterator[tuple[int, "av.VideoFrame"]]:
    """Yield planned frames, taken out of `missing` (ticks → number), until all of `ticks` came or the frames end."""
    waiting = missing.keys() & set(ticks)
    for frame in frames:
        if frame.pts in missing and not frame.is_corrupt:
            waiting.discard(frame.pts)
            yield missing.pop(frame.pts), frame
            if not waiting:
                return


def _by_count(frames: Iterable["av.VideoFrame"], missing: dict[int, int]) -> Iterator[tuple[int, "av.VideoFrame"]]:
    """Yield planned frames, taken out of `missing` (count from the beginning → number)."""
    for count, frame in enumerate(frames):
        if count in missing and not frame.is_corrupt:
            yield missing.pop(count), frame
        if not missing:
            return


def _may_skip(context: "av.VideoCodecContext") -> bool:
    """Return whether the decoder may leave out frames that no other frame refers to, as their packets say.

    Those are a fourth to a half of the frames of most H.264 and HEVC files. In H.264 a picture may consist of two
    packets with a field each, so only progressive streams count. In HEVC such frames may serve higher temporal layers,
    so only streams with a single layer count (its number stands in byte 21 of the hvcC record, ISO/IEC 14496-15).
    """
    if context.name == "h264":
        return context.field_order == _PROGRESSIVE
    record = context.extradata or b""
    return context.name == "hevc" and len(record) > 22 and record[0] == 1 and record[21] >> 3 & 7 == 1
