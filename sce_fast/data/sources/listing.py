"""Listings: the names and labels that a source of images returns."""

import os
from dataclasses import dataclass
from pathlib import Path

# The formats that DALI's image decoder reads.
IMAGE_SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".jpe", ".png", ".bmp", ".tif", ".tiff", ".pnm", ".ppm", ".pgm", ".pbm", ".jp2", ".webp")
)


@dataclass(frozen=True)
class Listing:
    """Files in a fixed order. Names that are not UTF-8 hold their bytes as surrogates, as os.fsdecode returns them."""

    root: Path
    names: list[str]  # relative to root
    labels: list[int] | None
    classes: list[str]  # name of each label; empty without labels

    def paths(self) -> list[str]:
        return [os.path.join(self.root, name) for name in self.names]


def is_image_name(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES
