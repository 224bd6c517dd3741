"""What reading one large file gives: where its samples are, and their classes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from sce_fast.data.sources.packed import Packed
from sce_fast.util.files import printable


@dataclass(frozen=True)
class Scanned:
    """The samples of a file, or of several."""

    packed: Packed
    labels: NDArray[np.int32]  # (n,) numbers of classes, -1 for a sample without one
    classes: tuple[str, ...]
    faults: Mapping[str, str] = field(default_factory=dict)  # file of which a part or all cannot be read → reason
    ignored: Mapping[str, Mapping[str, int]] = field(default_factory=dict)  # file → ending → number of members left out

    def labelled(self) -> tuple[NDArray[np.int32] | None, list[str]]:
        """Return the labels and classes; None and no classes unless all samples have one of several classes."""
        if len(self.classes) < 2 or (self.labels < 0).any():
            return None, []
        return self.labels, list(self.classes)

    def describe_unlabelled(self) -> str:
        """Return one line that counts the samples without a class and names the first, if others have one.

        It is empty if all samples have a class, or none has.
        """
        unlabelled = np.flatnonzero(self.labels < 0)
        if not 0 < len(unlabelled) < len(self.labels):
            return ""
        are, first = "has" if len(unlabelled) == 1 else "have", printable(self.packed.names[int(unlabelled[0])])
        return f"{len(unlabelled)} of {len(self.labels)} images {are} no class, such as {first}"


def joined(parts: Sequence[Scanned]) -> Scanned:
    """Return the samples of all parts. If they have the same classes, these keep their order; otherwise it is sorted.

    Classes that are whole numbers are sorted by their value.
    """
    names = {part.classes for part in parts if part.classes}
    classes = next(iter(names)) if len(names) == 1 else tuple(_sorted({name for some in names for name in some}))
    number = {name: i for i, name in enumerate(classes)}
    labels = []
    for part in parts:
        numbers = np.array([*(number[name] for name in part.classes), -1], dtype=np.int32)
        labels.append(part.labels if part.classes == classes else numbers[part.labels])
    return Scanned(
        Packed.joined([part.packed for part in parts]),
        np.concatenate(labels),
        classes,
        {file: reason for part in parts for file, reason in part.faults.items()},
        {file: counts for part in parts for file, counts in part.ignored.items()},
    )


def numbered(class_names: Sequence[str | None]) -> tuple[NDArray[np.int32], tuple[str, ...]]:
    """Return the label of each sample, -1 for None, and the sorted classes."""
    classes = tuple(_sorted({name for name in class_names if name is not None}))
    number: dict[str | None, int] = {name: i for i, name in enumerate(classes)}
    return np.array([number.get(name, -1) for name in class_names], dtype=np.int32), classes


def _sorted(names: set[str]) -> list[str]:
    if all(name.removeprefix("-").isdecimal() for name in names):
        return sorted(names, key=int)
    return sorted(names)
