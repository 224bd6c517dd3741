"""Data sets in class folders: CIFAR-10 and CIFAR-100 as images, Caltech-101, and anyone's own."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from torch import as_tensor

from sce_fast.data.sources import list_images
from sce_fast.evaluate.class_labels import labels_among
from sce_fast.evaluate.sets.image_set import ImageSet, Part, found, image_set
from sce_fast.util.files import printable

CALTECH = "101_ObjectCategories"
TRAIN_IMAGES = 30  # of each class of Caltech-101


def class_folders(root: Path) -> ImageSet:
    """Read train/CLASS/, test/CLASS/ and, if it exists, val/CLASS/ (or validation/CLASS/).

    Raises:
        FileNotFoundError: train or test is missing.
        ValueError: a part has no class folders, or a class that train lacks.
    """
    folders: dict[Part, Path] = {"train": found(root, "train", what="class folders to train on")}
    for name in ("val", "validation"):
        if (root / name).is_dir():
            folders["validation"] = root / name
    folders["test"] = found(root, "test", what="class folders to test on")
    names: list[str] = []
    labels: list[int] = []
    parts: list[Part] = []
    classes: list[str] = []
    for part, folder in folders.items():
        listing = list_images(folder)
        if listing.labels is None:
            raise ValueError(f"{printable(folder)} has images, but no class folders: expected one for each class")
        classes = classes or listing.classes
        titles = {"train_name": printable(root / "train"), "test_name": printable(folder)}
        numbers = labels_among(classes, as_tensor(listing.labels), listing.classes, **titles)
        names += [f"{folder.name}/{name}" for name in listing.names]
        labels += numbers.tolist()
        parts += [part] * len(listing.names)
    return ImageSet(root, names, np.array(labels, dtype=np.int64), parts, classes)


def caltech101(root: Path, seed: int = 0) -> ImageSet:
    """Read Caltech-101: 101_ObjectCategories/CLASS/, of which 30 random images of each class train and the rest test.

    The folder of the background counts as a class, as in the published code.

    Args:
        seed: of the random images.
    """
    inside = [f"{folder}{CALTECH}" for folder in ("", "caltech101/", "caltech-101/")]
    folder = root if root.name == CALTECH else found(root, *inside, what="class folders of Caltech-101")
    listing = list_images(folder)
    if listing.labels is None:
        raise ValueError(f"{printable(folder)} has images, but no class folders: expected one for each class")
    random, labels = np.random.default_rng(seed), np.array(listing.labels)
    trained: set[int] = set()
    for c in range(len(listing.classes)):
        trained |= set(random.permutation(np.flatnonzero(labels == c))[:TRAIN_IMAGES].tolist())

    def files() -> Iterator[tuple[Part, str, str]]:
        for i, (name, label) in enumerate(zip(listing.names, labels, strict=True)):
            yield "train" if i in trained else "test", name, listing.classes[label]

    return image_set(folder, files(), classes=listing.classes)
