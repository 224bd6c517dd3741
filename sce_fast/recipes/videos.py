"""A folder of videos, on one machine, with settings that follow the videos."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sce_fast.config import TrainConfig, replace
from sce_fast.config.subset import SubsetConfig
from sce_fast.data.faults import status_or_reason
from sce_fast.data.sources import Listing, list_videos
from sce_fast.data.video.probe import FRAMES, FRAMES_TICK, probe
from sce_fast.recipes.adapt_videos import LARGE, FoundVideos, adapted_to_videos
from sce_fast.recipes.changes import changed
from sce_fast.recipes.choices import description
from sce_fast.recipes.device import has_gpu
from sce_fast.recipes.kinetics import kinetics400_r3d50
from sce_fast.util.terminal import say

SAMPLED = 32  # videos that are probed, each from its beginning to its end


def videos(data: str | Path, out: str | Path = "runs/videos", **changes: Any) -> TrainConfig:
    """Train on a folder of videos with settings that adapt to their number, size and length and to the device.

    From 50,000 videos on, they are those of the papers' Kinetics-400 pretraining, with a smaller batch and a smaller
    queue: an R3D-50 on clips of 8 frames of 224 pixels. Fewer videos get a smaller network, smaller views, a shorter
    queue, SGD, and a teacher that follows faster. Clips last 2.56 seconds, or half of the median video if that is
    shorter. Two lines on standard error say what was found and chosen. Options override the choice, and the others
    follow them. Without videos, the settings are those of the papers.

    Args:
        data: Folder of videos, of folders of extracted frames, or a list file that names them.
        out: Run folder.
        changes: Other settings, by name; a dict changes some settings of a section.

    Raises:
        ValueError, TypeError: a setting is unknown, out of range or of another type.

    Example:
        >>> videos("films", epochs=3, views={"sizes": 96}, clips={"frames": 16})
    """
    gpu = has_gpu(changes.get("device", "auto"))
    papers = kinetics400_r3d50(data, out, epochs=100, batch_size=256, loss={"queue_size": 16384})
    part = replace(papers, subset=changes["subset"]).subset if "subset" in changes else papers.subset
    found = survey(papers.data, changes.get("clips"), part)
    config = changed(papers, adapted_to_videos(found or FoundVideos(LARGE, 256, 10.0), changes, gpu=gpu))
    if found is not None and int(os.environ.get("RANK", 0)) == 0:
        source = "the papers' Kinetics settings" if found.videos >= LARGE else "settings for a small data set"
        what = f"{found.videos:,} videos, median shorter side {found.side} pixels, median length {found.seconds:.1f} s"
        say(description(what, source, config, gpu=gpu))
    return config


def survey(data: Path, clips: Any = None, subset: SubsetConfig = SubsetConfig()) -> FoundVideos | None:  # noqa: B008
    """Return the number of videos and medians of some of them; None if there are no readable videos.

    Training names what is wrong with the data.

    Args:
        data: of the run.
        clips: given settings of clips, for the frame rate of extracted frames.
        subset: part of the data that the run trains on.
    """
    rate = clips.get("frame_rate") if isinstance(clips, Mapping) else getattr(clips, "frame_rate", None)
    try:
        listing = subset.of_listing(list_videos(data))
        samples = np.unique(np.linspace(0, len(listing.names) - 1, min(SAMPLED, len(listing.names))).astype(int))
        probed = [_probed(listing, int(sample), rate) for sample in samples]
    except (OSError, ValueError, ImportError):
        return None
    found = [sizes for sizes in probed if sizes is not None]
    if not found:
        return None
    side, seconds = np.median(np.array(found), axis=0)
    return FoundVideos(len(listing.names), int(side), float(seconds))


def _probed(listing: Listing, sample: int, rate: Any) -> tuple[int, float] | None:
    """Return a video's shorter side and length in seconds; None if it cannot be read."""
    path = os.fsencode(listing.path(sample))
    if not os.path.isdir(path) and isinstance(status_or_reason(path), str):
        return None
    facts = probe(path)
    if isinstance(facts, str):
        return None
    seconds = float((facts.end - facts.times[0]) * facts.tick)
    if facts.codec == FRAMES and isinstance(rate, int | float) and rate > 0:
        seconds *= float(1 / FRAMES_TICK) / rate
    part = None if listing.parts is None else listing.parts[sample]
    return min(facts.size), seconds if part is None else min(part[1] - part[0], seconds)
