"""Data sets whose parts are MATLAB tables: Stanford Cars and Oxford Flowers."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from sce_fast.evaluate.sets.image_set import ImageSet, Part, found, image_set
from sce_fast.util.files import printable


def cars(root: Path) -> ImageSet:
    """Read the Stanford Cars: cars_annos.mat beside car_ims/, or devkit/cars_train_annos.mat beside cars_train/.

    The second form has the test labels in cars_test_annos_withlabels.mat, beside the images or in devkit/.
    """
    one, two = "cars_annos.mat", "devkit/cars_train_annos.mat"
    path = found(root, one, two, f"stanford_cars/{one}", f"stanford_cars/{two}", what="a table of the Stanford Cars")
    if path.name == one:
        return image_set(path.parent, _cars_in_one_table(path), classes=_numbers(_column(path, "annotations", "class")))
    base = path.parents[1]
    test = "cars_test_annos_withlabels.mat"
    tables: dict[Part, Path] = {"train": path, "test": found(base, test, f"devkit/{test}", what="labels of the test")}
    numbers = np.concatenate([_column(table, "annotations", "class") for table in tables.values()])
    return image_set(base, _cars_in_two_tables(tables), classes=_numbers(numbers))


def _cars_in_one_table(path: Path) -> Iterator[tuple[Part, str, str]]:
    names, labels, tests = (_column(path, "annotations", name) for name in ("relative_im_path", "class", "test"))
    for name, label, is_test in zip(names, labels, tests, strict=True):
        yield "test" if is_test else "train", str(name), str(label)


def _cars_in_two_tables(tables: dict[Part, Path]) -> Iterator[tuple[Part, str, str]]:
    for part, path in tables.items():
        for name, label in zip(*(_column(path, "annotations", name) for name in ("fname", "class")), strict=True):
            yield part, f"cars_{part}/{name}", str(label)


def flowers(root: Path) -> ImageSet:
    """Read the Oxford Flowers with 102 classes: setid.mat and imagelabels.mat beside jpg/image_NUMBER.jpg."""
    setid = found(root, "setid.mat", "flowers-102/setid.mat", what="parts of the Oxford Flowers")
    base = setid.parent
    labels = np.atleast_1d(_read(found(base, "imagelabels.mat", what="classes of the Oxford Flowers"), "labels"))
    parts: dict[Part, str] = {"train": "trnid", "validation": "valid", "test": "tstid"}

    def files() -> Iterator[tuple[Part, str, str]]:
        for part, name in parts.items():
            for number in np.atleast_1d(_read(setid, name)).tolist():
                if not 1 <= number <= len(labels):
                    raise ValueError(f"{printable(setid)}: image {number}: expected 1 to {len(labels)}")
                yield part, f"jpg/image_{number:05d}.jpg", str(labels[number - 1])

    return image_set(base, files(), classes=_numbers(labels))


def _numbers(labels: Any) -> list[str]:
    """Return the class numbers as names, in the order of the numbers."""
    return [str(number) for number in np.unique(labels).tolist()]


def _column(path: Path, table: str, name: str) -> Any:
    """Return a field of all rows of a table of structures."""
    rows = np.atleast_1d(_read(path, table))
    if rows.dtype.names is None or name not in rows.dtype.names:
        raise ValueError(f"{printable(path)}: {table} has no field {name}")
    return np.array([np.asarray(row).item() for row in rows[name]])


def _read(path: Path, name: str) -> Any:
    """Return an array of a MATLAB file, which holds no code.

    Raises:
        ImportError: scipy is not installed.
        ValueError: the file is damaged or lacks the array.
    """
    try:
        from scipy.io import loadmat
        from scipy.io.matlab import MatReadError
    except ImportError as error:
        raise ImportError(f"{printable(path)} needs scipy: pip install scikit-learn") from error
    try:
        content = loadmat(path, squeeze_me=True)
    except (MatReadError, ValueError, TypeError, NotImplementedError) as error:
        raise ValueError(f"{printable(path)} is not a MATLAB file: {error}") from error
    if name not in content:
        raise ValueError(f"{printable(path)} has no array {name}")
    return content[name]
