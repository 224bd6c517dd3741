"""Folders as a source of images or videos."""

import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sce_fast.data.faults import LINK_LOOP, UNREADABLE, UNREADABLE_FOLDER, is_link_loop
from sce_fast.data.sources.frames import is_frame_folder
from sce_fast.data.sources.listing import Listing, ending_of
from sce_fast.data.sources.names import Names, NamesBuilder


def list_folder(root: Path, is_wanted: Callable[[str], bool], *, frame_folders: bool = False) -> Listing:
    """Return the files of a flat folder, or of a folder with one subfolder for each class; see list_images.

    Args:
        root: the folder.
        is_wanted: whether a file with this name is listed. Other files are counted.
        frame_folders: list a folder of numbered images, too: it holds the frames of a video.

    Raises:
        OSError: the folder itself cannot be read; folders in it are only named.
    """
    folder = _visible(os.fsencode(root))
    walk = _Walk(is_wanted, frame_folders)
    if any(walk.is_sample(folder, name) for name in folder.names):
        walk = _Walk(is_wanted, frame_folders, seen={os.path.realpath(os.fsencode(root))})
        names = Names.of(walk.samples(folder, b""))
        return Listing(root, names, None, [], ignored=walk.ignored, unreadable=walk.unreadable)
    found, count_of = NamesBuilder(), {}
    for name in folder.names:
        walk.seen.clear()  # a folder that several classes link to belongs to each of them
        if count := found.extend(walk.samples(folder._replace(names=[name]), b"")):
            count_of[os.fsdecode(name)] = count
    labels = np.repeat(np.arange(len(count_of), dtype=np.int32), list(count_of.values()))
    return Listing(root, found.names(), labels, list(count_of), ignored=walk.ignored, unreadable=walk.unreadable)


class _Folder(NamedTuple):
    """The entries of a folder that are not hidden."""

    names: list[bytes]  # sorted by their bytes, which sort the same in every locale
    others: dict[bytes, os.DirEntry[bytes]]  # those that are no plain files; objects for all would need much memory


@dataclass
class _Walk:
    """Finds samples below a folder in sorted order; each linked folder is visited only once."""

    is_wanted: Callable[[str], bool]
    frame_folders: bool
    ignored: Counter[str] = field(default_factory=Counter)  # ending → number of files that are not wanted by name
    unreadable: dict[str, str] = field(default_factory=dict)  # folders and links → reason
    seen: set[bytes] = field(default_factory=set)  # real paths

    def samples(self, folder: _Folder, inside: bytes) -> Iterator[bytes]:
        """Yield the name of each sample in a folder and below; `inside` is the name of the folder."""
        before = os.path.join(inside, b"") if inside else b""
        remaining = folder.names[::-1]
        folder.names.clear()  # each name is freed when it has been yielded; a folder may hold millions
        while remaining:
            entry_name = remaining.pop()
            name = before + entry_name
            other = folder.others.get(entry_name)
            if other is not None and self.is_folder(other, name):
                yield from self.visit(other.path, name)
            elif self.is_wanted(os.fsdecode(entry_name)):  # a broken link counts, so that it is reported as missing
                yield name
            elif os.fsdecode(name) not in self.unreadable:
                self.ignored[ending_of(os.fsdecode(entry_name))] += 1

    def visit(self, path: bytes, name: bytes) -> Iterator[bytes]:
        real = os.path.realpath(path)
        if real in self.seen:
            return
        self.seen.add(real)
        try:
            folder = _visible(path)
        except OSError:
            self.unreadable[os.fsdecode(name)] = UNREADABLE_FOLDER
            return
        if self.frame_folders and is_frame_folder(map(os.fsdecode, folder.names)):
            yield name
        else:
            yield from self.samples(folder, name)

    def is_sample(self, folder: _Folder, name: bytes) -> bool:
        """Return whether an entry is listed itself, and not only what is below it."""
        other = folder.others.get(name)
        if other is None or not self.is_folder(other, name):
            return self.is_wanted(os.fsdecode(name))
        with suppress(OSError):
            return self.frame_folders and is_frame_folder(map(os.fsdecode, _visible(other.path).names))
        return False

    def is_folder(self, entry: os.DirEntry[bytes], name: bytes) -> bool:
        """Return whether an entry is a folder or a link to one. A link that cannot be followed is neither."""
        try:
            return entry.is_dir()
        except OSError as error:
            if not self.is_wanted(os.fsdecode(entry.name)):  # with a wanted name, it is found to be bad like any file
                self.unreadable[os.fsdecode(name)] = LINK_LOOP if is_link_loop(error) else UNREADABLE
            return False


def _visible(path: bytes) -> _Folder:
    names, others = [], {}
    with os.scandir(path) as entries:
        for entry in entries:
            if not entry.name.startswith(b"."):
                names.append(entry.name)
                if not entry.is_file(follow_symlinks=False):
                    others[entry.name] = entry
    names.sort()
    return _Folder(names, others)
