"""Images or videos that are in the train set and in the test set: their accuracy is not that of unseen ones."""

import filecmp
import os
from collections import defaultdict

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
    files: set[tuple[int, int, Part]] = set()
    named: defaultdict[tuple[bytes, int, Part], list[bytes]] = defaultdict(list)
    for path, part in zip(train.paths, _parts(train), strict=True):
        status = os.stat(path)
        files.add((status.st_dev, status.st_ino, part))
        named[os.path.basename(path), status.st_size, part].append(path)
    shared = 0
    for path, part in zip(test.paths, _parts(test), strict=True):
        status = os.stat(path)
        alike = named.get((os.path.basename(path), status.st_size, part), [])
        is_file = (status.st_dev, status.st_ino, part) in files
        shared += is_file or any(filecmp.cmp(path, other, shallow=False) for other in alike)
    return shared


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


def warning(shared: int, test: int, kind: str = "images") -> str:
    """Return a warning for this number of shared samples among the test samples."""
    return (
        f"{shared} of {test} test {kind} are train {kind} too, so the accuracy is not that of unseen {kind}; "
        f"expected two sets without a common {kind.removesuffix('s')}"
    )
