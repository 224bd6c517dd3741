"""Formulas of colours, independent of the package."""

import av
import numpy as np
from numpy.typing import NDArray

KR_KB = {
    1: (0.2126, 0.0722),
    4: (0.30, 0.11),
    5: (0.299, 0.114),
    6: (0.299, 0.114),
    7: (0.212, 0.087),
    9: (0.2627, 0.0593),
}


def to_rgb(y: NDArray, u: NDArray, v: NDArray, matrix: int, full: bool, bits: int = 8) -> NDArray[np.float64]:
    """Return RGB in 0 to 255, not rounded, as ITU-R BT.601, BT.709 and BT.2020 define it; u and v as large as y."""
    kr, kb = KR_KB[matrix]
    black, middle, luma, chroma = _levels(full, bits)
    y, u, v = (y - black) / luma, (u - middle) / chroma, (v - middle) / chroma
    red, blue = y + 2 * (1 - kr) * v, y + 2 * (1 - kb) * u
    green = (y - kr * red - kb * blue) / (1 - kr - kb)
    return 255 * np.clip(np.stack([red, green, blue], axis=-1), 0, 1)


def planes_of(rgb: NDArray[np.uint8], matrix: int, full: bool) -> list[NDArray[np.uint8]]:
    """Return Y, U and V of a picture of even size as an encoder of 4:2:0 sees it."""
    kr, kb = KR_KB[matrix]
    black, middle, luma, chroma = _levels(full, 8)
    red, green, blue = (rgb.astype(float) / 255).transpose(2, 0, 1)
    y = kr * red + (1 - kr - kb) * green + kb * blue
    u, v = (blue - y) / (2 * (1 - kb)), (red - y) / (2 * (1 - kr))
    height, width = y.shape
    u, v = (plane.reshape(height // 2, 2, width // 2, 2).mean(axis=(1, 3)) for plane in (u, v))
    scaled = (y * luma + black, u * chroma + middle, v * chroma + middle)
    return [np.clip(np.rint(plane), 0, 255).astype(np.uint8) for plane in scaled]


def enlarged(plane: NDArray, shifts: tuple[int, int], size: tuple[int, ...]) -> NDArray[np.float64]:
    """Return U or V for every pixel: linear between the centres of the pixels that each sample serves."""
    plane = plane.astype(float)
    for axis, shift in enumerate(shifts):
        count = plane.shape[axis]
        at = (np.arange(size[axis]) + 0.5) / (1 << shift) - 0.5
        low = np.floor(at).astype(int)
        weight = (at - low).reshape((-1, 1) if axis == 0 else (1, -1))
        first, second = (plane.take(np.clip(low + step, 0, count - 1), axis) for step in (0, 1))
        plane = first * (1 - weight) + second * weight
    return plane


def frame_of(name: str, planes: list[NDArray]) -> av.VideoFrame:
    """Return a frame of a pixel format from the samples of its planes."""
    frame = av.VideoFrame(planes[0].shape[1], planes[0].shape[0], name)
    for plane, samples in zip(frame.planes, planes, strict=True):
        content = np.zeros((plane.height, plane.line_size), dtype=np.uint8)
        content[:, : samples.shape[1] * samples.itemsize] = np.ascontiguousarray(samples).view(np.uint8)
        plane.update(content.tobytes())
    return frame


def _levels(full: bool, bits: int) -> tuple[float, float, float, float]:
    """Return black, the middle of U and V, and the ranges of Y and of U and V."""
    unit = 2.0 ** (bits - 8)
    return (0, 128 * unit, 2**bits - 1, 2**bits - 1) if full else (16 * unit, 128 * unit, 219 * unit, 224 * unit)
