"""Encoded videos whose frames show their own number, and the reader of these numbers."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
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
    **stream: object,
) -> Path:
    """Write a video of numbered frames; its ending is added to the path. Return the path.

    Args:
        size: height and width.
        times: presentation times in 1/1000 seconds, for a variable rate; the container must keep them (mp4, webm, mkv).
        stream: further attributes of the stream, such as pix_fmt; options are added to the codec's.
    """
    encoder, ending, pixels, options = CODECS[codec]
    path = path.with_name(f"{path.name}.{ending}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        video = container.add_stream(encoder, rate=rate)
        video.height, video.width = size
        video.pix_fmt = pixels
        video.options = {**options, **stream.pop("options", {})}
        if times is not None:
            video.time_base = video.codec_context.time_base = Fraction(1, 1000)
        for name, value in stream.items():
            setattr(video, name, value)
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(numbered_frame(number, *size, seed=seed), format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = times[number], Fraction(1, 1000)
            for packet in video.encode(frame):
                container.mux(packet)
        for packet in video.encode():
            container.mux(packet)
    return path
