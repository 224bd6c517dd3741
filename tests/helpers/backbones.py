"""Untrained backbones in exported files."""

import json
from dataclasses import asdict
from pathlib import Path

import torch

from sce_fast.export import METADATA, Description
from sce_fast.util.files import save_tensors


def write_backbone(path: Path, *, crop: int = 32, resize: int = 32) -> Path:
    """Write a small ResNet-18 with random weights for images of 32 pixels and return the path."""
    description = Description(
        backbone="resnet18",
        width=8,
        small_input=True,
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
        resize=resize,
        crop=crop,
        momentum=False,
        step=0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = description.build()
    save_tensors(path, dict(network.state_dict()), {METADATA: json.dumps(asdict(description))})
    return path
