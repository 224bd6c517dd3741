"""All random decisions about an image, as a pure function of (seed, epoch, sample, view)."""

import enum
import itertools
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from sce_fast.data.image.augment import Augmentation, EvaluationView
from sce_fast.util.philox import Draw, uniforms

CROP_ATTEMPTS = 10
FIRST_ATTEMPTS = 4  # drawn for all images; the others only where none of these fits, which is rare
_DRAWS = {
    **dict.fromkeys((Draw.CROP_AREA, Draw.CROP_RATIO), FIRST_ATTEMPTS),
    **dict.fromkeys((Draw.CROP_TOP, Draw.CROP_LEFT, Draw.FLIP, Draw.JITTER, Draw.JITTER_ORDER), 1),
    **dict.fromkeys((Draw.BRIGHTNESS, Draw.CONTRAST, Draw.SATURATION, Draw.HUE), 1),
    **dict.fromkeys((Draw.GRAYSCALE, Draw.BLUR, Draw.BLUR_SIGMA, Draw.SOLARIZE), 1),
}
_ALL_ATTEMPTS = dict.fromkeys((Draw.CROP_AREA, Draw.CROP_RATIO), CROP_ATTEMPTS)
_RANGES = np.dtype([
    *((name, "f8") for name in ("scale_low", "scale_width", "ratio_low", "ratio_high", "log_ratio_low")),
    *(("log_ratio_width", "f8"), ("lows", "f8", 4), ("widths", "f8", 4), ("acts", "?", 4)),  # by colour operation
    *((name, "f8") for name in ("jitter", "flip", "grayscale", "blur", "sigma_low", "sigma_width", "solarize")),
])  # fmt: skip


class ColorOperation(enum.IntEnum):
    """Colour operations, numbered as in csrc/cpu/color_jitter.h."""

    NONE = -1
    BRIGHTNESS = 0
    CONTRAST = 1
    SATURATION = 2
    HUE = 3
    GRAYSCALE = 4


JITTER_ORDERS = np.array(list(itertools.permutations(range(4))), dtype=np.int32)  # (24, 4)
_ORDERS = JITTER_ORDERS.T.astype(np.int64, order="C")
_FACTORS = Draw.BRIGHTNESS, Draw.CONTRAST, Draw.SATURATION, Draw.HUE  # of the colour operations 0 to 3
# NumPy takes long to convert members of an enum.
_OPERATIONS = np.arange(4)[:, None]
_GRAYSCALE, _NO_OPERATION = ColorOperation.GRAYSCALE.value, ColorOperation.NONE.value


@dataclass(frozen=True)
class ViewPlan:
    """The operations on each of N images for one view, or for each of V views."""

    boxes: NDArray[np.int32]  # (N, 4) or (V, N, 4) top, left, bottom, right of the crop in pixels of the decoded image,
    # which a padded crop exceeds
    operations: NDArray[np.int32]  # (N, 5) or (V, N, 5) ColorOperation, in order of application
    factors: NDArray[np.float32]  # (N, 5) or (V, N, 5) one for each operation
    blur_sigma: NDArray[np.float32]  # (N,) or (V, N) pixels, 0 for no blur
    solarize: NDArray[np.bool_]  # (N,) or (V, N)
    flip: NDArray[np.bool_]  # (N,) or (V, N)

    def __getitem__(self, view: int) -> "ViewPlan":
        """Return the plan of one of V views."""
        return ViewPlan(*(getattr(self, field.name)[view] for field in fields(self)))


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
    return plan_views((augmentation,), sizes, seed=seed, epoch=epoch, samples=samples, first_view=view)[0]


def plan_views(
    augmentations: tuple[Augmentation, ...],
    sizes: NDArray[np.int32],
    *,
    seed: int,
    epoch: int,
    samples: NDArray[np.int64],
    first_view: int = 0,
) -> ViewPlan:
    """Draw the plan of V views of these samples, as plan_view does, in much less time.

    Args:
        augmentations: of views first_view, first_view + 1, …
        sizes: (N, 2) height and width of each decoded image.
        samples: (N,) numbers of the images in the index.
    """
    count, views = len(samples), len(augmentations)
    # One row for each view and sample: NumPy takes as long for a call with few rows as for one with many.
    a = _ranges(augmentations, count)
    numbers = np.arange(first_view, first_view + views)
    rows = _Rows(seed, epoch, samples[None].repeat(views, axis=0).ravel(), numbers.repeat(count))
    random = rows.uniforms(_DRAWS)
    boxes = _random_boxes(a, sizes[None].repeat(views, axis=0).reshape(-1, 2), rows, random)
    for view, augmentation in enumerate(augmentations):
        own = slice(view * count, (view + 1) * count)
        corners = {"tops": random[Draw.CROP_TOP][own], "lefts": random[Draw.CROP_LEFT][own]}
        if augmentation.padding is not None:
            boxes[own] = _padded_boxes(augmentation.size, augmentation.padding, sizes, **corners)
        elif augmentation.shorter_side is not None:
            lengths = random[Draw.CROP_AREA][own, 0]
            boxes[own] = _scaled_boxes(augmentation.size, augmentation.shorter_side, sizes, lengths, **corners)
    operations, factors = _color_operations(a, random)
    sigma = a["sigma_low"] + a["sigma_width"] * random[Draw.BLUR_SIGMA]
    blur_sigma = np.where(random[Draw.BLUR] < a["blur"], sigma, 0).astype(np.float32)
    solarize, flip = random[Draw.SOLARIZE] < a["solarize"], random[Draw.FLIP] < a["flip"]
    columns: tuple[NDArray, ...] = boxes, operations, factors, blur_sigma, solarize, flip
    return ViewPlan(*(column.reshape(views, count, *column.shape[1:]) for column in columns))


@lru_cache(maxsize=16)
def _ranges(augmentations: tuple[Augmentation, ...], count: int) -> NDArray[np.void]:
    """Return what each augmentation draws from, as `count` records (V · count,) for each."""
    records = []
    for a in augmentations:
        strengths = np.array([a.brightness, a.contrast, a.saturation, a.hue])
        centers = np.array([1.0, 1.0, 1.0, 0.0])  # the factors' range is around 1, the hue rotation's around 0
        lows = np.array([*np.maximum(1 - strengths[:3], 0), -a.hue])
        (scale, scale_high), (low, high), (sigma, sigma_high) = a.scale, a.ratio, a.blur_sigma
        crop = scale, scale_high - scale, low, high, np.log(low), np.log(high / low)
        jitter = lows, centers + strengths - lows, strengths > 0, a.jitter
        records.append((*crop, *jitter, a.flip, a.grayscale, a.blur, sigma, sigma_high - sigma, a.solarize))
    return np.array(records, dtype=_RANGES).repeat(count)


def _color_operations(
    a: NDArray[np.void], random: dict[Draw, NDArray[np.float64]]
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Return the colour operations (R, 5) of each row in their order, and their factors (R, 5)."""
    count, drawn = len(a), np.array([random[draw] for draw in _FACTORS])  # (4, R) by operation
    active = a["acts"].T & (random[Draw.JITTER] < a["jitter"])
    orders = _ORDERS.take((random[Draw.JITTER_ORDER] * len(JITTER_ORDERS)).astype(np.int64), axis=1)  # (4, R)
    by_order = orders * count + np.arange(count)  # positions among all operations
    operations, factors = np.empty((count, 5), dtype=np.int32), np.zeros((count, 5), dtype=np.float32)
    operations[:, :4] = np.where(active, _OPERATIONS, _NO_OPERATION).take(by_order).T
    factors[:, :4] = np.where(active, a["lows"].T + a["widths"].T * drawn, 0).take(by_order).T
    operations[:, 4] = np.where(random[Draw.GRAYSCALE] < a["grayscale"], _GRAYSCALE, _NO_OPERATION)
    return operations, factors


@dataclass(frozen=True)
class _Rows:
    """The coordinates of R rows, one for each view of each sample."""

    seed: int
    epoch: int
    samples: NDArray[np.int64]  # (R,)
    views: NDArray[np.int64]  # (R,)

    def uniforms(self, draws: Mapping[Draw, int]) -> dict[Draw, NDArray[np.float64]]:
        return uniforms(self.seed, self.epoch, self.samples, draws, self.views)

    def __getitem__(self, chosen: NDArray[np.int64]) -> "_Rows":
        return replace(self, samples=self.samples[chosen], views=self.views[chosen])


def _random_boxes(
    a: NDArray[np.void], sizes: NDArray[np.int32], rows: _Rows, random: dict[Draw, NDArray[np.float64]]
) -> NDArray[np.int32]:
    """Return crops (R, 4) as RandomResizedCrop of torchvision: ten attempts, else the largest allowed centre crop.

    Args:
        a: (R,) records of _ranges.
        sizes: (R, 2) height and width of each decoded image.
        random: the numbers of _DRAWS.
    """
    height, width = np.ascontiguousarray(sizes.T, dtype=np.float64)  # (R,)
    h, w, found = _first_that_fits(a, height, width, random)
    if not found.all():
        rest = np.flatnonzero(~found)
        numbers = rows[rest].uniforms(_ALL_ATTEMPTS)
        h[rest], w[rest], found[rest] = _first_that_fits(a[rest], height[rest], width[rest], numbers)
    top = np.floor(random[Draw.CROP_TOP] * (height - h + 1))
    left = np.floor(random[Draw.CROP_LEFT] * (width - w + 1))
    boxes = np.array([top, left, top + h, left + w]).T.astype(np.int32, order="C")
    if not found.all():
        rest = np.flatnonzero(~found)
        boxes[rest] = _centre_boxes(a[rest], height[rest], width[rest])
    return boxes


def _centre_boxes(a: NDArray[np.void], height: NDArray[np.float64], width: NDArray[np.float64]) -> NDArray[np.int32]:
    """Return the largest centre crops (R, 4) of an allowed ratio."""
    w = np.minimum(width, np.maximum(np.rint(height * a["ratio_high"]), 1))
    h = np.minimum(height, np.maximum(np.rint(width / a["ratio_low"]), 1))
    top, left = (height - h) // 2, (width - w) // 2
    return np.stack([top, left, top + h, left + w], axis=1).astype(np.int32)


def _first_that_fits(
    a: NDArray[np.void],
    height: NDArray[np.float64],
    width: NDArray[np.float64],
    random: dict[Draw, NDArray[np.float64]],
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
    """Return height and width (R,) of the first crop that fits into its image, and whether any does (R,)."""
    areas, ratios = random[Draw.CROP_AREA].T, random[Draw.CROP_RATIO].T  # (attempts, R)
    area = height * width * (a["scale_low"] + a["scale_width"] * areas)
    ratio = np.exp(a["log_ratio_low"] + a["log_ratio_width"] * ratios)
    crop_width, crop_height = np.rint(np.sqrt(area * ratio)), np.rint(np.sqrt(area / ratio))
    fits = (crop_width > 0) & (crop_width <= width) & (crop_height > 0) & (crop_height <= height)
    first = fits.argmax(axis=0), np.arange(len(a))
    return crop_height[first], crop_width[first], fits[first]


def _padded_boxes(
    size: int, padding: int, sizes: NDArray[np.int32], *, tops: NDArray[np.float64], lefts: NDArray[np.float64]
) -> NDArray[np.int32]:
    """Return square crops (N, 4) as torchvision's RandomCrop with padding and pad_if_needed."""
    far = sizes.astype(np.int64) + padding - size  # (N, 2), where the corner of the last crop is
    low, high = np.minimum(-padding, far), np.maximum(-padding, far)
    corner = low + np.floor(np.stack([tops, lefts], axis=1) * (high - low + 1)).astype(np.int64)
    return np.concatenate([corner, corner + size], axis=1).astype(np.int32)


def _scaled_boxes(
    size: int,
    shorter_side: tuple[int, int],
    sizes: NDArray[np.int32],
    lengths: NDArray[np.float64],
    *,
    tops: NDArray[np.float64],
    lefts: NDArray[np.float64],
) -> NDArray[np.int32]:
    """Return square crops (N, 4) that become `size` pixels where the shorter side becomes a drawn length."""
    shortest, longest = shorter_side
    drawn = shortest + np.floor(lengths * (longest - shortest + 1))
    side = np.maximum(np.rint(size * sizes.min(axis=1) / drawn), 1).astype(np.int64)[:, None]
    corner = np.floor(np.stack([tops, lefts], axis=1) * (sizes - side + 1)).astype(np.int64)
    return np.concatenate([corner, corner + side], axis=1).astype(np.int32)


def evaluation_boxes(view: EvaluationView, sizes: NDArray[np.int32]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Return sizes after resizing (N, 2) and centre crops (N, 4), as torchvision's Resize and CenterCrop."""
    shorter = sizes.min(axis=1, keepdims=True)
    resized = (view.resize * sizes.astype(np.int64) // shorter).astype(np.int32)
    corner = np.rint((resized - view.crop) / 2).astype(np.int32)
    return resized, np.concatenate([corner, corner + view.crop], axis=1)
