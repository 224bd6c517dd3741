"""Which files of a path hold packed samples: tar shards, Parquet tables, CIFAR and STL-10, and their splits."""

import glob
import itertools
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sce_fast.data.faults import MISSING
from sce_fast.data.sources.binaries import binary_splits, scan_binary
from sce_fast.data.sources.folder import list_folder
from sce_fast.data.sources.listing import ending_of, is_image_name
from sce_fast.data.sources.parquet import scan_parquet
from sce_fast.data.sources.scanned import Scanned
from sce_fast.data.sources.tar import scan_tar
from sce_fast.util.files import printable

TAR, PARQUET = ".tar", ".parquet"
COMPRESSED_TARS = (".tar.gz", ".tgz", ".tar.xz", ".tar.bz2", ".tar.zst")
SPLITS = {
    "train": frozenset(("train", "training")),
    "validation": frozenset(("validation", "valid", "val", "dev")),
    "test": frozenset(("test", "testing", "eval", "evaluation")),
}
_BRACES = re.compile(r"\{([^{}]*)\}")


@dataclass(frozen=True)
class Shards:
    """The files that hold the samples of a path."""

    root: Path
    names: list[str]  # relative to root
    source: Path | None = None  # what the user has named, unless it is the root
    missing: Mapping[str, str] = field(default_factory=dict)  # file that the path names → reason
    others: tuple[str, ...] = ()  # paths of the splits, and of files without a split, that are left out


def find_shards(path: Path) -> Shards | None:
    """Return the files of packed samples that a path names; None if it names images, or nothing.

    The path is such a file, a folder of them, or a pattern of their names with *, ?, [0-9], {00..99} or {a,b}. A folder
    with several splits gives that for training, and the paths of the others and of files that belong to no split.

    Raises:
        ValueError: the path is a compressed tar file, or a folder holds splits but none for training, or both tar
            files and tables.
    """
    if path.is_dir():
        return _in_folder(path)
    if path.exists():
        if str(path).lower().endswith(COMPRESSED_TARS):
            raise ValueError(
                f"{printable(path)} is compressed, so its images cannot be read one by one: unpack it once"
            )
        if is_packed_name(path.name) or any(path.name in files for files in binary_splits(path.parent).values()):
            return Shards(path.parent, [path.name], source=path)
        return None
    return _matching(path)


def scan_file(root: Path, name: str, stamp: tuple[int, int]) -> Scanned:
    """Return the samples of one file.

    Raises:
        ValueError: it holds no images, or stores them in an unusual way.
        ImportError: it is a Parquet table, and pyarrow is not installed.
    """
    scan = {TAR: scan_tar, PARQUET: scan_parquet}.get(ending_of(name), scan_binary)
    return scan(root / name, name, stamp)


def is_packed_name(name: str) -> bool:
    return ending_of(name) in (TAR, PARQUET)


class _ImageFoundError(Exception):
    """Raised at the first image of a folder."""


def _is_packed_and_not_image(name: str) -> bool:
    if is_image_name(name):
        raise _ImageFoundError
    return is_packed_name(name)


def packed_splits(folder: Path) -> dict[str, list[str]]:
    """Return the files of each split of a folder of packed samples, relative to it; nothing for other folders.

    Splits are "train", "validation", "test", "unlabeled" of STL-10, and "" for files that belong to none.

    Raises:
        ValueError: the folder holds both tar files and tables.
    """
    below, has_images = [], False
    with os.scandir(folder) as entries:  # tells folders from files without asking for their status
        for entry in entries:
            if entry.name[0] != "." and _is_folder(entry):
                below.append(Path(entry.path))
            elif not has_images:
                has_images = entry.name[0] != "." and is_image_name(entry.name)
    for inner in [folder, *sorted(below)]:
        if splits := binary_splits(inner):
            inside = "" if inner == folder else inner.name
            return {split: [os.path.join(inside, name) for name in files] for split, files in splits.items()}
    if has_images:
        return {}
    try:
        names = list(list_folder(folder, _is_packed_and_not_image).names)
    except _ImageFoundError:  # most folders of images are known by their first file
        return {}
    tars = [name for name in names if ending_of(name) == TAR]
    if 0 < len(tars) < len(names):
        raise ValueError(
            f"{printable(folder)} holds both tar files and Parquet tables; expected one kind: name a pattern, such as "
            f"'{_pattern(folder, tars)}'"
        )
    return _by_split(names)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _in_folder(path: Path) -> Shards | None:
    splits = packed_splits(path)
    return _of_splits(path, splits) if splits else None


def _by_split(names: Sequence[str]) -> dict[str, list[str]]:
    """Return the files of each split, by the words in their names and folders, as Hugging Face's datasets tell them."""
    found: dict[str, list[str]] = {}
    for name in names:
        words = set(re.split(r"[^a-z]+", os.path.splitext(name)[0].lower()))
        split = next((split for split, its_words in SPLITS.items() if words & its_words), "")
        found.setdefault(split, []).append(name)
    if "" in found and len(found) > 1 and "train" not in found:
        found["train"] = found.pop("")
    return found


def _of_splits(root: Path, splits: Mapping[str, list[str]]) -> Shards:
    patterns = {split: _pattern(root, files) for split, files in splits.items() if split}
    if len(splits) == 1:
        return Shards(root, next(iter(splits.values())))
    first = next((split for split in ("train", "unlabeled") if split in splits and "unlabeled" not in splits), None)
    chosen = first or ("unlabeled" if "unlabeled" in splits else None)
    if chosen is None:
        raise ValueError(f"{printable(root)} holds several splits; expected one of {', '.join(patterns.values())}")
    others = [pattern for split, pattern in patterns.items() if split != chosen]
    return Shards(root, splits[chosen], others=(*others, *_patterns(root, splits.get("", []))))


def _pattern(root: Path, names: Sequence[str]) -> str:
    """Return a path that names these files and is short."""
    return min(_patterns(root, names), key=len)


def _patterns(root: Path, names: Sequence[str]) -> list[str]:
    """Return paths that name these files, with * in place of numbers."""
    if len(names) == 1:
        return [printable(root / names[0])]
    return [printable(root / pattern) for pattern in dict.fromkeys(re.sub(r"\d+", "*", name) for name in names)]


def _matching(path: Path) -> Shards | None:
    """Return the files that a pattern names; those that a list in braces names may be missing."""
    text = str(path)
    if not set(text) & set("*?[{"):
        return None
    steps = Path(text).parts
    plain = list(itertools.takewhile(lambda step: not set(step) & set("*?[{"), steps))
    root = Path(*plain) if plain else Path()
    names: dict[str, None] = {}
    missing: dict[str, str] = {}
    for pattern in _expanded(os.path.join(*steps[len(plain) :])):
        found = sorted(glob.glob(pattern, root_dir=root, recursive=True))
        if not found and not set(pattern) & set("*?["):
            missing[pattern] = MISSING
        names |= dict.fromkeys(name for name in found if (root / name).is_file())
    if not names:
        return None
    return Shards(root, list(names), source=path, missing=missing)


def _expanded(text: str) -> list[str]:
    """Return the names that {000..146} and {a,b} stand for.

    Example:
        >>> _expanded("a-{08..10}.tar")
        ['a-08.tar', 'a-09.tar', 'a-10.tar']
    """
    found = _BRACES.search(text)
    if found is None:
        return [text]
    ends = re.fullmatch(r"(\d+)\.\.(\d+)", found[1])
    choices = found[1].split(",")
    if ends:
        choices = [str(i).zfill(len(ends[1])) for i in range(int(ends[1]), int(ends[2]) + 1)]
    return [name for choice in choices for name in _expanded(text[: found.start()] + choice + text[found.end() :])]
