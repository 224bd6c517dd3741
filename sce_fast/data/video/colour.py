"""From the planes of a decoded frame to RGB: which matrix and range a video has, and the conversion."""

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sce_fast.native import CPU

if TYPE_CHECKING:
    import av

# FFmpeg's numbers of matrices (AVColorSpace) and ranges (AVColorRange)
RGB, BT709, UNDECLARED, BT601 = 0, 1, 2, 5
LIMITED, FULL = 1, 2
# matrix → weights of red and blue in luma; 4 is FCC, 6 SMPTE 170M, 7 SMPTE 240M, 9 and 10 BT.2020
WEIGHTS = {
    BT709: (0.2126, 0.0722), 4: (0.30, 0.11), BT601: (0.299, 0.114), 6: (0.299, 0.114), 7: (0.212, 0.087),
    9: (0.2627, 0.0593), 10: (0.2627, 0.0593),
}  # fmt: skip
HD_LINES = 720  # undeclared colours are BT.709 from this height on


class Layout(NamedTuple):
    """Samples of a pixel format with one plane for each component, of a byte, or two little-endian bytes, each."""

    bits: int
    shifts: tuple[int, int] = (0, 0)  # 1 where U and V have half the rows, half the columns
    planes: int = 3


_SUBSAMPLED = {"420": (1, 1), "422": (0, 1), "440": (1, 0), "444": (0, 0)}
# the pixel formats that our kernel converts
LAYOUTS = (
    {f"yuv{name}p": Layout(8, shifts) for name, shifts in _SUBSAMPLED.items()}
    | {f"yuvj{name}p": Layout(8, shifts) for name, shifts in _SUBSAMPLED.items()}
    | {f"yuv{name}p{bits}le": Layout(bits, shifts) for name, shifts in _SUBSAMPLED.items() for bits in (10, 12)}
    | {"gray": Layout(8, planes=1)}
    | {f"gray{bits}le": Layout(bits, planes=1) for bits in (10, 12)}
)


@dataclass(frozen=True)
class Colour:
    """How the numbers of a frame's planes stand for colours."""

    matrix: int  # a key of WEIGHTS
    full: bool  # whether black and white are the lowest and the highest number


def matrices(declared: NDArray[np.int8], codecs: NDArray[np.str_], lines: NDArray[np.int32]) -> NDArray[np.int8]:
    """Return the matrix (n,) of videos, a key of WEIGHTS.

    An undeclared or unknown matrix is BT.601 below 720 lines, otherwise BT.709. VP8 knows only BT.601 (RFC 6386, 9.2).

    Args:
        declared: (n,) FFmpeg's AVColorSpace.
        codecs: (n,) FFmpeg's names.
        lines: (n,) height of the frames as encoded, before any rotation.
    """
    assumed = np.where((lines < HD_LINES) | (codecs == "vp8"), BT601, BT709)
    return np.where(np.isin(declared, list(WEIGHTS)), declared, assumed).astype(np.int8)


def encoded_lines(sizes: NDArray[np.int32], rotations: NDArray[np.int16]) -> NDArray[np.int32]:
    """Return the height (n,) of frames as encoded from the sizes (n, 2) of upright frames."""
    return np.where(np.isin(rotations, (90, 270)), sizes[:, 1], sizes[:, 0])


def full_ranges(declared: NDArray[np.int8], pixel_formats: NDArray[np.str_]) -> NDArray[np.bool_]:
    """Return whether videos (n,) have the full range: declared as such, or implied by a format yuvj….

    Args:
        declared: (n,) FFmpeg's AVColorRange.
        pixel_formats: (n,) FFmpeg's names.
    """
    return (declared == FULL) | np.char.startswith(pixel_formats, "yuvj")


@cache
def correction(matrix: int) -> NDArray[np.float32]:
    """Return the 3 × 3 matrix that corrects RGB of a video which was converted by BT.601 instead of its own matrix.

    Limited and full range have the same correction, without an offset: both scale Y, U and V in the same way for every
    matrix. Values that the conversion by BT.601 has clipped to 0 or 255 stay wrong. For BT.709 that concerns saturated
    reds, greens and blues: photographs differ by 0.4/255 in the mean, a picture of nothing but pure primaries by 6/255.

    Args:
        matrix: of the video; a key of WEIGHTS.

    Example:
        >>> rgb = np.clip(np.rint(rgb @ correction(BT709).T), 0, 255)
    """
    return (_to_rgb(matrix) @ np.linalg.inv(_to_rgb(BT601))).astype(np.float32)


def _to_rgb(matrix: int) -> NDArray[np.float64]:
    """Return the matrix from Y in [0, 1] and U and V in [-1/2, 1/2] to RGB in [0, 1]."""
    red, blue = WEIGHTS[matrix]
    from_u, from_v = 2 * (1 - blue), 2 * (1 - red)
    green = 1 - red - blue
    return np.array([[1, 0, from_v], [1, -blue * from_u / green, -red * from_v / green], [1, from_u, 0]])


class Converter:
    """Converts frames of one video to RGB; used by one thread at a time."""

    def __init__(self, colour: Colour) -> None:
        self.colour = colour
        self._reformatter: Any = None

    def __call__(self, frame: "av.VideoFrame", box: tuple[int, int, int, int]) -> NDArray[np.uint8]:
        """Return a part of a frame as RGB (bottom - top, right - left, 3).

        U and V are interpolated linearly, from the centre of the pixels that they serve.

        Args:
            box: top, left, bottom, right; not empty.
        """
        layout = LAYOUTS.get(frame.format.name)
        if layout is None or CPU.module is None:
            return self._with_swscale(frame, box)
        planes = frame.planes[: layout.planes]
        line_bytes = [plane.line_size for plane in planes]
        if min(line_bytes) < 0:  # rows stored from the bottom up
            return self._with_swscale(frame, box)
        red, blue = WEIGHTS[self.colour.matrix]
        size, full = (frame.height, frame.width), self.colour.full
        return CPU.module.yuv_to_rgb(
            planes=planes, line_bytes=line_bytes, size=size, bits=layout.bits, shifts=layout.shifts, red=red,
            blue=blue, full_range=full, box=box,
        )  # fmt: skip

    def _with_swscale(self, frame: "av.VideoFrame", box: tuple[int, int, int, int]) -> NDArray[np.uint8]:
        """Convert with FFmpeg, which takes every pixel format but no part of a frame.

        Without these flags swscale repeats U and V instead of interpolating them, and rounds down.
        """
        from av.video.reformatter import Interpolation, VideoReformatter

        if self._reformatter is None:
            self._reformatter = VideoReformatter()
        if not frame.format.is_rgb:
            frame.colorspace, frame.color_range = self.colour.matrix, FULL if self.colour.full else LIMITED
        flags = Interpolation.BILINEAR | Interpolation.FULL_CHR_H_INT | Interpolation.ACCURATE_RND
        rgb = self._reformatter.reformat(frame, format="rgb24", interpolation=flags, threads=1)
        rows = np.frombuffer(rgb.planes[0], dtype=np.uint8).reshape(rgb.height, -1)
        top, left, bottom, right = box
        return rows[top:bottom, 3 * left : 3 * right].reshape(bottom - top, right - left, 3)
