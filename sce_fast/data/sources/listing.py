"""Listings: the names and labels that a source returns, and what it leaves out."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from sce_fast.util.files import printable

# The formats that DALI's image decoder reads.
IMAGE_SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".jpe", ".png", ".bmp", ".tif", ".tiff", ".pnm", ".ppm", ".pgm", ".pbm", ".jp2", ".webp")
)
VIDEO_SUFFIXES = frozenset(
    (".mp4", ".m4v", ".mov", ".3gp", ".webm", ".mkv", ".avi", ".mpg", ".mpeg", ".vob", ".ts", ".mts", ".m2ts", ".flv",
     ".wmv", ".asf", ".ogv")
)  # fmt: skip
ENDINGS_SHOWN = 8

Part = tuple[float, float] | None  # start and end in seconds; None is the whole video


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
    parts: list[Part] | None = None  # of videos; None if all are whole

    @property
    def title(self) -> str:
        """Name of the folder or list file for messages."""
        return printable(self.source or self.root)

    def paths(self) -> list[str]:
        return [os.path.join(self.root, name) for name in self.names]

    def entries(self) -> list[str]:
        """Return what identifies each sample: its name, and for a part of a video a tab, the start, a tab and the end.

        Example:
            >>> Listing(Path("films"), ["a.mp4"], None, [], parts=[(1.5, 4.0)]).entries()
            ['a.mp4\\t1.5\\t4.0']
        """
        if self.parts is None:
            return self.names
        pairs = zip(self.names, self.parts, strict=True)
        return [name if part is None else f"{name}\t{part[0]!r}\t{part[1]!r}" for name, part in pairs]

    def subset(self, samples: Sequence[int]) -> "Listing":
        """Return the listing of these samples, in this order."""
        names = [self.names[i] for i in samples]
        labels = None if self.labels is None else [self.labels[i] for i in samples]
        parts = None if self.parts is None else [self.parts[i] for i in samples]
        return replace(self, names=names, labels=labels, parts=parts)

    def listed_as(self, entries: list[str]) -> "Listing":
        """Return a listing of these entries in this order, without labels."""
        names, parts = zip(*map(_name_and_part, entries), strict=True) if entries else ((), ())
        parted = any(part is not None for part in parts)
        return replace(self, names=list(names), labels=None, classes=[], parts=list(parts) if parted else None)

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


def _name_and_part(entry: str) -> tuple[str, Part]:
    name, *ends = entry.rsplit("\t", 2)
    if len(ends) < 2:  # a name of an image may hold a tab
        return entry, None
    try:
        return name, (float(ends[0]), float(ends[1]))
    except ValueError:
        return entry, None


def is_image_name(name: str) -> bool:
    return ending_of(name) in IMAGE_SUFFIXES


def is_video_name(name: str) -> bool:
    return ending_of(name) in VIDEO_SUFFIXES


def ending_of(name: str) -> str:
    """Return the ending of a file name in lower case, with its dot; empty if there is none."""
    return os.path.splitext(name)[1].lower()
