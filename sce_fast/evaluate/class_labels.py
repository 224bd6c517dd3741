"""Train and test sets with the same class numbers."""

from dataclasses import replace
from pathlib import Path

from torch import Tensor, as_tensor

from sce_fast.data.image.augment import EvaluationView
from sce_fast.data.index import ImageIndex
from sce_fast.data.kinds import open_index
from sce_fast.data.sources import Listing
from sce_fast.data.subset import subset
from sce_fast.data.video.index import VideoIndex
from sce_fast.util.files import printable


def labelled_indices(
    train_path: Path | Listing,
    test_path: Path | Listing,
    view: EvaluationView,
    *,
    threads: int,
    classes: Path | None = None,
) -> tuple[ImageIndex | VideoIndex, ImageIndex | VideoIndex]:
    """Return the train and test index of an evaluation; a class has the same number in both.

    Args:
        train_path, test_path: of the sets, or listings of videos.
        view: of images, or of videos.
        threads: number of threads that read files.
        classes: take these classes of both sets; see subset.

    Raises:
        ValueError: a set has no classes or a file with an unreadable header, or test has a class that train lacks.
    """
    train, test = (open_index(path, view, threads=threads) for path in (train_path, test_path))
    if classes is not None:
        train, test = subset(train, classes=classes), subset(test, classes=classes)
    for index in (train, test):
        if index.labels is None:
            expected = index.listing.unlabelled or "expected one folder for each class, or a list file with classes"
            raise ValueError(f"{index.listing.title}: an evaluation needs labels; {expected}")
        index.require_readable()
    names = train.listing.classes
    labels = labels_among(
        names,
        as_tensor(test.labels),
        test.listing.classes,
        train_name=train.listing.title,
        test_name=test.listing.title,
    )
    return train, replace(test, listing=replace(test.listing, labels=labels.int().numpy(), classes=names))


def labels_among(
    classes: list[str], labels: Tensor, test_classes: list[str], *, train_name: str, test_name: str
) -> Tensor:
    """Return the labels (n,) of a test set as numbers of the train set's classes.

    Args:
        classes: names of the train set's classes.
        labels: (n,) numbers in test_classes.
        test_classes: names of the test set's classes.
        train_name, test_name: names of the sets, for the error message.

    Raises:
        ValueError: the test set has a class that the train set lacks.
    """
    number = {name: i for i, name in enumerate(classes)}
    unknown = sorted(set(test_classes) - set(classes))
    if unknown:
        raise ValueError(
            f"{test_name} has classes that {train_name} lacks: {', '.join(map(printable, unknown[:10]))}"
            + (f" and {len(unknown) - 10} more" if len(unknown) > 10 else "")
        )
    return as_tensor([number[name] for name in test_classes])[labels]
