"""Images or videos that are in the train set and in the test set: their accuracy is not that of unseen ones."""

import filecmp
import os
from collections import defaultdict
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from sce_fast.data.image.files import ImageFiles
from sce_fast.data.index import Index
from sce_fast.data.sources import Part
from sce_fast.evaluate.features import FeatureFile

SAME = 1e-4  # largest distance of two features of one image, relative to their norm: batches round differently


def shared_samples(train: Index, test: Index) -> int:
    """Return how many test samples are train samples too: the same file, or a copy under the same file name.

    Copies under other names are not found: that would take reading all files. Different parts of one video are
    different samples.

    Raises:
        FileNotFoundError: a file does not exist.
    """
    places: set[tuple[int, ...]] = set()
    named: defaultdict[tuple[str, int, Part], list[int]] = defaultdict(list)
    for i, (sample, part) in enumerate(zip(_samples(train), _parts(train), strict=True)):
        places.add((*sample.place, hash(part)))
        named[sample.name, sample.length, part].append(i)
    shared = 0
    for i, (sample, part) in enumerate(zip(_samples(test), _parts(test), strict=True)):
        alike = named.get((sample.name, sample.length, part), [])
        is_same = (*sample.place, hash(part)) in places
        shared += is_same or any(_are_equal(test, i, train, other) for other in alike)
    return shared


class _Sample(NamedTuple):
    place: tuple[int, int, int]  # device, number of the file, and where the sample begins in it
    name: str
    length: int


def _samples(index: Index) -> Iterator[_Sample]:
    packed = index.listing.packed
    if packed is None:
        for path in index.listing.paths():
            status = os.stat(path)
            name = os.path.basename(os.fsdecode(path))
            yield _Sample((status.st_dev, status.st_ino, 0), name, status.st_size)
        return
    found = [os.stat(os.path.join(index.listing.root, file)) for file in packed.files]
    columns = (packed.shard, packed.offset, packed.inner_start, packed.sizes)
    for i, (file, offset, start, length) in enumerate(zip(*(column.tolist() for column in columns), strict=True)):
        place = found[file].st_dev, found[file].st_ino, offset << 32 | start
        yield _Sample(place, os.path.basename(packed.member(i)), length)


def _are_equal(index: Index, sample: int, other: Index, its_sample: int) -> bool:
    if index.listing.packed is None and other.listing.packed is None:
        return filecmp.cmp(index.path(sample), other.path(its_sample), shallow=False)
    return np.array_equal(ImageFiles(index.listing).content(sample), ImageFiles(other.listing).content(its_sample))


def _parts(index: Index) -> list[Part]:
    return index.listing.parts or [None] * len(index)


def shared_rows(train: FeatureFile, test: FeatureFile) -> int:
    """Return how many test rows have the file name and, up to rounding, the features of a train row."""
    named: defaultdict[str, list[int]] = defaultdict(list)
    for row, name in enumerate(train.names):
        named[os.path.basename(name)].append(row)
    shared = 0
    for features, name in zip(test.features, test.names, strict=True):
        if alike := named.get(os.path.basename(name)):
            distances = (train.features[alike] - features).norm(dim=1)
            shared += bool((distances <= SAME * features.norm()).any())
    return shared


def warning(shared: int, test: int, kind: str = "images", names: tuple[str, str] = ("train", "test")) -> str:
    """Return a warning for this number of shared samples, out of those of the second set; `names` are the sets'."""
    return (
        f"{shared} of {test} {kind} in {names[1]} are in {names[0]} too, so the accuracy is not that of unseen {kind}; "
        f"expected two sets without a common {kind.removesuffix('s')}"
    )
