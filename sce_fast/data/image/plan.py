"""All random decisions about an image, as a pure function of (seed, epoch, sample, view)."""

import enum
import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sce_fast.data.image.augment import Augmentation, EvaluationView
from sce_fast.util.philox import Draw, uniforms

CROP_ATTEMPTS = 10
_DRAWS = {
    **dict.fromkeys((Draw.CROP_AREA, Draw.CROP_RATIO), CROP_ATTEMPTS),
    **dict.fromkeys((Draw.CROP_TOP, Draw.CROP_LEFT, Draw.FLIP, Draw.JITTER, Draw.JITTER_ORDER), 1),
    **dict.fromkeys((Draw.BRIGHTNESS, Draw.CONTRAST, Draw.SATURATION, Draw.HUE), 1),
    **dict.fromkeys((Draw.GRAYSCALE, Draw.BLUR, Draw.BLUR_SIGMA, Draw.SOLARIZE), 1),
}


class ColorOperation(enum.IntEnum):
    """Colour operations, numbered as in csrc/cpu/color_jitter.h."""

    NONE = -1
    BRIGHTNESS = 0
    CONTRAST = 1
    SATURATION = 2
    HUE = 3
    GRAYSCALE = 4


JITTER_ORDERS = np.array(list(itertools.permutations(range(4))), dtype=np.int32)  # (24, 4)


@dataclass(frozen=True)
class ViewPlan:
    """The operations on each of N images for one view."""

    boxes: NDArray[np.int32]  # (N, 4) top, left, bottom, right of the crop in pixels of the decoded image, which a
    # padded crop exceeds
    operations: NDArray[np.int32]  # (N, 5) ColorOperation, in order of application
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
    """Draw the plan of one view of these samples.

    Args:
        sizes: (N, 2) height and width of each decoded image.
        samples: (N,) numbers of the images in the index.
        view: number of the view.

    Example:
        >>> plan_view(Augmentation(size=32), np.array([[375, 500]]), seed=0, epoch=0, samples=np.array([7]), view=0)
    """
    a, random = augmentation, uniforms(seed, epoch, samples, _DRAWS, view)
    operations = np.full((len(samples), 5), ColorOperation.NONE, dtype=np.int32)
    factors = np.zeros((len(samples), 5), dtype=np.float32)
    jittered = random[Draw.JITTER] < a.jitter
    strengths = np.array([a.brightness, a.contrast, a.saturation, a.hue])
    draws = [random[draw] for draw in (Draw.BRIGHTNESS, Draw.CONTRAST, Draw.SATURATION, Draw.HUE)]
    centers = np.array([1.0, 1.0, 1.0, 0.0])  # the factors' range is around 1, the hue rotation's around 0
    lows = np.array([*np.maximum(1 - strengths[:3], 0), -a.hue])
    values = lows + (centers + strengths - lows) * np.stack(draws, axis=1)  # (N, 4) by operation
    orders = JITTER_ORDERS[(random[Draw.JITTER_ORDER] * len(JITTER_ORDERS)).astype(np.int64)]  # (N, 4)
    active = jittered[:, None] & (strengths[orders] > 0)
    operations[:, :4] = np.where(active, orders, ColorOperation.NONE)
    factors[:, :4] = np.where(active, np.take_along_axis(values, orders, axis=1), 0)
    operations[:, 4] = np.where(random[Draw.GRAYSCALE] < a.grayscale, ColorOperation.GRAYSCALE, ColorOperation.NONE)

    low, high = a.blur_sigma
    blur_sigma = np.where(random[Draw.BLUR] < a.blur, low + (high - low) * random[Draw.BLUR_SIGMA], 0)
    corners = {"tops": random[Draw.CROP_TOP], "lefts": random[Draw.CROP_LEFT]}
    if a.padding is None:
        boxes = _random_boxes(a, sizes, areas=random[Draw.CROP_AREA], ratios=random[Draw.CROP_RATIO], **corners)
    else:
        boxes = _padded_boxes(a.size, a.padding, sizes, **corners)
    return ViewPlan(
        boxes=boxes,
        operations=operations,
        factors=factors,
        blur_sigma=blur_sigma.astype(np.float32),
        solarize=random[Draw.SOLARIZE] < a.solarize,
        flip=random[Draw.FLIP] < a.flip,
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
    """Return crops (N, 4) as RandomResizedCrop of torchvision: ten attempts, else the largest allowed centre crop."""
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


def _padded_boxes(
    size: int, padding: int, sizes: NDArray[np.int32], *, tops: NDArray[np.float64], lefts: NDArray[np.float64]
) -> NDArray[np.int32]:
    """Return square crops (N, 4) as torchvision's RandomCrop with padding and pad_if_needed."""
    far = sizes.astype(np.int64) + padding - size  # (N, 2), where the corner of the last crop is
    low, high = np.minimum(-padding, far), np.maximum(-padding, far)
    corner = low + np.floor(np.stack([tops, lefts], axis=1) * (high - low + 1)).astype(np.int64)
    return np.concatenate([corner, corner + size], axis=1).astype(np.int32)


def evaluation_boxes(view: EvaluationView, sizes: NDArray[np.int32]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Return sizes after resizing (N, 2) and centre crops (N, 4), as torchvision's Resize and CenterCrop."""
    shorter = sizes.min(axis=1, keepdims=True)
    resized = (view.resize * sizes.astype(np.int64) // shorter).astype(np.int32)
    corner = np.rint((resized - view.crop) / 2).astype(np.int32)
    return resized, np.concatenate([corner, corner + view.crop], axis=1)
