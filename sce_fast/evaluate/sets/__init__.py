"""The eleven data sets of the papers' transfer table, in the layouts in which they are downloaded."""

from collections.abc import Callable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path

from sce_fast.evaluate.sets.folders import caltech101
from sce_fast.evaluate.sets.image_set import ImageSet, describe_left_out, listed_images, require_left_out
from sce_fast.evaluate.sets.lists import aircraft, dtd, food101, pets, sun397, voc2007
from sce_fast.evaluate.sets.packed import packed_or_folders
from sce_fast.evaluate.sets.tables import cars, flowers
from sce_fast.evaluate.transfer import Metric

__all__ = [
    "SETS",
    "BenchmarkSet",
    "ImageSet",
    "describe_left_out",
    "find_sets",
    "listed_images",
    "open_set",
    "require_left_out",
]


@dataclass(frozen=True)
class BenchmarkSet:
    """How a data set is read and scored."""

    title: str
    metric: Metric
    read: Callable[..., ImageSet]
    folders: tuple[str, ...]  # its usual names below a folder of data sets
    is_drawn: bool = False  # whether parts are random, so that read takes a seed


# In the order of the papers' table. Metrics are those of the published code.
SETS = {
    "food101": BenchmarkSet("Food-101", "accuracy", food101, ("food101", "food-101")),
    "cifar10": BenchmarkSet(
        "CIFAR-10",
        "accuracy",
        packed_or_folders,
        ("cifar10", "cifar-10", "cifar-10-batches-bin", "cifar-10-batches-py"),
    ),
    "cifar100": BenchmarkSet(
        "CIFAR-100",
        "accuracy",
        packed_or_folders,
        ("cifar100", "cifar-100", "cifar-100-binary", "cifar-100-python"),
    ),
    "sun397": BenchmarkSet("SUN397", "accuracy", sun397, ("sun397", "SUN397")),
    "cars": BenchmarkSet("Stanford Cars", "accuracy", cars, ("cars", "stanford_cars")),
    "aircraft": BenchmarkSet("FGVC Aircraft", "mean per class", aircraft, ("aircraft", "fgvc-aircraft-2013b")),
    "voc2007": BenchmarkSet("VOC2007", "11-point mAP", voc2007, ("voc2007", "VOCdevkit", "VOC2007")),
    "dtd": BenchmarkSet("DTD", "accuracy", dtd, ("dtd",)),
    "pets": BenchmarkSet("Oxford Pets", "mean per class", pets, ("pets", "oxford-iiit-pet")),
    "caltech101": BenchmarkSet(
        "Caltech-101",
        "mean per class",
        caltech101,
        ("caltech101", "caltech-101", "101_ObjectCategories"),
        is_drawn=True,
    ),
    "flowers": BenchmarkSet("Oxford Flowers", "mean per class", flowers, ("flowers", "flowers-102")),
}


def open_set(
    name: str, folder: Path, *, seed: int = 0, leave_out: AbstractSet[str] = frozenset()
) -> tuple[ImageSet, Metric]:
    """Return a data set and its metric; a name that is not in SETS stands for anyone's own images.

    Those are class folders, or packed files with splits: see packed_or_folders.

    Args:
        name: of the data set.
        folder: where it was unpacked, or the one above.
        seed: of parts that are drawn at random.
        leave_out: images to leave out; see listed_images.

    Raises:
        FileNotFoundError: the folder, or a list in it, does not exist.
        ValueError: a list is malformed, or files are missing; the message counts and names them.
        ImportError: Parquet tables need pyarrow, which is not installed.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{name}={folder}: no such folder")
    benchmark = SETS.get(name)
    read: Callable[..., ImageSet] = packed_or_folders if benchmark is None else benchmark.read
    images = read(folder, seed=seed) if benchmark is not None and benchmark.is_drawn else read(folder)
    images = images.without(leave_out)
    images.require_files()
    return images, "accuracy" if benchmark is None else benchmark.metric


def find_sets(data: Path) -> dict[str, Path]:
    """Return name → folder of the data sets that stand below a folder under one of their usual names.

    Raises:
        FileNotFoundError: the folder does not exist, or there is none; the message names what was looked for.
    """
    if not data.is_dir():
        raise FileNotFoundError(f"data={data}: no such folder")
    found = {
        name: folder
        for name, benchmark in SETS.items()
        for folder in [next((data / usual for usual in benchmark.folders if (data / usual).is_dir()), None)]
        if folder is not None
    }
    if not found:
        usual = ", ".join(benchmark.folders[0] for benchmark in SETS.values())
        raise FileNotFoundError(f"data={data} has none of the data sets: expected folders such as {usual}")
    return found
