"""The published image augmentations and their parameters."""

import math
from dataclasses import dataclass
from typing import Any, Literal

from sce_fast.data.image.background import background_color

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# What changes the values of pixels; see fused.py.
Photometric = Literal["auto", "triton", "dali"]


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """The distribution of one view: crop, jitter, grayscale, blur, solarize, flip and normalise, in this order."""

    size: int = 224
    """Side of the square view in pixels."""
    scale: tuple[float, float] = (0.2, 1.0)
    """Range of the crop's area as a share of the image's area."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Range of the crop's width / height, drawn log-uniformly."""
    padding: int | None = None
    """If given, the crop is `size` pixels of the image itself, wherever they fit into the image with so many black
    pixels on each side (the papers' CIFAR augmentation). `scale` and `ratio` are not used then."""
    shorter_side: tuple[int, int] | None = None
    """If given, the crop is `size` pixels of the image resized to a shorter side drawn from this range, both ends
    included (the papers' crop of labelled videos). `scale` and `ratio` are not used then."""
    flip: float = 0.5
    """Probability of a horizontal flip."""
    jitter: float = 0.0
    """Probability of the colour jitter, which applies the four operations below in random order."""
    brightness: float = 0.0
    """Half width of the range around 1 from which the brightness factor is drawn. It scales all values."""
    contrast: float = 0.0
    """Half width of the contrast factor's range. It scales the distance from the image's mean grey."""
    saturation: float = 0.0
    """Half width of the saturation factor's range. It scales the distance from the pixel's own grey."""
    hue: float = 0.0
    """Half width of the range around 0 of the HSV hue's rotation, in revolutions, at most 0.5."""
    grayscale: float = 0.0
    """Probability of conversion to grey."""
    blur: float = 0.0
    """Probability of a Gaussian blur."""
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    """Range of the blur's standard deviation in pixels."""
    solarize: float = 0.0
    """Probability of inverting the values of 128 and above."""
    mean: tuple[float, float, float] = IMAGENET_MEAN
    """Mean of each channel, subtracted from values in [0, 1]."""
    std: tuple[float, float, float] = IMAGENET_STD
    """Standard deviation of each channel, by which the difference is divided."""

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"size={self.size}: expected at least 1 pixel")
        if self.padding is not None and self.padding < 0:
            raise ValueError(f"padding={self.padding}: expected at least 0 pixels, or None")
        if self.shorter_side is not None:
            self._check_shorter_side(*self.shorter_side)
        for name in ("flip", "jitter", "grayscale", "blur", "solarize"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)}: expected a probability in [0, 1]")
        for name, low, high in (("scale", 0.0, 1.0), ("ratio", 0.0, math.inf), ("blur_sigma", 0.0, math.inf)):
            first, last = getattr(self, name)
            if not low < first <= last <= high:
                raise ValueError(f"{name}={getattr(self, name)}: expected {low} < first <= last <= {high}")
        for name, high in (("brightness", math.inf), ("contrast", math.inf), ("saturation", math.inf), ("hue", 0.5)):
            if not 0 <= getattr(self, name) <= high:
                raise ValueError(f"{name}={getattr(self, name)}: expected 0 to {high}")

    def _check_shorter_side(self, shortest: int, longest: int) -> None:
        if not self.size <= shortest <= longest:
            raise ValueError(f"shorter_side={self.shorter_side}: expected size={self.size} <= shortest <= longest")
        if self.padding is not None:
            raise ValueError(f"shorter_side={self.shorter_side}: expected None with padding={self.padding}")

    @property
    def changes_values(self) -> bool:
        """Whether this augmentation can do more than crop and flip."""
        return max(self.jitter, self.grayscale, self.blur, self.solarize) > 0


@dataclass(frozen=True, kw_only=True)
class EvaluationView:
    """The deterministic view of an evaluation: resize the shorter side, crop the centre, normalise."""

    resize: int = 256
    """Length of the shorter side in pixels after resizing."""
    crop: int = 224
    """Side of the square centre crop."""
    mean: tuple[float, float, float] = IMAGENET_MEAN
    """Mean of each channel, subtracted from values in [0, 1]."""
    std: tuple[float, float, float] = IMAGENET_STD
    """Standard deviation of each channel, by which the difference is divided."""
    background: str = "black"
    """Colour behind transparent images, as background_color takes it; none drops their alpha."""
    interpolation: str = "bilinear"
    """How images are resized, always with antialiasing: bilinear or bicubic."""

    def __post_init__(self) -> None:
        background_color(self.background)
        if self.interpolation not in ("bilinear", "bicubic"):
            raise ValueError(f"interpolation={self.interpolation!r}: expected bilinear or bicubic")
        if not 1 <= self.crop <= self.resize:
            raise ValueError(f"crop={self.crop}, resize={self.resize}: expected 1 <= crop <= resize")


_JITTER = {"jitter": 0.8, "brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1, "grayscale": 0.2}
_WEAKER_SATURATION = {**_JITTER, "saturation": 0.2}

# Names as in the papers' table: alpha and beta are the two views of BYOL and MoCo v3, gamma is the multi-crop view.
AUGMENTATIONS: dict[str, dict[str, Any]] = {
    "weak": {},
    "strong": {**_JITTER, "blur": 0.5},
    "alpha": {**_WEAKER_SATURATION, "blur": 1.0},
    "beta": {**_WEAKER_SATURATION, "blur": 0.1, "solarize": 0.2},
    "gamma": {**_WEAKER_SATURATION, "blur": 0.5, "solarize": 0.2},
}
