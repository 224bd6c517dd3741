"""Parts of a data set: a seeded share of each class, or the files and classes that a list names."""

import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from sce_fast.data.class_lists import CLASS_LISTS
from sce_fast.data.index import Index
from sce_fast.data.sources import Listing
from sce_fast.util.files import printable
from sce_fast.util.philox import Draw, sort_keys

AnyIndex = TypeVar("AnyIndex", bound=Index)


def subset(
    index: AnyIndex,
    *,
    share: float | None = None,
    per_class: int | None = None,
    classes: Path | None = None,
    files: Path | None = None,
    seed: int = 0,
) -> AnyIndex:
    """Return the index of some samples, in the order of the index; without any argument, of all.

    The random choice is a function of the seed and of the samples' numbers. A larger share holds a smaller one.

    Args:
        index: the samples; without labels, they count as one class.
        share: of each class, in (0, 1]; at least one sample of each.
        per_class: number of samples of each class, or all if a class has fewer.
        classes: list of class names, one a line, or the name of one of CLASS_LISTS. The classes left get the numbers
            from 0 on, in their order.
        files: list of file names, one a line, as the index has them or without their folders.
        seed: of the choice, in [0, 2³²).

    Raises:
        FileNotFoundError: a list does not exist.
        ValueError: an argument is out of range, both share and per_class are given, or a list names something that the
            index lacks, or a file name that is not unique.

    Example:
        >>> len(subset(index, share=0.1))
        128116
    """
    choice = {"share": share, "per_class": per_class, "classes": classes, "files": files, "seed": seed}
    samples, listing = chosen(index.listing, **choice)  # type: ignore[arg-type]
    return index if listing is index.listing else index.subset(samples, listing)


def chosen(
    listing: Listing,
    *,
    share: float | None = None,
    per_class: int | None = None,
    classes: Path | None = None,
    files: Path | None = None,
    seed: int = 0,
) -> tuple[NDArray[np.int64], Listing]:
    """Return the numbers of some samples of a listing, and the listing of these; see subset.

    Args:
        listing: the samples.
        share, per_class, classes, files, seed: see subset.

    Raises:
        FileNotFoundError, ValueError: as subset.
    """
    if share is not None and per_class is not None:
        raise ValueError(f"share={share}, per_class={per_class}: expected at most one of both")
    if share is not None and not 0 < share <= 1:
        raise ValueError(f"share={share}: expected a number in (0, 1]")
    if per_class is not None and per_class < 1:
        raise ValueError(f"per_class={per_class}: expected at least 1")
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed={seed}: expected 0 to 2**32 - 1")
    samples = np.arange(len(listing.names))
    if classes is not None:
        samples, listing = _of_classes(listing, Path(classes))
    if files is not None:
        some = _named(listing, Path(files))
        samples, listing = samples[some], listing.subset(some)
    if share is not None or per_class is not None:
        some = _drawn(listing, share, per_class, seed)
        samples, listing = samples[some], listing.subset(some)
    return samples, listing


def _drawn(listing: Listing, share: float | None, per_class: int | None, seed: int) -> NDArray[np.int64]:
    """Return the samples that a seeded order of each class puts first."""
    labels = np.zeros(len(listing.names), dtype=np.int64) if listing.labels is None else listing.labels
    keys = sort_keys(seed, 0, np.arange(len(labels)), Draw.SUBSET)
    drawn = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        count = per_class if share is None else max(1, round(share * len(members)))
        drawn.append(members[np.argsort(keys[members], kind="stable")][:count])
    return np.sort(np.concatenate([np.empty(0, dtype=np.int64), *drawn]))


def _of_classes(listing: Listing, path: Path) -> tuple[NDArray[np.int64], Listing]:
    wanted = set(CLASS_LISTS[str(path)] if str(path) in CLASS_LISTS else _lines(path))
    if listing.labels is None:
        why = f" ({listing.unlabelled})" if listing.unlabelled else ""
        raise ValueError(f"{listing.title} has no classes{why}, so {printable(path)} cannot choose among them")
    _require_known(sorted(wanted - set(listing.classes)), path, f"classes that {listing.title} lacks")
    kept = [name for name in listing.classes if name in wanted]
    number = np.full(len(listing.classes), -1, dtype=np.int32)
    number[[listing.classes.index(name) for name in kept]] = np.arange(len(kept))
    labels = number[listing.labels]
    samples = np.flatnonzero(labels >= 0)
    return samples, replace(listing.subset(samples), labels=labels[samples], classes=kept)


def _named(listing: Listing, path: Path) -> NDArray[np.int64]:
    """Return the samples that a list names, in their order."""
    samples, alone = defaultdict(list), defaultdict(list)
    for sample, name in enumerate(listing.names):
        samples[name].append(sample)
        alone[os.path.basename(name)].append(sample)
    found, unknown = set(), []
    for name in _lines(path):
        mine = samples.get(name) or (alone.get(name, []) if os.path.basename(name) == name else [])
        if not mine:
            unknown.append(name)
        elif len({listing.names[i] for i in mine}) > 1:
            both = " and ".join(printable(listing.names[i]) for i in mine[:2])
            raise ValueError(f"{printable(path)}: {printable(name)} may be {both}; expected names with their folders")
        found |= set(mine)
    _require_known(unknown, path, f"files that {listing.title} lacks")
    return np.array(sorted(found), dtype=np.int64)


def _lines(path: Path) -> list[str]:
    text = os.fsdecode(path.read_bytes())
    return [line for line in (line.strip("\r") for line in text.split("\n")) if line.strip()]


def _require_known(unknown: Sequence[str], path: Path, what: str) -> None:
    if unknown:
        more = f" and {len(unknown) - 10} more" if len(unknown) > 10 else ""
        raise ValueError(f"{printable(path)} names {what}: {', '.join(map(printable, unknown[:10]))}{more}")
