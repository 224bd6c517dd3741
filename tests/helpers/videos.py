"""Encoded videos whose frames show their own number, and the reader of these numbers."""

import struct
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.stream import Disposition
from numpy.typing import NDArray

BITS = 10  # frames below 1024
# codec → (encoder, ending, pixel format, options); small files that are fast to write, with B-frames where they exist
CODECS = {
    "h264": ("libx264", "mp4", "yuv420p", {"preset": "veryfast", "bf": "3", "g": "12", "x264-params": "scenecut=0"}),
    "hevc": ("libx265", "mp4", "yuv420p", {"preset": "ultrafast", "x265-params": "bframes=3:keyint=12:log-level=none"}),
    "vp8": ("libvpx", "webm", "yuv420p", {"deadline": "realtime", "cpu-used": "8", "b": "400k", "g": "12"}),
    "vp9": ("libvpx-vp9", "webm", "yuv420p", {"deadline": "realtime", "cpu-used": "8", "b": "400k", "g": "12"}),
    "av1": ("libsvtav1", "mp4", "yuv420p", {"preset": "12", "g": "12", "svtav1-params": "lp=1"}),
    "mjpeg": ("mjpeg", "avi", "yuvj420p", {"q": "4"}),
    "mpeg4": ("mpeg4", "avi", "yuv420p", {"bf": "2", "g": "12"}),
}


def write_video_folder(root: Path) -> Path:
    """Write twelve short videos of two classes and several codecs, one with a variable rate; return the folder."""
    times = np.cumsum(np.random.default_rng(0).integers(20, 60, 20)).tolist()
    for i, codec in enumerate(("h264", "vp9", "mpeg4", "mjpeg") * 3):
        path = root / ("even" if i % 2 == 0 else "odd") / f"{i:02d}"
        write_video(path, codec, frames=20, size=(64, 80), seed=i, times=times if i == 5 else None)
    return root


def numbered_frame(number: int, height: int, width: int, *, seed: int = 0) -> NDArray[np.uint8]:
    """Return a frame (height, width, 3): a smooth coloured background, and the number as 2 rows of black/white cells.

    The cells fill the upper half: BITS columns, the number on the first row and its complement on the second.
    """
    rng = np.random.default_rng((seed, 7))
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    phase = rng.uniform(0, 6, (3,)) + 0.02 * number
    frame = np.stack([127 + 90 * np.sin(4 * x + 3 * y * (c + 1) + phase[c]) for c in range(3)], axis=-1)
    bits = np.array([number >> b & 1 for b in reversed(range(BITS))])
    cells = np.stack([bits, 1 - bits])
    rows, columns = np.arange(height // 2) * 2 // (height // 2), np.arange(width) * BITS // width
    frame[: height // 2] = 235 * cells[rows][:, columns, None] + 10
    return frame.clip(0, 255).astype(np.uint8)


def number_of(frame: NDArray[np.uint8]) -> int:
    """Return the number that a whole frame of numbered_frame shows, of any size and after any codec.

    Raises AssertionError if the two rows do not agree.
    """
    height, width = frame.shape[:2]
    grey = frame[: height // 2].astype(float).mean(axis=-1)
    centers = ((np.arange(BITS) + 0.5) * width / BITS).astype(int)
    first, second = (
        np.array([grey[row - 1 : row + 2, c - 1 : c + 2].mean() for c in centers])
        for row in (height // 8, height * 3 // 8)
    )
    bits = first > second
    assert (np.abs(first - second) > 60).all(), "the frame shows no clear number"
    return int("".join("1" if bit else "0" for bit in bits), 2)


def write_video(
    path: Path,
    codec: str = "h264",
    *,
    frames: int = 60,
    size: tuple[int, int] = (96, 128),
    rate: int = 25,
    times: Sequence[int] | None = None,
    seed: int = 0,
    ending: str | None = None,
    options: Mapping[str, str] | None = None,
    muxer: Mapping[str, str] | None = None,
    rotation: int = 0,
    **stream: object,
) -> Path:
    """Write a video of numbered frames; its ending is added to the path. Return the path.

    Args:
        size: height and width.
        times: presentation times in 1/1000 seconds, for a variable rate; the container must keep them (mp4, webm, mkv).
        ending: of another container than the codec's usual one.
        options: of the encoder, added to the codec's.
        muxer: options of the container, such as {"movflags": "faststart"}.
        rotation: degrees counter-clockwise by which players turn the frames.
        stream: further attributes of the stream, such as pix_fmt.
    """
    encoder, usual_ending, pixels, usual_options = CODECS[codec]
    path = path.with_name(f"{path.name}.{ending or usual_ending}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", options=dict(muxer or {})) as container:
        video = _video_stream(container, encoder, size, rate, pixels, {**usual_options, **(options or {})})
        if times is not None:
            video.time_base = video.codec_context.time_base = Fraction(1, 1000)
        if rotation:
            video.set_display_rotation(rotation)
        for name, value in stream.items():
            setattr(video, name, value)
        for number in range(frames):
            frame = _frame(number, size, seed)
            if times is not None:
                frame.pts, frame.time_base = times[number], Fraction(1, 1000)
            container.mux(video.encode(frame))
        container.mux(video.encode())
    return path


def write_streams(
    path: Path, streams: Sequence[str], *, frames: int = 20, size: tuple[int, int] = (96, 128), **muxer: str
) -> Path:
    """Write a file with several streams and return its path.

    Args:
        path: with the ending of the container.
        streams: of "video" (numbered frames, H.264), "small" (the same in half the size, not the default stream),
            "audio" (a tone, AAC) and "cover" (a picture as cover art, JPEG).
        muxer: options of the container.
    """
    half = size[0] // 2, size[1] // 2
    with av.open(str(path), "w", options=muxer) as container:
        opened: list[tuple[str, Any]] = []
        for kind in streams:
            if kind == "audio":
                opened.append((kind, container.add_stream("aac", rate=16000)))
            elif kind == "cover":
                opened.append((kind, _video_stream(container, "mjpeg", half, 1, "yuvj420p", {})))
                opened[-1][1].disposition = Disposition.attached_pic
            else:
                options = {"preset": "veryfast", "g": "12"}
                shape = size if kind == "video" else half
                opened.append((kind, _video_stream(container, "libx264", shape, 25, "yuv420p", options)))
                opened[-1][1].disposition = Disposition.default if kind == "video" else Disposition(0)
        for kind, stream in opened:
            if kind == "audio":
                for start in range(0, frames * 640, 1024):  # 16,000 samples a second for 25 frames
                    tone = np.sin(np.arange(start, start + 1024) / 9)[None].astype(np.float32)
                    sound = av.AudioFrame.from_ndarray(tone, format="fltp", layout="mono")
                    sound.rate, sound.pts = 16000, start
                    container.mux(stream.encode(sound))
            else:
                for number in range(1 if kind == "cover" else frames):
                    container.mux(stream.encode(_frame(number, size if kind == "video" else half, 0)))
            container.mux(stream.encode())
    return path


def write_late_streams(path: Path, *, frames: int = 60) -> Path:
    """Write a transport stream of numbered frames that gains streams after FFmpeg has looked for them; return its path.

    FFmpeg looks at its first 5 MB and last 250 kB, so that the file is large: frames are filled up with bytes that no
    decoder reads.
    """
    filler = b"\0\0\x01\x0c" + b"\xff" * 100_000 + b"\x80"  # a NAL unit
    source = write_video(path.with_name(f"{path.name}-source"), frames=frames, ending="ts")
    early = copy_packets(
        source, path.with_name(f"{path.name}-early.ts"), lambda _, p: with_content(p, bytes(p) + filler)
    )
    late = path.with_name(f"{path.name}-late.ts")
    write_streams(late, ["video", "audio"], frames=5, mpegts_start_pid="600")
    content = early.read_bytes()
    place = len(content) * 93 // 100 // 188 * 188
    path.write_bytes(content[:place] + late.read_bytes() + content[place:])
    for part in (source, early, late):
        part.unlink()
    return path


def copy_packets(
    source: Path, target: Path, change: Callable[[int, av.Packet], av.Packet | None], **muxer: str
) -> Path:
    """Copy a video stream into another file without encoding it; return the new path.

    Args:
        source, target: the files.
        change: returns the packet to write for each number and packet, or None to leave it out.
        muxer: options of the new container.
    """
    with av.open(str(source)) as read, av.open(str(target), "w", options=muxer) as write:
        old = read.streams.video[0]
        new = write.add_stream_from_template(old)
        for number, packet in enumerate(read.demux(old)):
            if packet.size and (changed := change(number, packet)) is not None:
                changed.stream = new
                write.mux(changed)
    return target


def with_content(packet: av.Packet, content: bytes) -> av.Packet:
    """Return a packet like another one with other bytes."""
    changed = av.Packet(content)
    changed.pts, changed.dts, changed.time_base = packet.pts, packet.dts, packet.time_base
    changed.duration, changed.is_keyframe = packet.duration, packet.is_keyframe
    return changed


def set_edit_start(path: Path, frames: int) -> None:
    """Change the edit list of an mp4 so that it leaves out so many frames at the beginning."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert stream.time_base is not None
        assert stream.average_rate is not None
        ticks = int(frames / stream.average_rate / stream.time_base)
    content = bytearray(path.read_bytes())
    at = content.index(b"elst") + 4
    assert content[at] == 0, "an edit list with times of 64 bits"
    (start,) = struct.unpack_from(">i", content, at + 12)
    struct.pack_into(">i", content, at + 12, start + ticks)
    path.write_bytes(content)


def set_track_matrix(path: Path, matrix: tuple[int, int, int, int]) -> None:
    """Write the matrix (a, b, c, d) into the header of the first track of an mp4, as phones do for a turned picture."""
    content = bytearray(path.read_bytes())
    at = content.index(b"tkhd") + 4
    assert content[at] == 0, "a track header with times of 64 bits"
    a, b, c, d = (65536 * value for value in matrix)
    struct.pack_into(">9i", content, at + 40, a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(content)


def cut_off(path: Path, share: float) -> None:
    """Keep only the beginning of a file."""
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])


def _video_stream(
    container: Any, encoder: str, size: tuple[int, int], rate: int, pixels: str, options: Mapping[str, str]
) -> Any:
    video = container.add_stream(encoder, rate=rate)
    video.height, video.width = size
    video.pix_fmt = pixels
    video.options = dict(options)
    return video


def _frame(number: int, size: tuple[int, int], seed: int) -> av.VideoFrame:
    return av.VideoFrame.from_ndarray(numbered_frame(number, *size, seed=seed), format="rgb24")
