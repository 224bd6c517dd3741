"""Folders as a source of images or videos."""

import os
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from sce_fast.data.faults import LINK_LOOP, UNREADABLE, UNREADABLE_FOLDER, is_link_loop
from sce_fast.data.sources.frames import is_frame_folder
from sce_fast.data.sources.listing import Listing, ending_of


def list_folder(root: Path, is_wanted: Callable[[str], bool], *, frame_folders: bool = False) -> Listing:
    """Return the files of a flat folder, or of a folder with one subfolder for each class; see list_images.

    Args:
        root: the folder.
        is_wanted: whether a file with this name is listed. Other files are counted.
        frame_folders: list a folder of numbered images, too: it holds the frames of a video.

    Raises:
        OSError: the folder itself cannot be read; folders in it are only named.
    """
    entries = _visible(root)
    found = _Walk(is_wanted, frame_folders)
    if any(found.is_sample(entry) for entry in entries):
        found = _Walk(is_wanted, frame_folders)
        found.visit(str(root), "")
        return Listing(root, found.names, None, [], ignored=found.ignored, unreadable=found.unreadable)
    labels: list[int] = []
    classes: list[str] = []
    for entry in entries:
        before = len(found.names)
        found.seen.clear()  # a folder that several classes link to belongs to each of them
        found.visit_entry(entry, entry.name)
        if count := len(found.names) - before:
            labels += [len(classes)] * count
            classes.append(entry.name)
    return Listing(root, found.names, labels, classes, ignored=found.ignored, unreadable=found.unreadable)


@dataclass
class _Walk:
    """What is found below a folder, in sorted order; each linked folder is visited only once."""

    is_wanted: Callable[[str], bool]
    frame_folders: bool
    names: list[str] = field(default_factory=list)
    ignored: Counter[str] = field(default_factory=Counter)  # ending → number of files that are not wanted by name
    unreadable: dict[str, str] = field(default_factory=dict)  # folders and links → reason
    seen: set[str] = field(default_factory=set)  # real paths

    def visit(self, folder: str, name: str) -> None:
        real = os.path.realpath(folder)
        if real in self.seen:
            return
        self.seen.add(real)
        try:
            entries = _visible(folder)
        except OSError:
            self.unreadable[name] = UNREADABLE_FOLDER
            return
        if name and self.frame_folders and is_frame_folder(entry.name for entry in entries):
            self.names.append(name)
            return
        for entry in entries:
            self.visit_entry(entry, os.path.join(name, entry.name))

    def visit_entry(self, entry: os.DirEntry[str], name: str) -> None:
        if self.is_folder(entry, name):
            self.visit(entry.path, name)
        elif self.is_wanted(entry.name):  # a broken link counts, so that it is reported as missing
            self.names.append(name)
        elif name not in self.unreadable:
            self.ignored[ending_of(entry.name)] += 1

    def is_sample(self, entry: os.DirEntry[str]) -> bool:
        """Return whether an entry is listed itself, and not only what is below it."""
        if not self.is_folder(entry, entry.name):
            return self.is_wanted(entry.name)
        with suppress(OSError):
            return self.frame_folders and is_frame_folder(os.listdir(entry.path))
        return False

    def is_folder(self, entry: os.DirEntry[str], name: str) -> bool:
        """Return whether an entry is a folder or a link to one. A link that cannot be followed is neither."""
        try:
            return entry.is_dir()
        except OSError as error:
            if not self.is_wanted(entry.name):  # with a wanted name it is listed, and found to be bad like any file
                self.unreadable[name] = LINK_LOOP if is_link_loop(error) else UNREADABLE
            return False


def _visible(folder: str | Path) -> list[os.DirEntry[str]]:
    """Return the entries that are not hidden, sorted by their bytes, which sort the same in every locale."""
    with os.scandir(folder) as entries:
        visible = [entry for entry in entries if not entry.name.startswith(".")]
    return sorted(visible, key=lambda entry: os.fsencode(entry.name))
