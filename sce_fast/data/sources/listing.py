"""Listings: the names and labels that a source of images returns, and what it leaves out."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from sce_fast.util.files import printable

# The formats that DALI's image decoder reads.
IMAGE_SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".jpe", ".png", ".bmp", ".tif", ".tiff", ".pnm", ".ppm", ".pgm", ".pbm", ".jp2", ".webp")
)
ENDINGS_SHOWN = 8


@dataclass(frozen=True)
class Listing:
    """Files in a fixed order. Names that are not UTF-8 hold their bytes as surrogates, as os.fsdecode returns them."""

    root: Path
    names: list[str]  # relative to root
    labels: list[int] | None
    classes: list[str]  # name of each label; empty without labels
    source: Path | None = None  # the list file, if there is one
    ignored: Mapping[str, int] = field(default_factory=dict)  # ending (in lower case) → number of files left out
    unreadable: Mapping[str, str] = field(default_factory=dict)  # folder or link that cannot be followed → reason

    @property
    def title(self) -> str:
        """Name of the folder or list file for messages."""
        return printable(self.source or self.root)

    def paths(self) -> list[str]:
        return [os.path.join(self.root, name) for name in self.names]

    def describe_ignored(self) -> str:
        """Return one line that counts the files left out by their endings; empty if there are none.

        Example:
            >>> Listing(Path("photos"), [], None, [], ignored={".gif": 20, "": 1}).describe_ignored()
            '21 files in photos are ignored (20 .gif, 1 without an ending)'
        """
        if not self.ignored:
            return ""
        by_count = sorted(self.ignored.items(), key=lambda item: (-item[1], item[0]))
        parts = [f"{count} {printable(ending) or 'without an ending'}" for ending, count in by_count[:ENDINGS_SHOWN]]
        if rest := sum(count for _, count in by_count[ENDINGS_SHOWN:]):
            parts.append(f"{rest} with other endings")
        total = sum(self.ignored.values())
        are = "file in {} is" if total == 1 else "files in {} are"
        return f"{total} {are.format(self.title)} ignored ({', '.join(parts)})"


def is_image_name(name: str) -> bool:
    return ending_of(name) in IMAGE_SUFFIXES


def ending_of(name: str) -> str:
    """Return the ending of a file name in lower case, with its dot; empty if there is none."""
    return os.path.splitext(name)[1].lower()
