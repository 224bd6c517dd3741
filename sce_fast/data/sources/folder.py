"""Folders as a source of images."""

import os
from collections.abc import Iterator
from pathlib import Path

from sce_fast.data.sources.listing import Listing, is_image_name


def list_folder(root: Path) -> Listing:
    """Return the images of a flat folder, or of a folder with one subfolder for each class; see list_images."""
    entries = sorted(_visible(root), key=_sort_key)
    if any(_is_image(entry) for entry in entries):
        return Listing(root, list(_images_below(root)), labels=None, classes=[])
    names: list[str] = []
    labels: list[int] = []
    classes: list[str] = []
    for folder in (entry for entry in entries if entry.is_dir()):
        found = [os.path.join(folder.name, name) for name in _images_below(Path(folder.path))]
        if found:
            labels += [len(classes)] * len(found)
            classes.append(folder.name)
            names += found
    return Listing(root, names, labels, classes)


def _images_below(root: Path) -> Iterator[str]:
    """Yield the relative names of all images below a folder in sorted order, and visit each linked folder only once."""
    seen: set[str] = set()

    def walk(folder: str, prefix: str) -> Iterator[str]:
        real = os.path.realpath(folder)
        if real in seen:
            return
        seen.add(real)
        for entry in sorted(_visible(folder), key=_sort_key):
            name = os.path.join(prefix, entry.name)
            if entry.is_dir():
                yield from walk(entry.path, name)
            elif _is_image(entry):
                yield name

    return walk(str(root), "")


def _visible(folder: str | Path) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return [entry for entry in entries if not entry.name.startswith(".")]


def _is_image(entry: os.DirEntry[str]) -> bool:
    return is_image_name(entry.name) and not entry.is_dir()  # a broken link counts, so that it is reported as missing


def _sort_key(entry: os.DirEntry[str]) -> bytes:
    return os.fsencode(entry.name)  # bytes sort the same in every locale
