"""Data sets in packed files: CIFAR and STL-10 as downloaded, and anyone's own tar shards and Parquet tables."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from sce_fast.data.index import index_shards
from sce_fast.data.sources import Shards, packed_splits
from sce_fast.evaluate.sets.folders import class_folders
from sce_fast.evaluate.sets.image_set import ImageSet, Part
from sce_fast.util.files import printable

PARTS: tuple[Part, ...] = ("train", "validation", "test")


def packed_or_folders(root: Path) -> ImageSet:
    """Read a data set whose files hold many images each, or class folders.

    Packed files are found as index_images finds them; their splits are the parts. Images of STL-10 without labels are
    left out.

    Raises:
        FileNotFoundError: train or test is missing.
        ValueError: images have no classes, or a part has a class that train lacks.
        ImportError: Parquet tables need pyarrow, which is not installed.
    """
    splits = packed_splits(root)
    return _packed(root, splits) if splits else class_folders(root)


def _packed(root: Path, splits: Mapping[str, Sequence[str]]) -> ImageSet:
    for part in ("train", "test"):
        if part not in splits:
            known = ", ".join(filter(None, splits)) or "none"
            raise FileNotFoundError(f"{printable(root)} has no files of the split {part}; splits found: {known}")
    found = {part: splits[part] for part in PARTS if part in splits}
    files = [name for names in found.values() for name in names]
    index = index_shards(Shards(root, files), root / f"{{{','.join(PARTS)}}}")
    if index.labels is None:
        which = f": {index.listing.unlabelled}" if index.listing.unlabelled else ""
        raise ValueError(f"{printable(root)} has images without a class{which}; expected one for each image")
    part_of = {name: part for part, names in found.items() for name in names}
    packed = index.listing.packed
    assert packed is not None
    parts = [part_of[packed.files[number]] for number in packed.shard.tolist()]
    images = ImageSet(root, index.listing.names, index.labels, parts, index.listing.classes, index)
    _require_trained(images)
    return images


def _require_trained(images: ImageSet) -> None:
    trained = np.unique(images.labels[images.rows("train")])
    if len(unknown := np.setdiff1d(images.labels, trained)):
        names = ", ".join(printable(images.classes[label]) for label in unknown[:10].tolist())
        more = f" and {len(unknown) - 10} more" if len(unknown) > 10 else ""
        raise ValueError(f"{printable(images.root)} has classes that its train split lacks: {names}{more}")
