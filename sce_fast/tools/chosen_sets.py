"""Which images or videos an evaluation compares: those that the user names, or the run's own."""

from dataclasses import dataclass
from pathlib import Path

from sce_fast.config import EvaluationConfig
from sce_fast.data.image.augment import EvaluationView
from sce_fast.data.index import ImageIndex
from sce_fast.data.video.index import VideoIndex
from sce_fast.evaluate import labelled_indices
from sce_fast.train.folder import read_config
from sce_fast.util.files import printable


@dataclass(frozen=True)
class ChosenSets:
    """The paths of both sets, and the classes that are taken of them."""

    train: Path
    test: Path
    classes: Path | None  # list of names, or the name of one of CLASS_LISTS; None for all

    def indices(self, view: EvaluationView, *, threads: int) -> tuple[ImageIndex | VideoIndex, ImageIndex | VideoIndex]:
        """Return the indices of both sets; see labelled_indices."""
        return labelled_indices(self.train, self.test, view, threads=threads, classes=self.classes)

    def choice(self) -> dict[str, str]:
        """Return what settings of a result say of the classes."""
        return {} if self.classes is None else {"chosen_classes": str(self.classes)}


def chosen_sets(run: Path, train: Path | None, test: Path | None, classes: Path | None) -> ChosenSets:
    """Return the sets of an evaluation: by default those that the run itself evaluates, of the classes it trains on.

    Args:
        run: run folder, exported file or weights from elsewhere.
        train, test: labelled images or videos.
        classes: list of class names, or the name of one of CLASS_LISTS.

    Raises:
        ValueError: one of both sets is given, the run names none, or one is a feature file.
    """
    train, test, classes = (None if path is None else Path(path) for path in (train, test, classes))
    if (train is None) != (test is None):
        raise ValueError(f"train={train}, test={test}: expected both or neither")
    own = EvaluationConfig(train=train, test=test)
    if train is None and run.is_dir():
        config = read_config(run)
        own, classes = config.evaluation, classes or config.subset.classes
    if own.train is None or own.test is None:
        raise ValueError(f"{printable(run)} names no evaluation folders: give --train and --test")
    for path in (own.train, own.test):
        if path.is_file() and path.suffix == ".safetensors":
            raise ValueError(f"{printable(path)} holds features already: leave out {printable(run)}")
    return ChosenSets(own.train, own.test, classes)
