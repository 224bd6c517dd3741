"""A labelled data set with the parts that its authors published."""

import dataclasses
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from sce_fast.data.faults import evaluation_refusal
from sce_fast.data.image.augment import EvaluationView
from sce_fast.data.index import ImageIndex, Index, file_stamps
from sce_fast.data.kinds import open_index
from sce_fast.data.sources import Listing
from sce_fast.util.files import printable, write_atomically

Part = Literal["train", "validation", "test"]


@dataclass(frozen=True)
class ImageSet:
    """The files of a data set, their classes, and which part each belongs to."""

    root: Path
    names: Sequence[str]  # relative to root; of packed images FILE!MEMBER or FILE!ROW
    labels: NDArray[np.int64]  # (n,) class numbers, or (n, C): 1 for a class that is shown, -1 if not, 0 if difficult
    parts: list[Part]  # of each file
    classes: list[str]
    packed: ImageIndex | None = None  # the index of the same images, if they lie in larger files

    def rows(self, part: Part) -> NDArray[np.int64]:
        """Return the numbers of the files of a part."""
        return np.flatnonzero(np.array(self.parts) == part)

    def counts(self) -> dict[str, int]:
        """Return the number of files of each part."""
        found = Counter(self.parts)
        return {part: found[part] for part in ("train", "validation", "test") if found[part]}

    def missing(self) -> dict[str, str]:
        """Return path → reason for files that cannot be opened, and for packed images that cannot be read."""
        if self.packed is not None:
            return self.packed.bad_files()
        paths = [os.fsencode(os.path.join(self.root, name)) for name in self.names]
        return {os.fsdecode(paths[i]): reason for i, reason in file_stamps(paths)[1].items()}

    def require_files(self) -> None:
        """Raise an error unless all files can be opened.

        Raises:
            ValueError: files are missing, empty or unreadable; the message counts and names them.
        """
        if missing := self.missing():
            raise ValueError(evaluation_refusal(missing, len(self.names), "images"))

    def index(self, view: EvaluationView, lists: Path, *, threads: int = 2) -> Index:
        """Return the index of all files in their order, without labels.

        Args:
            view: of the evaluation.
            lists: new list file, by which headers are cached. An equal one is left as it is. Packed images need none.
            threads: number of threads that read headers.

        Raises:
            ValueError: as open_index, or a name does not fit in a line of a list.
        """
        if self.packed is not None:
            listing = dataclasses.replace(self.packed.listing, labels=None, classes=[])
            return dataclasses.replace(self.packed, listing=listing)
        if odd := [name for name in self.names if name != name.strip() or set(name) & set("\t\n\r")]:
            raise ValueError(f"{printable(self.root)}: {printable(odd[0])} has a tab, a newline or spaces at an end")
        content = b"".join(os.fsencode(os.path.join(os.path.abspath(self.root), name)) + b"\n" for name in self.names)
        if not lists.exists() or lists.read_bytes() != content:
            lists.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(lists, content)
        index = open_index(lists, view, threads=threads)
        listing = Listing(self.root, self.names, None, [], source=lists)
        return dataclasses.replace(index, listing=listing)  # names relative to the data set's folder


def image_set(root: Path, files: Iterable[tuple[Part, str, str]], *, classes: Sequence[str] | None = None) -> ImageSet:
    """Return the set of files (part, name, class); classes are numbered in sorted order unless they are given.

    Raises:
        ValueError: there are no files, or a class is not among the given ones.
    """
    entries = list(files)
    if not entries:
        raise ValueError(f"{printable(root)}: its lists name no files")
    class_names = [entry[2] for entry in entries]
    classes = sorted(set(class_names)) if classes is None else list(classes)
    number = {name: i for i, name in enumerate(classes)}
    unknown = sorted(set(class_names) - set(classes))
    if unknown:
        raise ValueError(f"{printable(root)}: unknown class {printable(unknown[0])}: expected one of its class names")
    labels = np.array([number[name] for name in class_names], dtype=np.int64)
    return ImageSet(root, [entry[1] for entry in entries], labels, [entry[0] for entry in entries], classes)


def found(root: Path, *candidates: str, what: str) -> Path:
    """Return the first of some files or folders below a folder that exists.

    Raises:
        FileNotFoundError: none exists; the message names them and what they hold.
    """
    for name in candidates:
        if (root / name).exists():
            return root / name
    raise FileNotFoundError(f"{printable(root)} has no {' or '.join(candidates)} ({what})")


def lines(path: Path) -> list[str]:
    """Return the lines of a list that are neither empty nor begin with #, without surrounding spaces.

    Raises:
        FileNotFoundError: the list does not exist.
    """
    if not path.exists():
        raise FileNotFoundError(f"{printable(path)} does not exist: expected a list of images")
    stripped = (os.fsdecode(line).strip() for line in path.read_bytes().splitlines())
    return [line for line in stripped if line and not line.startswith("#")]
