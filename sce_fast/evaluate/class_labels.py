"""Train and test sets whose classes agree."""

from dataclasses import replace
from pathlib import Path

from torch import Tensor, as_tensor

from sce_fast.data.index import ImageIndex, index_images
from sce_fast.data.loader import require_whole
from sce_fast.util.files import printable


def labelled_indices(train_path: Path, test_path: Path, *, threads: int) -> tuple[ImageIndex, ImageIndex]:
    """The train and test index of an evaluation, with the same number for the same class.

    Raises:
        ValueError: one has no classes or files without a readable header, or test has a class that train lacks.
    """
    train, test = (index_images(path, threads=threads) for path in (train_path, test_path))
    for index in (train, test):
        if index.labels is None:
            raise ValueError(
                f"{printable(index.listing.root)}: evaluation needs labels; expected one folder a class, or a list "
                "file with classes"
            )
        require_whole(index)
    classes = train.listing.classes
    labels = labels_among(
        classes,
        as_tensor(test.labels),
        test.listing.classes,
        train_name=printable(train.listing.root),
        test_name=printable(test.listing.root),
    )
    return train, replace(test, listing=replace(test.listing, labels=labels.tolist(), classes=classes))


def labels_among(
    classes: list[str], labels: Tensor, test_classes: list[str], *, train_name: str, test_name: str
) -> Tensor:
    """Labels (n,) that number test_classes, as numbers of the same names among the train set's classes.

    Raises:
        ValueError: a class of the test set is not among them.
    """
    number = {name: i for i, name in enumerate(classes)}
    unknown = sorted(set(test_classes) - set(classes))
    if unknown:
        raise ValueError(
            f"{test_name} has classes that {train_name} lacks: {', '.join(map(printable, unknown[:10]))}"
            + (f" and {len(unknown) - 10} more" if len(unknown) > 10 else "")
        )
    return as_tensor([number[name] for name in test_classes])[labels]
