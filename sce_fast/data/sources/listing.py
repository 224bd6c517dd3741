"""Listings: the names and labels that a source returns, and what it leaves out."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sce_fast.data.faults import MAX_BAD_SHARE, NAMES_SHOWN, describe_bad_files
from sce_fast.data.sources.names import Names
from sce_fast.data.sources.packed import WHOLE_PAGES, Packed, PackedNames
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
SLOW_SHARE = 8

Part = tuple[float, float] | None  # start and end in seconds; None is the whole video


@dataclass(frozen=True, eq=False)
class Listing:
    """Files in a fixed order. Names that are not UTF-8 hold their bytes as surrogates, as os.fsdecode returns them."""

    root: Path
    names: Names | PackedNames  # relative to root; of packed samples FILE!MEMBER or FILE!ROW
    labels: NDArray[np.int32] | None  # (n,)
    classes: list[str]  # name of each label; empty without labels
    source: Path | None = None  # the list file, if there is one
    ignored: Mapping[str, int] = field(default_factory=dict)  # ending (in lower case) → number of files left out
    unreadable: Mapping[str, str] = field(default_factory=dict)  # folder or link that cannot be followed → reason
    parts: list[Part] | None = None  # of videos; None if all are whole
    packed: Packed | None = None  # where the samples lie inside large files; None if each is a file of its own
    others: tuple[str, ...] = ()  # paths of the splits, and of files without a split, that are left out
    unlabelled: str = ""  # why there are no labels, if some samples have a class: Scanned.describe_unlabelled
    missing: tuple[str, ...] = ()  # files that a published split names, left out as they are not on the disk

    @property
    def title(self) -> str:
        """Name of the folder or list file for messages."""
        return printable(self.source or self.root)

    @property
    def file_names(self) -> Names:
        """The names, if they are not those of packed samples as their files have them."""
        assert isinstance(self.names, Names)
        return self.names

    def path(self, sample: int) -> str:
        return os.path.join(self.root, self.names[sample])

    def paths(self) -> Iterator[bytes]:
        """Yield the path of each sample."""
        root = os.path.join(os.fsencode(self.root), b"")
        return (name if name.startswith(b"/") else root + name for name in self.names.encoded())

    def entries(self) -> Names | PackedNames:
        """Return what identifies each sample: its name, and for a part of a video a tab, the start, a tab and the end.

        Example:
            >>> Listing(Path("films"), Names.of(["a.mp4"]), None, [], parts=[(1.5, 4.0)]).entries()[0]
            'a.mp4\\t1.5\\t4.0'
        """
        if self.parts is None:
            return self.names
        pairs = zip(self.names, self.parts, strict=True)
        return Names.of(name if part is None else f"{name}\t{part[0]!r}\t{part[1]!r}" for name, part in pairs)

    def subset(self, samples: Sequence[int] | NDArray[np.int64]) -> "Listing":
        """Return the listing of these samples, in this order."""
        rows = np.asarray(samples, dtype=np.int64)
        labels = None if self.labels is None else self.labels[rows]
        parts = None if self.parts is None else [self.parts[i] for i in rows.tolist()]
        packed = None if self.packed is None else self.packed.take(rows)
        if packed is not None and isinstance(self.names, PackedNames):
            names: Names | PackedNames = packed.names
        else:  # files, or packed samples as listed_as names them
            names = self.file_names.take(rows)
        return replace(self, names=names, labels=labels, parts=parts, packed=packed)

    def listed_as(self, entries: Sequence[str], rows: NDArray[np.int64]) -> "Listing":
        """Return a listing of these entries in this order, without labels.

        Args:
            rows: number of each entry in this listing, -1 if it is missing.
        """
        if self.packed is not None:
            return replace(self, names=Names.of(entries), labels=None, classes=[], packed=self.packed.take(rows))
        pairs = list(map(_name_and_part, entries))
        names, parts = Names.of(name for name, _ in pairs), [part for _, part in pairs]
        parted = any(part is not None for part in parts)
        return replace(self, names=names, labels=None, classes=[], parts=parts if parted else None)

    def require_few_lost(self) -> None:
        """Raise an error if damaged and missing shards have lost too many images; other listings pass.

        What such a shard has lost is estimated by the median number of images in a shard.

        Raises:
            RuntimeError: more than MAX_BAD_SHARE of the images are lost; the message counts and names the shards.
        """
        if self.packed is None or not self.unreadable:
            return
        of_files = np.bincount(self.packed.shard[self.packed.shard >= 0], minlength=len(self.packed.files))
        counts = {**dict.fromkeys(self.unreadable, 0), **dict(zip(self.packed.files, of_files.tolist(), strict=True))}
        usual = float(np.median(list(counts.values())))
        lost = sum(max(usual - counts[name], 0) for name in self.unreadable)
        if lost > MAX_BAD_SHARE * (lost + len(self.packed)):
            shards = {os.path.join(self.root, name): reason for name, reason in self.unreadable.items()}
            raise RuntimeError(
                f"more than {MAX_BAD_SHARE:.0%} of the images are lost with their shards: "
                f"{describe_bad_files(shards, len(counts))}"
            )

    def describe_ignored(self) -> str:
        """Return one line that counts the files left out by their endings; empty if there are none.

        Example:
            >>> Listing(Path("photos"), Names.of([]), None, [], ignored={".gif": 20, "": 1}).describe_ignored()
            '21 files in photos are ignored (20 .gif, 1 without an ending)'
        """
        if not self.ignored:
            return ""
        by_count = sorted(self.ignored.items(), key=lambda item: (-item[1], item[0]))
        parts = [f"{count} {printable(ending) or 'without an ending'}" for ending, count in by_count[:ENDINGS_SHOWN]]
        if rest := sum(count for _, count in by_count[ENDINGS_SHOWN:]):
            parts.append(f"{rest} with other endings")
        total = sum(self.ignored.values())
        kind = "file" if self.packed is None else "member"
        are = f"{kind} in {{}} is" if total == 1 else f"{kind}s in {{}} are"
        return f"{total} {are.format(self.title)} ignored ({', '.join(parts)})"

    def describe_large_pages(self) -> str:
        """Return a warning if whole pages are decompressed for each image; empty if not."""
        share = 1.0 if self.packed is None else self.packed.decompressed_share
        if self.packed is None or share < SLOW_SHARE or not set(np.unique(self.packed.form)) & WHOLE_PAGES:
            return ""
        return (
            f"Warning: {self.title} is compressed in large pages: each image costs the decompression of {share:.0f} "
            "times its size; write the tables anew without compression (docs/data.md)"
        )

    def describe_others(self) -> str:
        """Return one line that names the splits that are left out; empty if there are none."""
        if not self.others:
            return ""
        more = f" and {len(self.others) - NAMES_SHOWN} more" if len(self.others) > NAMES_SHOWN else ""
        return f"{self.title} has further splits, which are left out: {', '.join(self.others[:NAMES_SHOWN])}{more}"

    def describe_missing(self) -> str:
        """Return one line that counts the files that a split names and the disk lacks; empty if there are none.

        Example:
            >>> Listing(Path("films"), Names.of(["a.mp4"]), None, [], missing=("b.mp4",)).describe_missing()
            '1 of 2 files of films is missing and left out: b.mp4'
        """
        if not self.missing:
            return ""
        total, more = len(self.names) + len(self.missing), len(self.missing) - NAMES_SHOWN
        names = ", ".join(map(printable, self.missing[:NAMES_SHOWN])) + (f" and {more} more" if more > 0 else "")
        are = "is" if len(self.missing) == 1 else "are"
        return f"{len(self.missing)} of {total} files of {self.title} {are} missing and left out: {names}"


def _name_and_part(entry: str) -> tuple[str, Part]:
    name, *ends = entry.rsplit("\t", 2)
    if len(ends) < 2:  # a name of an image may hold a tab
        return entry, None
    try:
        return name, (float(ends[0]), float(ends[1]))
    except ValueError:
        return entry, None


def is_image_name(name: str) -> bool:
    return name[name.rfind(".", 1) :].lower() in IMAGE_SUFFIXES  # ending_of would take four times as long


def is_video_name(name: str) -> bool:
    return ending_of(name) in VIDEO_SUFFIXES


def ending_of(name: str) -> str:
    """Return the ending of a file name in lower case, with its dot; empty if there is none."""
    return os.path.splitext(name)[1].lower()
