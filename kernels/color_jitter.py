"""The colour operations of a view in any order: the formulas of csrc/cpu/color_jitter.cpp, with its order of sums."""

import triton
import triton.language as tl

from sce_fast.kernels.rounding import store_rounded

# ColorOperation of sce_fast/data/image/plan.py
NONE, CONTRAST, SATURATION, HUE, GRAYSCALE = (tl.constexpr(code) for code in (-1, 1, 2, 3, 4))
# Greys are added as on a CPU: sixteen sums for each block of 2048 pixels, and then all sums of an image in float64.
LANES, BLOCK_PIXELS = tl.constexpr(16), tl.constexpr(2048)
JITTER_SLOTS = tl.constexpr(4)
# Columns of a sample's settings
FACTORS, SIGMA, SOLARIZE, FLIP = (tl.constexpr(column) for column in (5, 10, 11, 12))


@triton.jit
def grey_sums_kernel(
    pixels,  # (frames, P, 3) uint8
    settings,  # (N, 13) operations (5), factors (5), sigma, solarize, flip
    sums,  # (frames, blocks · LANES), written for samples with contrast only
    pixel_count, frames_per_sample, settings_stride, blocks,
    SUMS: tl.constexpr,
):  # fmt: skip
    """Add the greys of an image as they are before its contrast. Grid: (frames, blocks · LANES / SUMS)."""
    frame = tl.program_id(0)
    setting = settings + (frame // frames_per_sample) * settings_stride
    operations, factors = _jitter(setting)
    slot = _contrast_slot(operations)
    if slot == JITTER_SLOTS:
        return
    index = tl.program_id(1) * SUMS + tl.arange(0, SUMS)
    block, lane = index // LANES, index % LANES
    image = pixels + tl.cast(frame, tl.int64) * pixel_count * 3
    total = tl.zeros([SUMS], tl.float32)
    for step in range(0, tl.cdiv(tl.minimum(pixel_count, BLOCK_PIXELS), LANES)):
        pixel = block * BLOCK_PIXELS + step * LANES + lane
        exists = pixel < pixel_count
        r, g, b = _load(image, pixel, exists)
        for k in tl.static_range(JITTER_SLOTS - 1):
            if k < slot:
                r, g, b = _apply(r, g, b, operations[k], factors[k], 0.0)
        total += tl.where(exists, _grey(r, g, b), 0.0)
    tl.store(sums + tl.cast(frame, tl.int64) * blocks * LANES + index, total, mask=block < blocks)


@triton.jit
def color_jitter_kernel(
    pixels,  # (frames, P, 3) uint8
    settings,  # (N, 13) operations (5), factors (5), sigma, solarize, flip
    sums,  # (frames, blocks · LANES) of grey_sums_kernel, or None if no sample has contrast
    jittered,  # (frames, P, 3) uint8, written for samples with a blur only; None if no sample has one
    views,  # (frames, P, 3), written for the others
    pixel_count, width, frames_per_sample, settings_stride, blocks,
    mean_r, mean_g, mean_b, scale_r, scale_g, scale_b,
    BLOCK: tl.constexpr, SUMS: tl.constexpr,
):  # fmt: skip
    """Apply jitter and grayscale; finish the view unless it is blurred next. Grid: (frames, P / BLOCK)."""
    frame = tl.program_id(0)
    setting = settings + (frame // frames_per_sample) * settings_stride
    operations, factors = _jitter(setting)
    grey_mean = 0.0
    if sums is not None and _contrast_slot(operations) < JITTER_SLOTS:
        grey_mean = _mean(sums + tl.cast(frame, tl.int64) * blocks * LANES, blocks * LANES, pixel_count, SUMS)
    pixel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    exists = pixel < pixel_count
    image = tl.cast(frame, tl.int64) * pixel_count * 3
    r, g, b = _load(pixels + image, pixel, exists)
    for k in tl.static_range(JITTER_SLOTS):
        r, g, b = _apply(r, g, b, operations[k], factors[k], grey_mean)
    r, g, b = _apply(r, g, b, tl.load(setting + JITTER_SLOTS).to(tl.int32), 0.0, 0.0)
    # whole numbers, rounded as on a CPU
    r, g, b = tl.floor(r + 0.5), tl.floor(g + 0.5), tl.floor(b + 0.5)
    if jittered is None:
        _store_view(
            views + image, setting, pixel, width, exists, r, g, b, mean_r, mean_g, mean_b, scale_r, scale_g, scale_b
        )
    elif tl.load(setting + SIGMA) > 0.0:
        _store(jittered + image + 3 * pixel, r, g, b, exists)
    else:
        _store_view(
            views + image, setting, pixel, width, exists, r, g, b, mean_r, mean_g, mean_b, scale_r, scale_g, scale_b
        )


@triton.jit
def finished(values, threshold, mean, scale):
    """Return whole numbers in [0, 255], inverted from the threshold on and normalised."""
    return (tl.where(values >= threshold, 255.0 - values, values) - mean) * scale


@triton.jit
def solarize_threshold(setting):
    """Return the value from which a sample's values are inverted; none is as large if it is not solarized."""
    return tl.where(tl.load(setting + SOLARIZE) > 0.0, 128.0, 256.0)


@triton.jit
def mirrored(pixel, width, flips):
    """Return where a pixel of an image of this width comes to lie."""
    column = pixel % width
    return tl.where(flips, pixel + width - 1 - 2 * column, pixel)


@triton.jit
def _jitter(setting):
    """Return the operations and factors of the colour jitter."""
    operations, factors = (), ()
    for k in tl.static_range(JITTER_SLOTS):
        operations = operations + (tl.load(setting + k).to(tl.int32),)
        factors = factors + (tl.load(setting + FACTORS + k),)
    return operations, factors


@triton.jit
def _contrast_slot(operations):
    """Return the position of the contrast, or JITTER_SLOTS without contrast."""
    slot = JITTER_SLOTS
    for k in tl.static_range(JITTER_SLOTS):
        slot = tl.where(operations[k] == CONTRAST, k, slot)
    return slot


@triton.jit
def _mean(sums, count, pixel_count, SUMS: tl.constexpr):
    """Return the mean grey of an image. In float64 the order of the sums does not show in the result."""
    total = tl.zeros([SUMS], tl.float64)
    for first in range(0, count, SUMS):
        index = first + tl.arange(0, SUMS)
        total += tl.load(sums + index, mask=index < count, other=0.0).to(tl.float64)
    return (tl.sum(total, 0) / pixel_count).to(tl.float32)


@triton.jit
def _load(image, pixel, exists):
    """Return the three channels of pixels in float32."""
    at = image + 3 * pixel
    r = tl.load(at, mask=exists, other=0).to(tl.float32)
    g = tl.load(at + 1, mask=exists, other=0).to(tl.float32)
    b = tl.load(at + 2, mask=exists, other=0).to(tl.float32)
    return r, g, b


@triton.jit
def _store_view(
    view, setting, pixel, width, exists, r, g, b, mean_r, mean_g, mean_b, scale_r, scale_g, scale_b
):  # fmt: skip
    """Solarize, normalise and flip whole numbers, and store them."""
    threshold, flips = solarize_threshold(setting), tl.load(setting + FLIP) > 0.0
    r = finished(r, threshold, mean_r, scale_r)
    g = finished(g, threshold, mean_g, scale_g)
    b = finished(b, threshold, mean_b, scale_b)
    _store(view + 3 * mirrored(pixel, width, flips), r, g, b, exists)


@triton.jit
def _store(to, r, g, b, exists):
    """Store the three channels of pixels, rounded to the dtype of the pointers."""
    store_rounded(to, r, exists)
    store_rounded(to + 1, g, exists)
    store_rounded(to + 2, b, exists)


@triton.jit
def _apply(r, g, b, operation, factor, grey_mean):
    """Apply one colour operation."""
    if operation == HUE:
        r, g, b = _turn_hue(r, g, b, factor)
    elif operation != NONE:
        own = tl.where(operation == GRAYSCALE, 0.0, factor)
        to_grey = tl.where(operation == SATURATION, 1.0 - factor, tl.where(operation == GRAYSCALE, 1.0, 0.0))
        constant = tl.where(operation == CONTRAST, (1.0 - factor) * grey_mean, 0.0)
        add = to_grey * _grey(r, g, b) + constant
        r, g, b = _clamped(own * r + add), _clamped(own * g + add), _clamped(own * b + add)
    return r, g, b


@triton.jit
def _grey(r, g, b):
    return 0.299 * r + 0.587 * g + 0.114 * b


@triton.jit
def _clamped(values):
    return tl.minimum(tl.maximum(values, 0.0), 255.0)


@triton.jit
def _turn_hue(r, g, b, turn):
    """Return RGB → HSV, h ← h + turn, → RGB, in the closed form of csrc/cpu/color_jitter.cpp."""
    shift = 6.0 * (turn + tl.where(turn < 0.0, 1.0, 0.0))
    value = tl.maximum(tl.maximum(r, g), b)
    chroma = value - tl.minimum(tl.minimum(r, g), b)
    inverse = tl.div_rn(1.0, tl.maximum(chroma, 1e-3))
    of_green, of_blue = (b - r) * inverse + 2.0, (r - g) * inverse + 4.0
    sector = tl.where(value == r, (g - b) * inverse, tl.where(value == g, of_green, of_blue))
    h = sector + shift
    return _channel(h + 5.0, value, chroma), _channel(h + 3.0, value, chroma), _channel(h + 1.0, value, chroma)


@triton.jit
def _channel(k, value, chroma):
    k = k - tl.where(k >= 12.0, 12.0, tl.where(k >= 6.0, 6.0, 0.0))
    return value - chroma * tl.minimum(tl.maximum(tl.minimum(k, 4.0 - k), 0.0), 1.0)
