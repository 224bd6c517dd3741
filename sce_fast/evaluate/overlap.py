"""Images that are in the train set and in the test set: their accuracy is not that of unseen images."""

import filecmp
import os
from collections import defaultdict

from sce_fast.data.index import ImageIndex
from sce_fast.evaluate.features import FeatureFile

SAME = 1e-4  # largest distance of two features of one image, relative to their norm: batches round differently


def shared_images(train: ImageIndex, test: ImageIndex) -> int:
    """Return how many test images are train images too: the same file, or a copy under the same file name.

    Copies under other names are not found: that would take reading all files.

    Raises:
        FileNotFoundError: a file does not exist.
    """
    files: set[tuple[int, int]] = set()
    named: defaultdict[tuple[bytes, int], list[bytes]] = defaultdict(list)
    for path in train.paths:
        status = os.stat(path)
        files.add((status.st_dev, status.st_ino))
        named[os.path.basename(path), status.st_size].append(path)
    shared = 0
    for path in test.paths:
        status = os.stat(path)
        alike = named.get((os.path.basename(path), status.st_size), [])
        is_file = (status.st_dev, status.st_ino) in files
        shared += is_file or any(filecmp.cmp(path, other, shallow=False) for other in alike)
    return shared


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


def warning(shared: int, test: int) -> str:
    """Return a warning for this number of shared images among the test images."""
    return (
        f"{shared} of {test} test images are train images too, so the accuracy is not that of unseen images; "
        "expected two sets without a common image"
    )
