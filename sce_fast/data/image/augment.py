"""The published image augmentations as parameters."""

import math
from dataclasses import dataclass
from typing import Any

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """One view's distribution: crop, jitter, grayscale, blur, solarize, flip, normalise, in this order."""

    size: int = 224
    """Side of the square view in pixels."""
    scale: tuple[float, float] = (0.2, 1.0)
    """Range of the crop's share of the image's area."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Range of the crop's width / height, drawn log-uniformly."""
    flip: float = 0.5
    """Probability of a horizontal flip."""
    jitter: float = 0.0
    """Probability of the colour jitter: the four operations below in random order."""
    brightness: float = 0.0
    """Half width of the range around 1 of the factor of all values."""
    contrast: float = 0.0
    """The same of the distance from the image's mean grey."""
    saturation: float = 0.0
    """The same of the distance from the pixel's grey."""
    hue: float = 0.0
    """Half width of the turn of the HSV hue, in revolutions, at most 0.5."""
    grayscale: float = 0.0
    """Probability of dropping the colours."""
    blur: float = 0.0
    """Probability of a Gaussian blur."""
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    """Range of its standard deviation in pixels."""
    solarize: float = 0.0
    """Probability of inverting the values of 128 and above."""
    mean: tuple[float, float, float] = IMAGENET_MEAN
    """Subtracted from the channels' values in [0, 1]."""
    std: tuple[float, float, float] = IMAGENET_STD
    """Divides what is left."""

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"size={self.size}: expected at least 1 pixel")
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

    @property
    def changes_values(self) -> bool:
        """Whether anything but crop and flip can happen."""
        return max(self.jitter, self.grayscale, self.blur, self.solarize) > 0


@dataclass(frozen=True, kw_only=True)
class EvaluationView:
    """What an evaluation sees: the shorter side resized, the centre cut out, normalised; nothing random."""

    resize: int = 256
    """Length of the shorter side in pixels after resizing."""
    crop: int = 224
    """Side of the square centre crop."""
    mean: tuple[float, float, float] = IMAGENET_MEAN
    """Subtracted from the channels' values in [0, 1]."""
    std: tuple[float, float, float] = IMAGENET_STD
    """Divides what is left."""

    def __post_init__(self) -> None:
        if not 1 <= self.crop <= self.resize:
            raise ValueError(f"crop={self.crop}, resize={self.resize}: expected 1 <= crop <= resize")


_JITTER = {"jitter": 0.8, "brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1, "grayscale": 0.2}
_WEAKER_SATURATION = {**_JITTER, "saturation": 0.2}

# The names of the papers' table; alpha and beta are the two views of BYOL and MoCo v3, gamma is multi-crop's.
AUGMENTATIONS: dict[str, dict[str, Any]] = {
    "weak": {},
    "strong": {**_JITTER, "blur": 0.5},
    "alpha": {**_WEAKER_SATURATION, "blur": 1.0},
    "beta": {**_WEAKER_SATURATION, "blur": 0.1, "solarize": 0.2},
    "gamma": {**_WEAKER_SATURATION, "blur": 0.5, "solarize": 0.2},
}
