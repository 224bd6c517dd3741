"""A labelled data set with the parts that its authors published."""

import dataclasses
import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from sce_fast.data.faults import NAMES_SHOWN, evaluation_refusal
from sce_fast.data.image.augment import EvaluationView
from sce_fast.data.index import ImageIndex, Index
from sce_fast.data.kinds import open_index
from sce_fast.data.sources import Listing, Names
from sce_fast.data.stamps import file_stamps
from sce_fast.util.files import printable, write_atomically

Part = Literal["train", "validation", "test"]
HOW_TO_LEAVE_OUT = (
    "To evaluate a published set without them, name them in a list and pass --leave-out LIST; the list that sce-fast "
    "scan --out writes will do"
)


@dataclass(frozen=True)
class ImageSet:
    """The files of a data set, their classes, and which part each belongs to."""

    root: Path
    names: Sequence[str]  # relative to root; of packed images FILE!MEMBER or FILE!ROW
    labels: NDArray[np.int64]  # (n,) class numbers, or (n, C): 1 for a class that is shown, -1 if not, 0 if difficult
    parts: list[Part]  # of each file
    classes: list[str]
    packed: ImageIndex | None = None  # the index of the same images, if they lie in larger files
    left_out: tuple[str, ...] = ()  # names of the images that `without` has taken out

    def rows(self, part: Part) -> NDArray[np.int64]:
        """Return the numbers of the files of a part."""
        return np.flatnonzero(np.array(self.parts) == part)

    def counts(self) -> dict[str, int]:
        """Return the number of files of each part."""
        found = Counter(self.parts)
        return {part: found[part] for part in ("train", "validation", "test") if found[part]}

    def without(self, images: AbstractSet[str]) -> "ImageSet":
        """Return the set without some images.

        Args:
            images: absolute paths, or names as the set has them; those that it lacks do not matter. See listed_images.
        """
        root = os.path.abspath(self.root)
        left_out = {i for i, name in enumerate(self.names) if name in images or os.path.join(root, name) in images}
        if not left_out:
            return self
        kept = [i for i in range(len(self.names)) if i not in left_out]
        return dataclasses.replace(
            self,
            names=[self.names[i] for i in kept],
            labels=self.labels[kept],
            parts=[self.parts[i] for i in kept],
            packed=None if self.packed is None else self.packed.subset(np.array(kept, dtype=np.int64)),
            left_out=tuple(self.names[i] for i in sorted(left_out)),
        )

    def missing(self) -> dict[str, str]:
        """Return path → reason for files that cannot be opened, and for packed images that cannot be read."""
        if self.packed is not None:
            return self.packed.bad_files()
        bad = file_stamps(self.root, Names.of(self.names))[1]
        return {os.path.join(self.root, self.names[i]): reason for i, reason in bad.items()}

    def contents(self) -> str:
        """Return a hash of the names, parts, labels and lengths in bytes of all images; see Index.contents."""
        packed = self.packed
        lengths = file_stamps(self.root, Names.of(self.names))[0][:, 1] if packed is None else packed.lengths
        digest = hashlib.sha256(self.labels.tobytes() + lengths.tobytes())
        for name, part in zip(self.names, self.parts, strict=True):
            digest.update(os.fsencode(name) + b"\0" + part.encode() + b"\0")
        return digest.hexdigest()[:16]

    def require_files(self) -> None:
        """Raise an error unless all files can be opened.

        Raises:
            ValueError: files are missing, empty or unreadable; the message counts and names them.
        """
        if missing := self.missing():
            raise ValueError(_refusal(missing, len(self.names)))

    def index(self, view: EvaluationView, lists: Path, *, threads: int = 2) -> Index:
        """Return the index of all files in their order, without labels.

        Args:
            view: of the evaluation.
            lists: new list file, by which headers are cached. An equal one is left as it is. Packed images need none.
            threads: number of threads that read headers.

        Raises:
            ValueError: as open_index, headers cannot be read, or a name does not fit in a line of a list.
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
        if bad := index.bad_files():
            raise ValueError(_refusal(bad, len(index)))
        listing = Listing(self.root, Names.of(self.names), None, [], source=lists)
        return dataclasses.replace(index, listing=listing)  # names relative to the data set's folder


def _refusal(bad: Mapping[str, str], total: int) -> str:
    return f"{evaluation_refusal(bad, total, 'images')}. {HOW_TO_LEAVE_OUT}"


def listed_images(path: Path | None) -> frozenset[str]:
    """Return the images that a list names, as ImageSet.without takes them; none without a list.

    A line is a path, or a name as a set has it. What follows a tab does not count.

    Raises:
        FileNotFoundError: the list does not exist.
    """
    names = [] if path is None else [line.partition("\t")[0] for line in lines(Path(path))]
    return frozenset([*names, *map(os.path.abspath, names)])


def require_left_out(path: Path | None, sets: Mapping[str, ImageSet]) -> None:
    """Raise an error if a list of images to leave out names none of some sets.

    Args:
        path: of the list; None passes.
        sets: name → set, after the images were taken out.

    Raises:
        ValueError: no set lacks an image; the message shows how a set names its images.
    """
    if path is None or any(images.left_out for images in sets.values()):
        return
    first = next(iter(sets.values()))
    raise ValueError(
        f"leave_out={printable(path)} names no image of {', '.join(sets)}: expected paths, or names such as "
        f"{printable(first.names[0])}"
    )


def describe_left_out(title: str, names: Sequence[str]) -> list[str]:
    """Return a line that counts and names the images that a data set was evaluated without; none if there are none.

    Example:
        >>> describe_left_out("pets", ["images/Sphynx_1.jpg"])
        ['1 image of pets is left out (--leave-out): images/Sphynx_1.jpg']
    """
    if not names:
        return []
    images, more = "image" if len(names) == 1 else "images", len(names) - NAMES_SHOWN
    shown = ", ".join(map(printable, names[:NAMES_SHOWN])) + (f" and {more} more" if more > 0 else "")
    are = "is" if len(names) == 1 else "are"
    return [f"{len(names)} {images} of {title} {are} left out (--leave-out): {shown}"]


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
