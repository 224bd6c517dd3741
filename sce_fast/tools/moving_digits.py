"""The video demo's files: handwritten digits that move over a textured background, encoded as H.264 and VP9.

Motion and digit are the labels; only they are worth learning. A video's first position and phase are random on a torus
(what leaves the frame on one side enters on the other), so that no frame shows the motion. Backgrounds differ from
video to video in colour, brightness and texture, and they tell neither label. Raw pixels compare mostly backgrounds.
There are few textures, for a network could tell every video by a texture of its own and would learn nothing else.
"""

import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from itertools import count, cycle, product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

MOTIONS = ("left", "right", "up", "down", "clockwise", "counter-clockwise")
DIGITS = ("0", "1", "4", "7")
LABELS = ("motion", "digit")
PARTS = {"train": 40, "test": 10}  # videos of each motion and digit: 960 and 240
SIDE = 64  # of a frame, in pixels
SECONDS, RATE = 3, 15  # of a video; frames a second
SIZES = (38, 42)  # of a digit's box, in pixels
SPEEDS = (24.0, 48.0)  # of a digit, in pixels a second
RADII = (11.0, 15.0)  # of a circle, in pixels
TEXTURES = 6  # different ones
TEXTURE = (3, 10)  # lowest and highest frequency of a background, in waves a frame
INK, BACKGROUND = 0.95, (0.1, 0.65)  # luminance of a digit, and mean luminance of a background
CONTRAST, SATURATION = 0.35, 0.9  # of a background, relative to its mean
LUMINANCE = np.array([0.299, 0.587, 0.114])
VARIABLE = 4  # one video in VARIABLE has a variable rate
ENCODERS = {  # ending → encoder, its options
    "mp4": ("libx264", {"preset": "veryfast", "crf": "18", "g": "15"}),
    "webm": ("libvpx-vp9", {"deadline": "realtime", "cpu-used": "8", "crf": "20", "b": "0", "g": "15"}),
}
SEED = 7
TRAINING_SAMPLES = 130  # of the about 180 handwritten digits of a kind; the rest is for tests


@dataclass(frozen=True)
class MovingDigits:
    """The list files of a folder of moving digits. The lists of a part name the same videos in the same order."""

    folder: Path

    def videos(self, part: str, label: str) -> Path:
        """Return the list of a part, "train" or "test", with the classes of a label, "motion" or "digit"."""
        return self.folder / f"{part}_{label}.txt"

    @property
    def complete(self) -> bool:
        """Whether the folder holds the whole data set."""
        return all(self.videos(part, label).is_file() for part in PARTS for label in LABELS)


@dataclass(frozen=True)
class Clip:
    """What one video shows, and how it is stored."""

    digit: NDArray[np.float64]  # (8, 8) in [0, 1]
    motion: str
    ending: str
    variable: bool
    seed: tuple[int, int]  # with the number of the video


def write_moving_digits(folder: Path, *, threads: int = 2) -> MovingDigits:
    """Write 960 videos to train on, 240 to test, and a list of each part for each label, unless they exist.

    The digits come with scikit-learn (UCI, 8 × 8 pixels, 43 writers). No handwritten digit is in both parts.
    Every motion and digit has 40 and 10 videos, half of them H.264 and half VP9; a quarter of all has a variable rate.

    Args:
        folder: of the data set. It appears when all videos are written.
        threads: that draw and encode videos; the files do not depend on it.

    Raises:
        ImportError: PyAV, Pillow or scikit-learn is not installed.
    """
    written = MovingDigits(folder)
    if written.complete:
        return written
    writing = MovingDigits(folder.with_name(folder.name + ".writing"))
    shutil.rmtree(writing.folder, ignore_errors=True)
    lines: dict[Path, list[str]] = {}
    clips = {}
    for number, (part, digit, clip) in enumerate(_clips()):
        name = f"{part}/{number:04d}.{clip.ending}"
        clips[writing.folder / name] = clip
        lines.setdefault(writing.videos(part, "motion"), []).append(f"{name}\t{clip.motion}")
        lines.setdefault(writing.videos(part, "digit"), []).append(f"{name}\t{digit}")
    for part in PARTS:
        (writing.folder / part).mkdir(parents=True)
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(_write, clips, clips.values()))
    for path, listed in lines.items():
        path.write_text("\n".join(listed) + "\n")
    writing.folder.rename(folder)
    return written


def _clips() -> Iterator[tuple[str, str, Clip]]:
    """Yield part, digit and clip of all videos, in an order that mixes motions, digits and codecs."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    random = np.random.Generator(np.random.Philox(SEED))
    samples = {digit: random.permutation(np.flatnonzero(digits.target == int(digit))) for digit in DIGITS}
    endings, number = tuple(ENCODERS), count()
    for part, copies in PARTS.items():
        kept = slice(TRAINING_SAMPLES) if part == "train" else slice(TRAINING_SAMPLES, None)
        left = {digit: cycle(samples[digit][kept]) for digit in DIGITS}
        kinds = list(product(range(len(MOTIONS)), range(len(DIGITS)), range(copies)))
        for i in random.permutation(len(kinds)):
            motion, kind, copy = kinds[i]
            digit = DIGITS[kind]
            clip = Clip(
                digit=digits.images[next(left[digit])] / 16,
                motion=MOTIONS[motion],
                ending=endings[copy % len(endings)],
                variable=(copy // len(endings) + motion + kind) % VARIABLE == 0,
                seed=(SEED, next(number)),
            )
            yield part, digit, clip


def _write(path: Path, clip: Clip) -> None:
    """Draw and encode a clip."""
    random = np.random.default_rng(clip.seed)
    milliseconds = _times(random, clip.variable)
    encode(path, _frames(random, clip, milliseconds / 1000), milliseconds if clip.variable else None)


def _times(random: np.random.Generator, variable: bool) -> NDArray[np.int64]:
    """Return when each frame is shown, in milliseconds: evenly spaced, or at intervals of half to 1.5 times that."""
    count = SECONDS * RATE
    shares = random.uniform(0.5, 1.5, count) if variable else np.ones(count)
    return np.rint(1000 * SECONDS * (np.cumsum(shares) - shares) / shares.sum()).astype(np.int64)


def _frames(random: np.random.Generator, clip: Clip, times: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Return the frames (F, SIDE, SIDE, 3) that a clip shows at times (F,) in seconds."""
    from PIL import Image

    size = int(random.integers(SIZES[0], SIZES[1] + 1))
    small = Image.fromarray((clip.digit * 255).astype(np.uint8))
    ink = np.zeros((SIDE, SIDE))
    ink[:size, :size] = np.asarray(small.resize((size, size), Image.Resampling.BICUBIC)) / 255
    background = _background(random)
    opacity = _shifted(ink, *positions(random, clip.motion, times))[..., None]
    return np.rint(255 * (background + (INK - background) * opacity)).astype(np.uint8)


def positions(
    random: np.random.Generator, motion: str, times: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return x and y (F,) of a digit in pixels at times (F,) in seconds. y points down."""
    speed, radius = random.uniform(*SPEEDS), random.uniform(*RADII)
    (x, y), phase = random.uniform(0, SIDE, 2), random.uniform(0, 2 * np.pi)
    if motion in ("clockwise", "counter-clockwise"):
        angle = phase + times * speed / radius * (1 if motion == "clockwise" else -1)
        return x + radius * np.cos(angle), y + radius * np.sin(angle)
    dx, dy = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}[motion]
    return x + dx * speed * times, y + dy * speed * times


def _background(random: np.random.Generator) -> NDArray[np.float64]:
    """Return one of the textures, moved at random, in a random hue and brightness: (SIDE, SIDE, 3) in [0, 1]."""
    noise = np.roll(_texture(int(random.integers(TEXTURES))), random.integers(SIDE, size=2), axis=(0, 1))
    level = 1 + CONTRAST * (noise / noise.std() / 2).clip(-1, 1)[..., None]
    hue = 1 + SATURATION * np.cos(2 * np.pi * (random.uniform() + np.arange(3) / 3))
    color: NDArray[np.float64] = random.uniform(*BACKGROUND) * level * hue / (hue @ LUMINANCE)
    return color.clip(0, 1)


def _texture(number: int) -> NDArray[np.float64]:
    """Return a texture (SIDE, SIDE): noise of a fixed spectrum, of mean 0."""
    waves = np.fft.fftfreq(SIDE, 1 / SIDE)
    frequency = np.hypot(waves[:, None], waves)
    spectrum = np.fft.fft2(np.random.default_rng((SEED + 1, number)).standard_normal((SIDE, SIDE)))
    spectrum[(frequency < TEXTURE[0]) | (frequency > TEXTURE[1])] = 0
    noise: NDArray[np.float64] = np.fft.ifft2(spectrum).real
    return noise


def _shifted(image: NDArray[np.float64], x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return an image (SIDE, SIDE) moved right by x (F,) and down by y (F,), around the edges: (F, SIDE, SIDE)."""

    def moved(rows: NDArray[np.float64], shift: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
        whole = np.floor(shift).astype(np.int64)
        share = (shift - whole).reshape(-1, 1, 1)
        places = np.expand_dims((np.arange(SIDE) - whole[:, None]) % SIDE, 3 - axis)
        before = np.expand_dims((np.arange(SIDE) - whole[:, None] - 1) % SIDE, 3 - axis)
        take = partial(np.take_along_axis, rows, axis=axis)
        shifted: NDArray[np.float64] = (1 - share) * take(places) + share * take(before)
        return shifted

    return moved(moved(np.broadcast_to(image, (len(x), SIDE, SIDE)), y, 1), x, 2)


def encode(path: Path, frames: NDArray[np.uint8], milliseconds: NDArray[np.int64] | None) -> None:
    """Write frames (F, H, W, 3) with the encoder of the path's ending, at RATE or at these times (F,).

    The same frames give the same bytes.
    """
    import av

    encoder, options = ENCODERS[path.suffix[1:]]
    clock = Fraction(1, RATE) if milliseconds is None else Fraction(1, 1000)
    with av.open(str(path), "w", options={"fflags": "+bitexact"}) as container:
        stream: Any = container.add_stream(encoder, rate=RATE, options=options)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1
        stream.time_base = stream.codec_context.time_base = clock
        for number, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = (number if milliseconds is None else int(milliseconds[number])), clock
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
