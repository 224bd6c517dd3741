"""List files as a source of images."""

import codecs
import os
from collections.abc import Iterator
from pathlib import Path

from sce_fast.data.sources.listing import Listing
from sce_fast.util.files import printable


def list_file(path: Path) -> Listing:
    """Read a list file.

    A line names an image, relative to the list's folder or absolute, optionally followed by a tab and a class. Empty
    lines and lines that begin with # are skipped. Classes are numbered in sorted order.

    Raises:
        ValueError: the file is not text, or only some lines have a class.
    """
    names: list[str] = []
    class_names: list[str] = []
    for number, line in lines_of(path, "images"):
        name, tab, class_name = line.partition("\t")
        if bool(tab) != bool(class_names) and names:
            raise ValueError(f"{printable(path)}, line {number}: expected a tab and a class on every line or on none")
        names.append(name.strip())
        if tab:
            class_names.append(class_name.strip())
    labels, classes = numbered_classes(class_names)
    return Listing(path.parent, names, labels, classes, source=path)


def lines_of(path: Path, kind: str) -> Iterator[tuple[int, str]]:
    """Yield number and text of the lines of a list file that are neither empty nor begin with #.

    Raises:
        ValueError: the file is not text.
    """
    content = path.read_bytes().removeprefix(codecs.BOM_UTF8)
    if b"\0" in content:
        raise ValueError(f"{printable(path)} is neither a folder nor a text file that lists {kind}")
    for number, line in enumerate(content.splitlines(), start=1):
        if line.strip() and not line.startswith(b"#"):
            yield number, os.fsdecode(line)


def numbered_classes(class_names: list[str]) -> tuple[list[int] | None, list[str]]:
    """Return the label of each sample, or None without classes, and the sorted classes."""
    classes = sorted(set(class_names))
    label_of = {name: label for label, name in enumerate(classes)}
    return [label_of[name] for name in class_names] or None, classes
