"""Backbones of clips in exported files, and videos whose class a backbone can tell."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import av
import numpy as np
import torch

from sce_fast.data.video.augment import ClipEvaluationView
from sce_fast.data.video.clips import ClipSampling
from sce_fast.export import METADATA, Description
from sce_fast.export.source import _clips_of
from sce_fast.util.files import save_tensors

SAMPLING = ClipSampling(frames=2, seconds=0.2)


def write_clip_backbone(path: Path, *, size: int = 32) -> Path:
    """Write a small R3D-18 with random weights for clips of two frames in 0.2 seconds; return the path."""
    description = Description(
        backbone="r3d18",
        width=4,
        small_input=False,
        mean=(0.45,) * 3,
        std=(0.225,) * 3,
        resize=size,
        crop=size,
        momentum=False,
        step=0,
        clips=_clips_of(ClipEvaluationView(resize=size, crop=size, sampling=SAMPLING)),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = description.build()
    save_tensors(path, dict(network.state_dict()), {METADATA: json.dumps(asdict(description))})
    return path


def write_colour(
    path: Path, colour: tuple[int, int, int], *, frames: int = 12, size: tuple[int, int] = (32, 48)
) -> Path:
    """Write a video of one colour (Motion JPEG, 25 frames a second) and return the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=25, options={"q": "2"})
        stream.height, stream.width, stream.pix_fmt = *size, "yuvj420p"
        for _ in range(frames):
            pixels = np.full((*size, 3), colour, dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return path


COLOURS: Mapping[str, tuple[int, int, int]] = {"red": (200, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 200)}


def write_colours(root: Path, *, videos: int, first: int = 0) -> Path:
    """Write class folders of videos of one colour each, in slightly different shades; return the folder."""
    for name, colour in COLOURS.items():
        for i in range(first, first + videos):
            red, green, blue = (channel + 3 * i for channel in colour)
            write_colour(root / name / f"{i}.avi", (red, green, blue))
    return root
