"""Settings of the part of a data set that a run trains on."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from sce_fast.data.index import Index
from sce_fast.data.sources import Listing
from sce_fast.data.subset import chosen, subset
from sce_fast.util.settings import conform, require

AnyIndex = TypeVar("AnyIndex", bound=Index)


@dataclass(frozen=True, kw_only=True)
class SubsetConfig:
    """Part of the data to train on; by default all of it."""

    classes: Path | None = None
    """Train on these classes: a list file of their names, one a line, or imagenet100 for the classes of ImageNet-100.
    Evaluations during training take the same classes."""
    files: Path | None = None
    """Train on these files: a list file of their names, one a line, with or without their folders."""
    share: float | None = None
    """Train on this share of the samples of each class, drawn at random; in (0, 1]."""
    per_class: int | None = None
    """Train on so many samples of each class, drawn at random."""
    seed: int = 0
    """Seed of share and per_class."""

    def __post_init__(self) -> None:
        conform(self, "subset")
        require(self.share is None or 0 < self.share <= 1, "subset.share", self.share, "a number in (0, 1]")
        require(self.per_class is None or self.per_class >= 1, "subset.per_class", self.per_class, "at least 1")
        both = self.share is not None and self.per_class is not None
        require(not both, "subset.share and subset.per_class", (self.share, self.per_class), "at most one of both")
        require(0 <= self.seed < 2**32, "subset.seed", self.seed, "0 to 2**32 - 1")

    def of(self, index: AnyIndex) -> AnyIndex:
        """Return the part of an index.

        Raises:
            FileNotFoundError, ValueError: as sce_fast.data.subset.subset.
        """
        return subset(index, **self._settings())

    def of_listing(self, listing: Listing) -> Listing:
        """Return the part of a listing.

        Raises:
            FileNotFoundError, ValueError: as sce_fast.data.subset.subset.
        """
        return chosen(listing, **self._settings())[1]

    def _settings(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("share", "per_class", "classes", "files", "seed")}
