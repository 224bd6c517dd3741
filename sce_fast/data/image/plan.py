"""Every random decision about the data, as a pure function of (seed, epoch, sample, view).

The numbers come from our own counter-based generator (Philox4x32-10), so they do not change with a release of NumPy,
with the batch size, the number of ranks or the order in which this code asks for them.
"""

import enum
import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sce_fast.data.image.augment import Augmentation, EvaluationView

CROP_ATTEMPTS = 10


class Draw(enum.IntEnum):
    """What a number is drawn for. The values are part of the data's identity: append, never renumber."""

    ORDER = 0
    CROP_AREA = 1
    CROP_RATIO = 2
    CROP_TOP = 3
    CROP_LEFT = 4
    FLIP = 5
    JITTER = 6
    JITTER_ORDER = 7
    BRIGHTNESS = 8
    CONTRAST = 9
    SATURATION = 10
    HUE = 11
    GRAYSCALE = 12
    BLUR = 13
    BLUR_SIGMA = 14
    SOLARIZE = 15
    REPLACEMENT = 16
    SHUFFLE = 17


class ColorOperation(enum.IntEnum):
    """As in csrc/cpu/color_jitter.h."""

    NONE = -1
    BRIGHTNESS = 0
    CONTRAST = 1
    SATURATION = 2
    HUE = 3
    GRAYSCALE = 4


JITTER_ORDERS = np.array(list(itertools.permutations(range(4))), dtype=np.int32)  # (24, 4)


def philox(counter: NDArray[np.uint32], key: tuple[int, int]) -> NDArray[np.uint32]:
    """Philox4x32-10 (Salmon et al., SC 2011): counters (…, 4) and a key of two words → random words (…, 4)."""
    c0, c1, c2, c3 = (counter[..., i].astype(np.uint64) for i in range(4))
    k0, k1 = np.uint64(key[0]), np.uint64(key[1])
    low, shift = np.uint64(0xFFFFFFFF), np.uint64(32)
    for _ in range(10):
        product0, product1 = c0 * np.uint64(0xD2511F53), c2 * np.uint64(0xCD9E8D57)
        c0, c1, c2, c3 = (product1 >> shift) ^ c1 ^ k0, product1 & low, (product0 >> shift) ^ c3 ^ k1, product0 & low
        k0, k1 = (k0 + np.uint64(0x9E3779B9)) & low, (k1 + np.uint64(0xBB67AE85)) & low
    return np.stack([c0, c1, c2, c3], axis=-1).astype(np.uint32)


def random_words(
    seed: int, epoch: int, samples: NDArray[np.int64], draw: Draw, view: int, blocks: int
) -> NDArray[np.uint64]:
    """(N, 2 · blocks) words of 64 bits for these samples; each depends on nothing but its own coordinates."""
    counter = np.empty((len(samples), blocks, 4), dtype=np.uint32)
    counter[..., 0] = (samples & 0xFFFFFFFF)[:, None]
    counter[..., 1] = (samples >> 32)[:, None]
    counter[..., 2] = view << 16 | draw
    counter[..., 3] = np.arange(blocks)
    words = philox(counter, (seed, epoch)).astype(np.uint64)
    return (words[..., 0::2] << np.uint64(32) | words[..., 1::2]).reshape(len(samples), -1)


def uniform(
    seed: int, epoch: int, samples: NDArray[np.int64], draw: Draw, view: int, count: int = 1
) -> NDArray[np.float64]:
    """(N, count) numbers in [0, 1), or (N,) for a count of 1."""
    words = random_words(seed, epoch, samples, draw, view, blocks=(count + 1) // 2)[:, :count]
    numbers = (words >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return numbers[:, 0] if count == 1 else numbers


def epoch_order(seed: int, epoch: int, samples: int) -> NDArray[np.int64]:
    """A random permutation of range(samples): the samples sorted by a random key each."""
    keys = random_words(seed, epoch, np.arange(samples), Draw.ORDER, view=0, blocks=1)[:, 0]
    return np.argsort(keys, kind="stable")


def row_order(seed: int, step: int, rows: int, view: int) -> NDArray[np.int64]:
    """A random permutation of the rows of a batch, for batch normalisation over shuffled rows."""
    keys = random_words(seed, step, np.arange(rows), Draw.SHUFFLE, view, blocks=1)[:, 0]
    return np.argsort(keys, kind="stable")


def batch_of_rank(
    order: NDArray[np.int64], step: int, batch_size: int, rank: int = 0, ranks: int = 1
) -> NDArray[np.int64]:
    """The samples (batch_size,) of this rank: a contiguous slice of the ranks · batch_size of the step."""
    start = (step * ranks + rank) * batch_size
    return order[start : start + batch_size]


def without(bad: NDArray[np.bool_], samples: NDArray[np.int64], *, seed: int, epoch: int) -> NDArray[np.int64]:
    """The samples (N,) with each that is marked in `bad` (one entry an image) replaced by another of the data set.

    The replacement is a function of seed, epoch, sample and attempt: order, other samples and other ranks stay as
    they were.
    """
    replaced = samples.copy()
    attempt = 0
    while len(still_bad := np.flatnonzero(bad[replaced])):
        numbers = uniform(seed, epoch, samples[still_bad], Draw.REPLACEMENT, view=attempt)
        replaced[still_bad] = (numbers * len(bad)).astype(np.int64)
        attempt += 1
    return replaced


@dataclass(frozen=True)
class ViewPlan:
    """What happens to each of N images in one view."""

    boxes: NDArray[np.int32]  # (N, 4) top, left, bottom, right of the crop in pixels of the decoded image
    operations: NDArray[np.int32]  # (N, 5) ColorOperation, in the order of their application
    factors: NDArray[np.float32]  # (N, 5) one for each operation
    blur_sigma: NDArray[np.float32]  # (N,) pixels, 0 for no blur
    solarize: NDArray[np.bool_]  # (N,)
    flip: NDArray[np.bool_]  # (N,)


def plan_view(
    augmentation: Augmentation,
    sizes: NDArray[np.int32],
    *,
    seed: int,
    epoch: int,
    samples: NDArray[np.int64],
    view: int,
) -> ViewPlan:
    """Draws one view of these samples.

    Args:
        sizes: (N, 2) height and width of each sample's decoded image.
        samples: (N,) their numbers in the index.
        view: number of the view.

    Example:
        >>> plan_view(Augmentation(size=32), np.array([[375, 500]]), seed=0, epoch=0, samples=np.array([7]), view=0)
    """

    def random(draw: Draw, count: int = 1) -> NDArray[np.float64]:
        return uniform(seed, epoch, samples, draw, view, count)

    a = augmentation
    operations = np.full((len(samples), 5), ColorOperation.NONE, dtype=np.int32)
    factors = np.zeros((len(samples), 5), dtype=np.float32)
    jittered = random(Draw.JITTER) < a.jitter
    strengths = np.array([a.brightness, a.contrast, a.saturation, a.hue])
    draws = [random(draw) for draw in (Draw.BRIGHTNESS, Draw.CONTRAST, Draw.SATURATION, Draw.HUE)]
    centers = np.array([1.0, 1.0, 1.0, 0.0])  # factors around 1, a turn of the hue around 0
    lows = np.array([*np.maximum(1 - strengths[:3], 0), -a.hue])
    values = lows + (centers + strengths - lows) * np.stack(draws, axis=1)  # (N, 4) by operation
    orders = JITTER_ORDERS[(random(Draw.JITTER_ORDER) * len(JITTER_ORDERS)).astype(np.int64)]  # (N, 4)
    active = jittered[:, None] & (strengths[orders] > 0)
    operations[:, :4] = np.where(active, orders, ColorOperation.NONE)
    factors[:, :4] = np.where(active, np.take_along_axis(values, orders, axis=1), 0)
    operations[:, 4] = np.where(random(Draw.GRAYSCALE) < a.grayscale, ColorOperation.GRAYSCALE, ColorOperation.NONE)

    low, high = a.blur_sigma
    blur_sigma = np.where(random(Draw.BLUR) < a.blur, low + (high - low) * random(Draw.BLUR_SIGMA), 0)
    return ViewPlan(
        boxes=_random_boxes(
            a,
            sizes,
            areas=random(Draw.CROP_AREA, CROP_ATTEMPTS),
            ratios=random(Draw.CROP_RATIO, CROP_ATTEMPTS),
            tops=random(Draw.CROP_TOP),
            lefts=random(Draw.CROP_LEFT),
        ),
        operations=operations,
        factors=factors,
        blur_sigma=blur_sigma.astype(np.float32),
        solarize=random(Draw.SOLARIZE) < a.solarize,
        flip=random(Draw.FLIP) < a.flip,
    )


def _random_boxes(
    augmentation: Augmentation,
    sizes: NDArray[np.int32],
    *,
    areas: NDArray[np.float64],
    ratios: NDArray[np.float64],
    tops: NDArray[np.float64],
    lefts: NDArray[np.float64],
) -> NDArray[np.int32]:
    """torchvision's RandomResizedCrop: ten attempts, else the largest centre crop of allowed ratio."""
    height, width = sizes[:, :1].astype(np.float64), sizes[:, 1:].astype(np.float64)  # (N, 1)
    (scale_low, scale_high), (ratio_low, ratio_high) = augmentation.scale, augmentation.ratio
    area = height * width * (scale_low + (scale_high - scale_low) * areas)  # (N, attempts)
    ratio = np.exp(np.log(ratio_low) + np.log(ratio_high / ratio_low) * ratios)
    crop_width, crop_height = np.rint(np.sqrt(area * ratio)), np.rint(np.sqrt(area / ratio))
    fits = (crop_width > 0) & (crop_width <= width) & (crop_height > 0) & (crop_height <= height)
    first = fits.argmax(axis=1)[:, None]
    found = fits.any(axis=1)

    fallback_width = np.minimum(width, np.maximum(np.rint(height * ratio_high), 1))[:, 0]
    fallback_height = np.minimum(height, np.maximum(np.rint(width / ratio_low), 1))[:, 0]
    w = np.where(found, np.take_along_axis(crop_width, first, 1)[:, 0], fallback_width)
    h = np.where(found, np.take_along_axis(crop_height, first, 1)[:, 0], fallback_height)
    free_height, free_width = height[:, 0] - h, width[:, 0] - w
    top = np.where(found, np.floor(tops * (free_height + 1)), free_height // 2)
    left = np.where(found, np.floor(lefts * (free_width + 1)), free_width // 2)
    return np.stack([top, left, top + h, left + w], axis=1).astype(np.int32)


def evaluation_boxes(view: EvaluationView, sizes: NDArray[np.int32]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Sizes after resizing (N, 2) and the centre crops in them (N, 4), as torchvision's Resize and CenterCrop."""
    shorter = sizes.min(axis=1, keepdims=True)
    resized = (view.resize * sizes.astype(np.int64) // shorter).astype(np.int32)
    corner = np.rint((resized - view.crop) / 2).astype(np.int32)
    return resized, np.concatenate([corner, corner + view.crop], axis=1)
