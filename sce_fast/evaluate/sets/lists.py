"""Data sets whose parts are text lists: Food-101, SUN397, FGVC Aircraft, DTD, Oxford Pets and VOC2007."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from sce_fast.evaluate.sets.image_set import ImageSet, Part, found, image_set, lines
from sce_fast.util.files import printable


def food101(root: Path) -> ImageSet:
    """Read Food-101: meta/train.txt and test.txt (or .json) beside images/CLASS/ID.jpg."""
    meta = found(root, "meta", "food-101/meta", what="lists of Food-101")

    def files() -> Iterator[tuple[Part, str, str]]:
        for part in ("train", "test"):
            path = found(meta, f"{part}.txt", f"{part}.json", what="images of a part")
            if path.suffix == ".txt":
                entries = lines(path)
            else:
                entries = [entry for names in json.loads(path.read_text()).values() for entry in names]
            yield from ((part, f"images/{entry}.jpg", entry.partition("/")[0]) for entry in entries)

    return image_set(meta.parent, files())


def sun397(root: Path) -> ImageSet:
    """Read SUN397: partition 01 of Training_01.txt and Testing_01.txt, beside the images or in Partitions/."""
    images = found(root, "a", "SUN397/a", what="images of SUN397 in folders by first letter").parent
    below = [os.path.relpath(images, root), "."]
    folders = [os.path.normpath(f"{folder}/{inside}") for inside in ("Partitions", ".") for folder in below]

    def files() -> Iterator[tuple[Part, str, str]]:
        parts: tuple[tuple[Part, str], ...] = (("train", "Training_01.txt"), ("test", "Testing_01.txt"))
        for part, name in parts:
            path = found(root, *(f"{folder}/{name}" for folder in folders), what="a part of SUN397")
            for entry in lines(path):  # /a/abbey/sun_….jpg
                yield part, entry.removeprefix("/"), os.path.dirname(entry)

    return image_set(images, files())


def aircraft(root: Path) -> ImageSet:
    """Read FGVC Aircraft: data/images_variant_{train,val,test}.txt beside data/images/ID.jpg."""
    data = found(root, "data", "fgvc-aircraft-2013b/data", what="lists and images of FGVC Aircraft")

    def files() -> Iterator[tuple[Part, str, str]]:
        for part, name in _PARTS.items():
            for line in lines(data / f"images_variant_{name}.txt"):
                number, _, variant = line.partition(" ")
                yield part, f"images/{number}.jpg", variant

    return image_set(data, files())


def dtd(root: Path) -> ImageSet:
    """Read the Describable Textures (DTD): split 1 of labels/{train,val,test}1.txt beside images/CLASS/."""
    base = found(root, "labels", "dtd/labels", "dtd/dtd/labels", what="lists of DTD").parent

    def files() -> Iterator[tuple[Part, str, str]]:
        for part, name in _PARTS.items():
            for entry in lines(base / "labels" / f"{name}1.txt"):
                yield part, f"images/{entry}", entry.partition("/")[0]

    return image_set(base, files())


def pets(root: Path) -> ImageSet:
    """Read the Oxford Pets: annotations/trainval.txt and test.txt beside images/BREED_NUMBER.jpg."""
    base = found(root, "annotations", "oxford-iiit-pet/annotations", what="lists of the Oxford Pets").parent

    def files() -> Iterator[tuple[Part, str, str]]:
        parts: tuple[tuple[Part, str], ...] = (("train", "trainval.txt"), ("test", "test.txt"))
        for part, name in parts:
            for line in lines(base / "annotations" / name):  # Abyssinian_100 1 1 1
                image = line.split()[0]
                yield part, f"images/{image}.jpg", image.rpartition("_")[0]

    return image_set(base, files())


def voc2007(root: Path) -> ImageSet:
    """Read VOC2007: ImageSets/Main/CLASS_{train,val,test}.txt beside JPEGImages/ID.jpg; an image has several classes.

    A list has 1 for an image that shows the class, -1 for one that does not, and 0 for difficult ones.

    Raises:
        FileNotFoundError: a list is missing.
        ValueError: a line is malformed, or the lists of two classes name different images.
    """
    base = found(root, "ImageSets", "VOC2007/ImageSets", "VOCdevkit/VOC2007/ImageSets", what="lists of VOC2007").parent
    folder = base / "ImageSets" / "Main"
    classes = sorted(path.name.removesuffix("_train.txt") for path in folder.glob("*_train.txt"))
    if not classes:
        raise FileNotFoundError(f"{printable(folder)} has no list CLASS_train.txt: expected one for each class")
    names: list[str] = []
    parts: list[Part] = []
    columns: list[list[list[int]]] = []
    for part, name in _PARTS.items():
        tables = [_shown(folder / f"{c}_{name}.txt") for c in classes]
        for c, table in zip(classes, tables, strict=True):
            if table.keys() != tables[0].keys():
                raise ValueError(f"{printable(folder)}: {c}_{name}.txt and {classes[0]}_{name}.txt name other images")
        names += [f"JPEGImages/{image}.jpg" for image in tables[0]]
        parts += [part] * len(tables[0])
        columns.append([[table[image] for table in tables] for image in tables[0]])
    return ImageSet(base, names, np.array([row for rows in columns for row in rows], dtype=np.int64), parts, classes)


_PARTS: dict[Part, str] = {"train": "train", "validation": "val", "test": "test"}


def _shown(path: Path) -> dict[str, int]:
    """Return image → 1, 0 or -1 of a list of VOC."""
    values: dict[str, int] = {}
    for line in lines(path):
        image, *value = line.split()
        if len(value) != 1 or value[0] not in ("1", "0", "-1"):
            raise ValueError(f"{printable(path)}: line {line!r}: expected an image and 1, 0 or -1")
        values[image] = int(value[0])
    return values
