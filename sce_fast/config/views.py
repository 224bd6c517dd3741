"""Settings of views and clips."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Literal

from sce_fast.data.image.augment import AUGMENTATIONS, IMAGENET_MEAN, IMAGENET_STD, Augmentation, Photometric
from sce_fast.data.image.background import background_color
from sce_fast.data.video.clips import ClipSampling, Sampler
from sce_fast.util.names import pick
from sce_fast.util.settings import conform, require

# Settings of the views that override those of their names.
STRENGTHS = (
    "ratio", "jitter", "brightness", "contrast", "saturation", "hue", "grayscale", "blur", "blur_sigma", "solarize"
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ClipsConfig:
    """The clips of each video: every view is a clip of its own. Without frames, a run trains on images."""

    frames: int = 0
    """Frames of a clip, such as 8; 0 for images."""
    seconds: float | None = None
    """Time that a clip covers, over which its frames are spread evenly. Default: 2.56, unless stride is given."""
    stride: int | None = None
    """Distance between the frames of a clip, in frames of its video, instead of seconds."""
    sampler: Sampler = "random"
    """Starts of a video's clips: random, independent of each other; cvrl, in pairs whose distance t, as a share of the
    largest possible one, has the density 1 - t**cvrl_power."""
    cvrl_power: float = 1.0
    """Exponent of cvrl: higher values give more distant pairs, and 1 the distances of random."""
    speeds: tuple[float, ...] = (1.0,)
    """Factors of the time that a clip covers, from which each clip draws one."""
    duration_jitter: float = 0.0
    """Half width of the range around 1 from which a further factor of that time is drawn."""
    temporal_difference: float = 0.0
    """Probability that a clip shows grey differences between consecutive frames of its video instead of frames."""
    frame_rate: float = 30.0
    """Frames per second of videos that are stored as folders of images. Video files know their own."""

    def __post_init__(self) -> None:
        conform(self, "clips")
        require(self.frames >= 0, "clips.frames", self.frames, "at least 1 frame, or 0 for images")
        require(self.frame_rate > 0, "clips.frame_rate", self.frame_rate, "a number > 0")
        if self.frames == 0:
            for entry in dataclasses.fields(self):
                value = getattr(self, entry.name)
                expected = "clips.frames of at least 1 with it; clips.frames=0 means images"
                require(value == entry.default, f"clips.{entry.name}", value, expected)
        both = self.seconds is not None and self.stride is not None
        require(not both, "clips.seconds", self.seconds, f"None with clips.stride={self.stride}, which replaces it")
        try:
            self.sampling()
        except ValueError as error:
            raise ValueError(f"clips.{error}") from None

    def sampling(self) -> ClipSampling | None:
        """Return how clips are sampled, or None for images."""
        if self.frames == 0:
            return None
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "frame_rate"}
        if self.seconds is None and self.stride is None:
            del values["seconds"]  # the published default
        return ClipSampling(**values)


@dataclass(frozen=True, kw_only=True)
class ViewsConfig:
    """The augmented views of each image or video. If the model is not symmetric, the first view gives the keys.

    The settings from ratio to solarize replace what the names stand for, by one value for all views or one per view.
    """

    names: tuple[str, ...] = ("alpha", "beta")
    """Augmentation of each view: weak, strong, alpha, beta or gamma."""
    sizes: tuple[int, ...] = (224,)
    """Side length of the views in pixels: one number for all views, or one per view."""
    scales: tuple[tuple[float, float], ...] = ((0.2, 1.0),)
    """Smallest and largest crop as a share of the image's area: one pair for all views, or one per view."""
    ratio: tuple[tuple[float, float], ...] = ()
    """Smallest and largest width / height of a crop; 3/4 and 4/3 with every name."""
    jitter: tuple[float, ...] = ()
    """Probability of the colour jitter."""
    brightness: tuple[float, ...] = ()
    """Half width of the range around 1 of the jitter's brightness factor."""
    contrast: tuple[float, ...] = ()
    """Half width of the range around 1 of the jitter's contrast factor."""
    saturation: tuple[float, ...] = ()
    """Half width of the range around 1 of the jitter's saturation factor."""
    hue: tuple[float, ...] = ()
    """Half width of the range around 0 of the jitter's rotation of the hue, in revolutions, at most 0.5."""
    grayscale: tuple[float, ...] = ()
    """Probability of conversion to grey."""
    blur: tuple[float, ...] = ()
    """Probability of a Gaussian blur."""
    blur_sigma: tuple[tuple[float, float], ...] = ()
    """Smallest and largest standard deviation of the blur in pixels; 0.1 and 2 with every name."""
    solarize: tuple[float, ...] = ()
    """Probability of inverting the values of 128 and above."""
    flip: tuple[float, ...] = (0.5,)
    """Probability of a horizontal flip: one for all views, or one per view. Use 0 where left and right matter, as for
    digits."""
    mean: tuple[float, float, float] = IMAGENET_MEAN
    """Mean of each colour channel, subtracted from values in [0, 1]."""
    std: tuple[float, float, float] = IMAGENET_STD
    """Standard deviation of each colour channel, by which values are divided after the mean is subtracted."""
    background: str = "black"
    """Colour behind transparent images: a name, #rrggbb or three numbers as 255,128,0. none drops their alpha, so that
    hidden pixels show. Unused for videos."""
    photometric: Photometric = "auto"
    """What changes the values of the views on a GPU: triton, our kernel; dali, DALI's operators; or auto, which takes
    dali only if the kernel cannot run, and says why. A CPU always takes our C++ kernel."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Dtype in which the views reach the networks. auto: on a GPU the run's precision if it is bfloat16 or float16, to
    which autocast would round them anyway; otherwise float32."""

    def __post_init__(self) -> None:
        conform(self, "views")
        views = len(self.names)
        require(views >= 2, "views.names", self.names, "at least two views")
        for name in self.names:
            pick("augmentation in views.names", name, AUGMENTATIONS)
        for setting in ("sizes", "scales", "flip"):
            given = getattr(self, setting)
            require(len(given) in (1, views), f"views.{setting}", given, f"1 or {views} entries")
        for setting in STRENGTHS:
            given = getattr(self, setting)
            require(len(given) in (0, 1, views), f"views.{setting}", given, f"0, 1 or {views} entries")
        require(min(self.sizes) >= 1, "views.sizes", self.sizes, "at least 1 pixel")
        for setting in ("scales", "ratio", "blur_sigma"):
            given, largest = getattr(self, setting), 1 if setting == "scales" else math.inf
            pairs = "pairs 0 < smallest <= largest" + (" <= 1" if setting == "scales" else "")
            require(all(0 < low <= high <= largest for low, high in given), f"views.{setting}", given, pairs)
        for setting in ("jitter", "grayscale", "blur", "solarize", "flip"):
            given = getattr(self, setting)
            require(all(0 <= value <= 1 for value in given), f"views.{setting}", given, "probabilities in [0, 1]")
        for setting in ("brightness", "contrast", "saturation"):
            given = getattr(self, setting)
            require(all(value >= 0 for value in given), f"views.{setting}", given, "at least 0")
        require(all(0 <= value <= 0.5 for value in self.hue), "views.hue", self.hue, "0 to 0.5 revolutions")
        require(all(0 <= m <= 1 for m in self.mean), "views.mean", self.mean, "numbers in [0, 1]")
        require(all(0 < s <= 1 for s in self.std), "views.std", self.std, "numbers > 0, at most 1")
        try:
            background_color(self.background)
        except ValueError as error:
            raise ValueError(f"views.{error}") from None

    def augmentations(self) -> tuple[Augmentation, ...]:
        """Return the augmentation of each view."""
        lists = {"size": self.sizes, "scale": self.scales, "flip": self.flip}
        lists |= {name: getattr(self, name) for name in STRENGTHS}
        found = []
        for view, name in enumerate(self.names):
            given = {setting: values[view % len(values)] for setting, values in lists.items() if values}
            settings = {**AUGMENTATIONS[name], **given}
            found.append(Augmentation(mean=self.mean, std=self.std, **settings))
        return tuple(found)
