"""Fixtures of the tests of loaders, graphs and evaluations of videos."""

from pathlib import Path

import numpy as np
import pytest

from helpers.videos import write_video
from sce_fast.data.video.index import index_videos

FRAMES = 24
# Decoded ahead of time: h264, hevc, mpeg4. Decoded by DALI: vp8, vp9, mjpeg.
MIXED = ("h264", "vp9", "mpeg4", "vp8", "hevc", "mjpeg", "h264", "vp9")


@pytest.fixture(scope="session")
def mixed_folder(tmp_path_factory) -> Path:
    """Write eight videos of different codecs, sizes and rates, one of them with a variable rate."""
    root = tmp_path_factory.mktemp("mixed")
    times = np.cumsum(np.random.default_rng(0).integers(20, 60, FRAMES)).tolist()
    for i, codec in enumerate(MIXED):
        size = (96, 128) if i % 3 else (128, 96)
        write_video(root / f"{i:02d}", codec, frames=FRAMES, size=size, seed=i, times=times if i == 7 else None)
    return root


@pytest.fixture
def mixed(mixed_folder):
    return index_videos(mixed_folder)
