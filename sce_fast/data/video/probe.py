"""What a video file holds: its frames in the order in which they are shown, found by demuxing alone."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sce_fast.data.faults import (
    DAMAGED,
    EMPTY,
    FRAMES_MISSING,
    NO_FRAMES,
    NO_VIDEO_STREAM,
    NOT_A_VIDEO,
    SEVERAL_SIZES,
    UNREADABLE,
    UNSUPPORTED,
    status_or_reason,
)
from sce_fast.data.sources import frame_files
from sce_fast.data.video.containers import container_facts, is_plausible
from sce_fast.data.video.fields import Field, FieldReader, field_pairs
from sce_fast.data.video.pictures import is_one_picture

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

FRAMES = "frames"  # in place of a codec: a folder of extracted frames
# Containers that FFmpeg may find in a file. Others are no videos, or open files and addresses that are named in them.
_DEMUXERS = "mov,matroska,avi,mpegts,mpeg,mpegvideo,flv,asf,ogg"
_USUAL_RATE = Fraction(30)  # frames per second, where a file names none
FRAMES_TICK = Fraction(1, 30)  # seconds; an index replaces it by its own frame rate
_VP8_SHOWN = 0x10  # bit of a frame's first byte
_INTERLACED = (2, 3, 4, 5)  # FFmpeg's AVFieldOrder
_GENERATE_TIMES = 0x0001  # AVFMT_FLAG_GENPTS, which PyAV sets: times that the container lacks would look like its own


@dataclass(frozen=True)
class VideoFacts:
    """The video stream of one file. Frames are numbered in the order in which they are shown."""

    size: tuple[int, int]  # height and width after rotation
    codec: str  # FFmpeg's name, or FRAMES
    times: NDArray[np.int64]  # (frames,) ticks at which each frame is shown, in ascending order
    end: int  # ticks at which the last frame ends
    tick: Fraction  # seconds
    key_frames: NDArray[np.int64]  # numbers of the key frames
    stream: int = 0  # number in the file
    pixel_format: str = ""  # FFmpeg's name
    rotation: int = 0  # degrees clockwise that make a decoded frame upright
    matrix: int = 2  # FFmpeg's AVColorSpace; 2 if undeclared
    range: int = 0  # FFmpeg's AVColorRange; 0 if undeclared
    timed: bool = True  # every frame has a time of its own, by which a decoder can seek
    plain: bool = False  # DALI numbers the frames of this file alike
    one_picture: bool = False  # every packet holds one progressive picture that is shown, as DALI expects on a GPU


@contextmanager
def opened(path: bytes) -> Iterator["InputContainer"]:
    """Open a video file with PyAV.

    Raises:
        av.FFmpegError: FFmpeg cannot read it, or it is no container of videos.
    """
    import av

    # As a URL: otherwise a name with a colon would be taken for one.
    options = {"format_whitelist": _DEMUXERS, "protocol_whitelist": "file"}
    with av.open(f"file:{os.fsdecode(path)}", container_options=options, metadata_errors="replace") as container:
        container.flags &= ~_GENERATE_TIMES
        yield container


def demuxed(container: "InputContainer", stream: "VideoStream") -> Iterator["Packet"]:
    """Yield the packets of a stream, the last one empty.

    Transport streams may gain streams after they are opened, by damage or by design. PyAV then fails at the end of the
    file, behind the last packet: it looks for these streams in its own list.

    Raises:
        av.FFmpegError: FFmpeg cannot read on.
    """
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets)
        except (StopIteration, IndexError):
            return
        yield packet


def probe(path: bytes) -> VideoFacts | str:
    """Return what a file or a folder of extracted frames holds, or the reason why it cannot be used.

    The file exists and is a regular file (see status_or_reason) or a folder. Nothing is decoded, apart from the few
    frames that FFmpeg itself decodes when it opens a file. Of several video streams the one is taken that FFmpeg calls
    best; cover art does not count.
    """
    import av

    if os.path.isdir(path):
        return _probe_frames(path)
    try:
        container_says = container_facts(path)
        if container_says.truncated:
            return DAMAGED
        with opened(path) as container:
            stream = _video_stream(container)
            if isinstance(stream, str):
                return stream
            return _facts(container, stream, _rotation(stream, container_says.rotations, container_says.tracks))
    except (av.FFmpegError, OSError) as error:
        return failure_reason(path, error)


def failure_reason(path: bytes, error: Exception) -> str:
    """Return why a file could not be read or decoded."""
    import av

    status = status_or_reason(path)
    if isinstance(status, str):
        return status
    if isinstance(error, (av.error.DecoderNotFoundError, av.error.PatchWelcomeError)):
        return UNSUPPORTED
    try:
        if isinstance(error, OSError):  # FFmpeg reports some truncated files as it does a failing disk
            with open(path, "rb") as file:
                while file.read(2**20):
                    pass
        if not is_plausible(path):
            return NOT_A_VIDEO
        return NO_FRAMES if isinstance(error, av.error.EOFError) else DAMAGED  # it ends after whole headers
    except OSError:
        return UNREADABLE


def undecodable_reason(path: bytes) -> str | None:
    """Decode every frame of a video; return why it cannot be used, or None if it can.

    The decoder must return all frames that the index counts, in one size.
    """
    import av

    facts = probe(path)
    if isinstance(facts, str):
        return facts
    if facts.codec == FRAMES:
        return _undecodable_frame(path, facts)
    stored_size = facts.size if facts.rotation % 180 == 0 else facts.size[::-1]
    wanted = set(facts.times.tolist()) if facts.timed else None
    count = 0
    try:
        with opened(path) as container:
            for frame in _decoded(container, facts.stream, wanted):
                if frame.is_corrupt:
                    return DAMAGED
                if (frame.height, frame.width) != stored_size:
                    return SEVERAL_SIZES
                count += 1
    except av.FFmpegError as error:
        return failure_reason(path, error)
    return None if count == len(facts.times) else DAMAGED


def _decoded(container: "InputContainer", stream_number: int, wanted: set[int] | None) -> Iterator["VideoFrame"]:
    """Yield the frames of a stream, in order, or only those of the wanted times.

    Raises:
        av.FFmpegError: a wanted frame does not decode.
    """
    import av
    from av.video.stream import VideoStream

    stream = container.streams[stream_number]
    assert isinstance(stream, VideoStream)
    stream.codec_context.thread_count = 1  # files are decoded side by side
    for packet in demuxed(container, stream):
        if not packet.size and packet.dts is not None:
            continue  # it would end the decoding, as PyAV's own empty packet does at the end of the file
        try:
            frames = stream.decode(packet)
        except av.error.InvalidDataError:
            if wanted is None or packet.pts in wanted:
                raise
        else:
            yield from (frame for frame in frames if wanted is None or frame.pts in wanted)


def _video_stream(container: "InputContainer") -> "VideoStream | str":
    """Return the video stream to use, or the reason why there is none. Packets of other streams are not read."""
    from av.stream import Discard, Disposition

    pictures = Disposition.attached_pic | Disposition.timed_thumbnails
    candidates = [stream for stream in container.streams.video if not stream.disposition & pictures]
    if not candidates:
        return NO_VIDEO_STREAM
    best = container.streams.best("video")
    chosen = next((stream for stream in candidates if stream is best), candidates[0])
    if chosen.codec_context is None:
        return UNSUPPORTED
    for stream in container.streams:
        if stream is not chosen:
            stream.discard = Discard.all
    return chosen


def _rotation(stream: "VideoStream", by_id: dict[int, int], by_number: list[int]) -> int:
    if stream.index < len(by_number):
        return by_number[stream.index]
    return by_id.get(stream.id, 0)


class _Packet(NamedTuple):
    time: int | None
    decoding_time: int | None
    duration: int
    is_key: bool
    is_shown: bool
    is_one_picture: bool
    field: Field | None = None  # the only field that the packet holds


def _packets(container: "InputContainer", stream: "VideoStream") -> Iterator[_Packet]:
    """Yield what the demuxer says about each packet of a stream; a packet holds one frame, or one field of it."""
    name = stream.codec_context.codec.canonical_name
    reader = FieldReader(stream.codec_context.extradata or b"") if name == "h264" else None
    if reader is not None and reader.is_progressive:
        reader = None
    for packet in demuxed(container, stream):
        if packet.size:  # PyAV ends with an empty packet, and AVI repeats a frame by one
            # The mov demuxer discards what an edit list leaves out. VP8 has frames that are only referred to.
            content = memoryview(packet)
            is_shown = not packet.is_discard and not (name == "vp8" and not content[0] & _VP8_SHOWN)
            field = reader.field(bytes(packet)) if reader is not None else None
            one = is_one_picture(name, content)
            yield _Packet(packet.pts, packet.dts, packet.duration or 0, packet.is_keyframe, is_shown, one, field)


def _frames(packets: list[_Packet]) -> list[_Packet]:
    """Return the packets that begin a frame; where a frame has two, the duration of the first is that of a field."""
    pairs = field_pairs(packet.field for packet in packets)
    return [packets[i] if i == j else packets[i]._replace(duration=0) for i, j in pairs]


def _facts(container: "InputContainer", stream: "VideoStream", rotation: int) -> VideoFacts | str:
    context = stream.codec_context
    packets = list(_packets(container, stream))
    shown = _shown(_frames(packets))
    if not shown:
        return NO_FRAMES
    if not (context.width and context.height and context.pix_fmt):
        return DAMAGED
    own_times = {packet.time for packet in shown}
    timed = None not in own_times and len(own_times) == len(shown)
    times, tick = _times(shown, stream, timed)
    by_time = np.argsort(times, kind="stable")
    ordered = times[by_time]
    return VideoFacts(
        size=(context.height, context.width) if rotation % 180 == 0 else (context.width, context.height),
        codec=context.codec.canonical_name,
        times=ordered,
        end=int(ordered[-1]) + _last_duration(ordered, shown[by_time[-1]].duration if tick == stream.time_base else 0),
        tick=tick,
        key_frames=np.flatnonzero(np.array([packet.is_key for packet in shown])[by_time]),
        stream=stream.index,
        pixel_format=context.pix_fmt or "",
        rotation=rotation,
        matrix=context.colorspace,
        range=context.color_range,
        timed=timed,
        # DALI leaves out packets before time 0, and counts packets that are not shown.
        plain=timed
        and len(container.streams.video) == 1
        and len(shown) == len(packets)
        and rotation == 0
        and int(ordered[0]) >= 0,
        one_picture=context.field_order not in _INTERLACED and all(packet.is_one_picture for packet in packets),
    )


def _shown(packets: list[_Packet]) -> list[_Packet]:
    """Return the packets whose frames a decoder shows intact: it can begin only at a key frame.

    Where a file was cut out of a longer one, frames that lack their references stand before the first key frame, either
    in the file or in the order in which they are shown.
    """
    first = next((i for i, packet in enumerate(packets) if packet.is_key), 0)
    begin = packets[first].time if packets else None
    return [
        packet
        for packet in packets[first:]
        if packet.is_shown and (packet.time is None or begin is None or packet.time >= begin)
    ]


def _times(shown: list[_Packet], stream: "VideoStream", timed: bool) -> tuple[NDArray[np.int64], Fraction]:
    """Return the ticks at which the packets are shown, and the seconds of a tick.

    Without times of presentation, the times of decoding are those of the frames in the order in which they are shown.
    Without any times, the nominal rate counts.
    """
    times = [packet.time if timed else packet.decoding_time for packet in shown]
    known = [time for time in times if time is not None]
    if len(known) == len(times) and stream.time_base is not None:
        return np.array(known, dtype=np.int64), stream.time_base
    rate = stream.average_rate or stream.base_rate or _USUAL_RATE
    return np.arange(len(shown), dtype=np.int64), 1 / Fraction(rate)


def _last_duration(times: NDArray[np.int64], declared: int) -> int:
    """Return the ticks for which the last frame is shown: as declared, otherwise as for a typical frame."""
    if declared > 0:
        return declared
    return max(1, int(np.median(np.diff(times)))) if len(times) > 1 else 1


def _probe_frames(folder: bytes) -> VideoFacts | str:
    from PIL import Image

    try:
        files = frame_files(folder)
        if not files:
            return NO_FRAMES
        if not os.path.getsize(files[0]):
            return EMPTY
        with Image.open(files[0]) as image:
            width, height = image.size
    except ValueError:
        return FRAMES_MISSING
    except OSError as error:
        return UNREADABLE if error.errno else DAMAGED  # Pillow's own errors have no number
    numbers = np.arange(len(files), dtype=np.int64)
    return VideoFacts((height, width), FRAMES, numbers, len(files), FRAMES_TICK, numbers)


def _undecodable_frame(folder: bytes, facts: VideoFacts) -> str | None:
    from PIL import Image

    for file in frame_files(folder):
        try:
            with Image.open(file) as image:
                image.load()
                if image.size != facts.size[::-1]:
                    return SEVERAL_SIZES
        except OSError as error:
            return UNREADABLE if error.errno else DAMAGED
        except Exception:  # Pillow raises errors of many types
            return DAMAGED
    return None
