"""The Gaussian blur of a view: the formulas of csrc/cpu/gaussian_blur.cpp, with its order of sums."""

import triton
import triton.language as tl

from sce_fast.kernels.color_jitter import FLIP, SIGMA, finished, mirrored, solarize_threshold
from sce_fast.kernels.rounding import store_rounded


@triton.jit
def gaussian_blur_kernel(
    jittered,  # (frames, H, W, 3) uint8
    settings,  # (N, 13) as in color_jitter.py
    weights,  # (N, 2 · RADIUS + 1) of the pixels from -RADIUS to RADIUS
    views,  # (frames, H, W, 3)
    height, width, frames_per_sample, settings_stride, weights_stride,
    mean_r, mean_g, mean_b, scale_r, scale_g, scale_b,
    RADIUS: tl.constexpr, REFLECTIONS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Blur the samples with a blur, and finish their views. Grid: (frames, 3 W / BLOCK, H / ROWS).

    A program walks down ROWS rows of BLOCK values. It blurs each row along the row and keeps the last ones, which it
    blurs across rows, so that each row is blurred along the row once.
    """
    TAPS: tl.constexpr = 2 * RADIUS + 1
    frame = tl.program_id(0)
    sample = frame // frames_per_sample
    setting = settings + sample * settings_stride
    if tl.load(setting + SIGMA) <= 0.0:
        return
    taps = ()
    for k in tl.static_range(TAPS):
        taps = taps + (tl.load(weights + sample * weights_stride + k),)
    place = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    exists = place < 3 * width
    column, channel = place // 3, place % 3
    columns = ()
    for k in tl.static_range(TAPS):
        columns = columns + (3 * _reflected(column + k - RADIUS, width, REFLECTIONS) + channel,)
    image = tl.cast(frame, tl.int64) * height * width * 3
    first = tl.program_id(2) * ROWS
    blurred = ()
    for _ in tl.static_range(TAPS):
        blurred = blurred + (tl.zeros([BLOCK], tl.float32),)

    threshold, flips = solarize_threshold(setting), tl.load(setting + FLIP) > 0.0
    mean = tl.where(channel == 0, mean_r, tl.where(channel == 1, mean_g, mean_b))
    scale = tl.where(channel == 0, scale_r, tl.where(channel == 1, scale_g, scale_b))
    to = views + image + 3 * mirrored(column, width, flips) + channel
    for step in range(0, tl.minimum(ROWS, height - first) + 2 * RADIUS):
        row = jittered + image + _reflected(first + step - RADIUS, height, REFLECTIONS) * width * 3
        along = taps[0] * tl.load(row + columns[0]).to(tl.float32)
        for k in tl.static_range(1, TAPS):
            along += taps[k] * tl.load(row + columns[k]).to(tl.float32)
        blurred = blurred[1:] + (along,)
        if step >= 2 * RADIUS:
            across = taps[0] * blurred[0]
            for k in tl.static_range(1, TAPS):
                across += taps[k] * blurred[k]
            to_row = to + (first + step - 2 * RADIUS) * width * 3
            store_rounded(to_row, finished(tl.floor(across + 0.5), threshold, mean, scale), exists)


@triton.jit
def _reflected(index, size, REFLECTIONS: tl.constexpr):
    """Return the index mirrored at both ends without repeating the edge: -1 → 1, size → size - 2."""
    for _ in tl.static_range(REFLECTIONS):
        index = tl.where(index < 0, -index, index)
        index = tl.minimum(index, 2 * (size - 1) - index)
    # of a single row or column; places behind the row are loaded without a mask, so they must lie in the image
    return tl.minimum(tl.maximum(index, 0), size - 1)
