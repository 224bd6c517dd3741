"""Which images or videos an evaluation compares: those that the user names, a published split, or the run's own."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sce_fast.config import EvaluationConfig
from sce_fast.data.image.augment import EvaluationView
from sce_fast.data.index import ImageIndex
from sce_fast.data.sources import Listing, read_split
from sce_fast.data.video.index import VideoIndex
from sce_fast.evaluate import labelled_indices
from sce_fast.train.folder import read_config
from sce_fast.util.files import printable

NAMES = ("train", "test")  # of both sets, as the options are called


@dataclass(frozen=True, kw_only=True)
class PublishedSplit:
    """A published split of videos, whose parts are the sets of an evaluation."""

    split: Path | None = None
    """Folder of a published split: UCF101's trainlist, testlist and classInd, HMDB51's CLASS_test_splitN.txt,
    Something-Something's JSON files, or the CSV tables of Kinetics. Its train part and its test or validation part take
    the place of the two sets."""
    videos: Path | None = None
    """Folder of the split's videos."""
    split_number: int = 1
    """Number of the split, of UCF101 and HMDB51: 1, 2 or 3."""

    def listings(self) -> tuple[Listing, Listing]:
        """Return the train and the test part; see read_split.

        Raises:
            FileNotFoundError, ValueError: as read_split, or videos is missing.
        """
        if self.split is None or self.videos is None:
            raise ValueError(f"split={self.split}, videos={self.videos}: expected both or neither")
        split, videos = Path(self.split), Path(self.videos)
        return read_split(split, videos, "train", self.split_number), read_split(
            split, videos, "test", self.split_number
        )


@dataclass(frozen=True)
class ChosenSets:
    """The paths of both sets, or their listings, and the classes that are taken of them."""

    train: Path | Listing
    test: Path | Listing
    classes: Path | None  # list of names, or the name of one of CLASS_LISTS; None for all
    published: PublishedSplit = PublishedSplit()

    def indices(self, view: EvaluationView, *, threads: int) -> tuple[ImageIndex | VideoIndex, ImageIndex | VideoIndex]:
        """Return the indices of both sets; see labelled_indices."""
        return labelled_indices(self.train, self.test, view, threads=threads, classes=self.classes)

    def choice(self) -> dict[str, str]:
        """Return what settings of a result say of the classes."""
        return {} if self.classes is None else {"chosen_classes": str(self.classes)}

    def origin(self, names: tuple[str, str] = NAMES) -> dict[str, Any]:
        """Return what settings of a result say of the sets, as JSON values."""
        paths = {name: self._title(place) for name, place in zip(names, (self.train, self.test), strict=True)}
        if self.published.split is None:
            return {**paths, **self.choice()}
        missing = {f"missing_{name}": len(place.missing) for name, place in self._listings(names)}
        of_split = {"videos": str(self.published.videos), "split_number": self.published.split_number}
        return {**paths, **of_split, **missing, **self.choice()}

    def missing(self) -> list[str]:
        """Return a line for each set whose split names files that the disk lacks."""
        return [line for _, listing in self._listings(NAMES) if (line := listing.describe_missing())]

    def _listings(self, names: tuple[str, str]) -> list[tuple[str, Listing]]:
        places = zip(names, (self.train, self.test), strict=True)
        return [(name, place) for name, place in places if isinstance(place, Listing)]

    @staticmethod
    def _title(place: Path | Listing) -> str:
        return str(place.source) if isinstance(place, Listing) else str(place)


def chosen_sets(
    run: Path,
    train: Path | None,
    test: Path | None,
    classes: Path | None,
    *,
    published: PublishedSplit = PublishedSplit(),
    names: tuple[str, str] = NAMES,
) -> ChosenSets:
    """Return the sets of an evaluation: by default those that the run itself evaluates, of the classes it trains on.

    Args:
        run: run folder, exported file or weights from elsewhere.
        train, test: labelled images or videos.
        classes: list of class names, or the name of one of CLASS_LISTS.
        published: a split that takes the place of train and test.
        names: of train and test in messages.

    Raises:
        FileNotFoundError: a part of the split does not exist.
        ValueError: one of both sets is given, the run names none, one is a feature file, or there is a split as well.
    """
    train, test, classes = (None if path is None else Path(path) for path in (train, test, classes))
    if (train is None) != (test is None):
        raise ValueError(f"{names[0]}={train}, {names[1]}={test}: expected both or neither")
    if published.split is not None or published.videos is not None:
        if train is not None:
            raise ValueError(f"{names[0]}={train}, split={published.split}: expected two sets or a split, not both")
        return ChosenSets(*published.listings(), classes, published)
    own = EvaluationConfig(train=train, test=test)
    if train is None and run.is_dir():
        config = read_config(run)
        own, classes = config.evaluation, classes or config.subset.classes
    if own.train is None or own.test is None:
        raise ValueError(f"{printable(run)} names no evaluation folders: give --{names[0]} and --{names[1]}")
    for path in (own.train, own.test):
        if path.is_file() and path.suffix == ".safetensors":
            raise ValueError(f"{printable(path)} holds features already: leave out {printable(run)}")
    return ChosenSets(own.train, own.test, classes)
