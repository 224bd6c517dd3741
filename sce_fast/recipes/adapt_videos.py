"""The settings of the recipe `videos` as a function of the videos found, the given settings and the device.

From LARGE videos on, the settings are those of the papers' Kinetics-400 pretraining of an R3D-50. The papers have no
run on fewer videos. Those get an R3D-18 and, as few images do in `folder`, the settings of the papers' CIFAR10 run: a
weak view for the keys, a strong view for the queries, SGD. Sizes and lengths follow the videos.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sce_fast.backbones import CLIP_BACKBONES, VIDEO_TRANSFORMERS
from sce_fast.recipes.choices import QUEUE, Choices, as_tuple, small_batch
from sce_fast.recipes.kinetics import STANDARD_CLIPS, WARMUP

LARGE = 50_000  # videos
CROP = 0.68  # mean side of a crop of 0.2 to 0.766 of a frame's area, as a share of the frame's side


@dataclass(frozen=True)
class FoundVideos:
    """What a folder or list file holds."""

    videos: int
    side: int  # median of the frames' shorter sides in pixels
    seconds: float  # median length


def adapted_to_videos(found: FoundVideos, given: Mapping[str, Any], *, gpu: bool) -> dict[str, Any]:
    """Return all settings that differ from the papers' Kinetics-400 pretraining: the given ones, and chosen ones.

    Args:
        found: the videos.
        given: settings that stay, with sections (model, loss …) as dicts or dataclasses. The chosen settings follow
            them.
        gpu: whether the run trains on a GPU, which affords a larger network.

    Returns:
        settings by name, with sections as dicts.

    Example:
        >>> adapted_to_videos(FoundVideos(videos=3000, side=240, seconds=4), {}, gpu=False)["clips"]
        {'seconds': 2.0}
    """
    choices = Choices(given)
    settings, large = choices.settings, found.videos >= LARGE
    if not choices.are_usable():
        return settings
    epochs = settings.setdefault("epochs", 100)
    batch = settings.setdefault("batch_size", 256 if large else small_batch(found.videos))
    settings.setdefault("accumulation", _parts(batch) if large else 1)
    settings.setdefault("precision", "bfloat16" if gpu else "float32")
    if choices.section("clips").get("stride") is None:
        # In half of a video's time, its two clips are seldom the same.
        choices.choose("clips", seconds=round(min(STANDARD_CLIPS["seconds"], found.seconds / 2), 3))
    choices.choose("optimizer", warmup_epochs=WARMUP * epochs if large else min(10, epochs / 10))
    choices.choose_transformer()
    if not large:
        choices.choose("clips", temporal_difference=0.0)
        choices.choose("views", names=("weak", "strong"), sizes=(_view(found.side, gpu=gpu),))
        for name in ("brightness", "contrast", "saturation", "hue"):
            choices.choose("views", **{name: ()})
        choices.choose_small(found.videos)
        size = max(as_tuple(choices.section("views")["sizes"]))
        choices.choose("model", **_backbone(choices.section("model").get("backbone"), size, gpu=gpu))
        network = choices.section("model")["backbone"]
        # A ViT takes whole patches alone, so it is evaluated at the size of its views.
        if size < 224 and network in CLIP_BACKBONES and network not in VIDEO_TRANSFORMERS:
            whole = min(max(found.side, size), round(size / CROP))
            choices.choose("evaluation", resize=whole, crop=whole)
    choices.choose_queue(16384 if large else int(QUEUE * found.videos))
    return settings


def _view(side: int, *, gpu: bool) -> int:
    """Return the size of the views: that of the average crop, so that crops are not enlarged."""
    return min(max(16 * round(CROP * side / 16), 32), 112 if gpu else 64)


def _parts(batch: int) -> int:
    """Return the parts of a batch of clips for an R3D-50, of at most 64 videos, that a GPU of 80 GB holds."""
    return next(parts for parts in range(-(-batch // 64), batch + 1) if batch % parts == 0)


def _backbone(given: str | None, size: int, *, gpu: bool) -> dict[str, Any]:
    """Return the network for clips of this size; a given one keeps its own width."""
    small = size <= (64 if gpu else 32)
    if given is not None:
        return {"small_input": small and given in CLIP_BACKBONES}
    return {"backbone": "r3d18", "small_input": small, "width": 64 if gpu else 16}
