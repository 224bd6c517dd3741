"""List files as a source of images."""

import codecs
import io
import sys
from array import array
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sce_fast.data.sources.listing import Listing
from sce_fast.data.sources.names import Names
from sce_fast.util.files import printable


def list_file(path: Path) -> Listing:
    """Read a list file.

    A line names an image, relative to the list's folder or absolute, optionally followed by a tab and a class. Empty
    lines and lines that begin with # are skipped. Classes are numbered in sorted order.

    Raises:
        ValueError: the file is not text, or only some lines have a class.
    """
    classes = ClassNumbers()
    names = Names.of(_names(path, classes))
    labels, class_names = classes.sorted()
    return Listing(path.parent, names, labels, class_names, source=path)


def _names(path: Path, classes: "ClassNumbers") -> Iterator[str]:
    """Yield the name on each line, and note its class."""
    for i, (number, line) in enumerate(lines_of(path, "images")):
        name, tab, class_name = line.partition("\t")
        if tab:
            classes.append(class_name.strip())
        if len(classes) not in (0, i + 1):
            raise ValueError(f"{printable(path)}, line {number}: expected a tab and a class on every line or on none")
        yield name.strip()


def lines_of(path: Path, kind: str) -> Iterator[tuple[int, str]]:
    """Yield number and text of the lines of a list file that are neither empty nor begin with #.

    Raises:
        ValueError: the file is not text.
    """
    encoding, errors = sys.getfilesystemencoding(), sys.getfilesystemencodeerrors()
    with open(path, "rb") as file:
        start = file.peek()
        if start.startswith(codecs.BOM_UTF8):
            file.read(len(codecs.BOM_UTF8))
        # The first bytes are looked at before any line, since those of other files make no sense.
        is_text = b"\0" not in start
        for number, line in enumerate(io.TextIOWrapper(file, encoding, errors), start=1):
            if not is_text or "\0" in line:
                raise ValueError(f"{printable(path)} is neither a folder nor a text file that lists {kind}")
            if line.strip() and not line.startswith("#"):
                yield number, line.removesuffix("\n")


class ClassNumbers:
    """The classes of samples, each of which is noted as its number in the order of their appearance."""

    def __init__(self, names: Iterable[str] = ()) -> None:
        self._numbers: dict[str, int] = {}
        self._found = array("i")
        for name in names:
            self.append(name)

    def __len__(self) -> int:
        return len(self._found)

    def append(self, name: str) -> None:
        self._found.append(self._numbers.setdefault(name, len(self._numbers)))

    def sorted(self, key: Callable[[str], Any] | None = None) -> tuple[NDArray[np.int32] | None, list[str]]:
        """Return the label of each sample, or None without samples, and the sorted classes."""
        if not self._found:
            return None, []
        classes = sorted(self._numbers, key=key)
        label_of = {name: label for label, name in enumerate(classes)}
        labels = np.array([label_of[name] for name in self._numbers], dtype=np.int32)
        return labels[np.frombuffer(self._found, dtype=np.int32)], classes
