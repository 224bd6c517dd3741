"""The two sets of an evaluation, from images or feature files, and the sets of its baselines."""

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sce_fast.config import default_loader_threads
from sce_fast.data.image.augment import EvaluationView
from sce_fast.data.index import Index
from sce_fast.distributed import Ranks
from sce_fast.evaluate import load_features, pixel_features
from sce_fast.evaluate.class_labels import labels_among
from sce_fast.evaluate.features import bad_rows
from sce_fast.evaluate.overlap import shared_rows, shared_samples, warning
from sce_fast.evaluate.store import FeatureStore
from sce_fast.export import Description, ForeignNetwork
from sce_fast.tools.chosen_sets import NAMES, PublishedSplit, chosen_sets
from sce_fast.tools.frozen import Frozen, open_frozen
from sce_fast.train.folder import choose_device, read_config
from sce_fast.util.files import printable
from sce_fast.util.settings import changed, require_none
from sce_fast.util.terminal import say

PIXELS = 32  # largest side of the images that the baseline of raw pixels compares
SEED = 42  # of an untrained network; a run folder has its own


@dataclass(frozen=True)
class ImageSets:
    """The images of both sets, and the backbone that computes their features."""

    indices: tuple[Index, Index]  # train, test; of images or videos
    frozen: Frozen
    seed: int
    view: EvaluationView
    names: tuple[str, str] = NAMES

    @property
    def description(self) -> Description:
        return self.frozen.description

    def features(self, store: FeatureStore) -> list[Tensor]:
        """Return the features (n, F) and (m, F) of a store's network."""
        pairs = zip(self.indices, self.names, strict=True)
        return [store.features(index, self.view, name) for index, name in pairs]

    def untrained(self) -> list[Tensor]:
        """Return the features of the same architecture with fresh weights; a run began with these."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            network = self.description.build()
        return self.features(self.frozen.store_of(network))

    def pixels(self) -> tuple[int, list[Tensor]]:
        """Return a side, at most PIXELS, and the pixels of both sets at this size."""
        full = self.view
        side = min(full.crop, PIXELS)
        view = dataclasses.replace(full, resize=round(full.resize * side / full.crop), crop=side)
        return side, [pixel_features(index, view, threads=default_loader_threads()) for index in self.indices]


@dataclass(frozen=True)
class LabelledSets:
    """Features and labels for a classifier, and where they come from.

    Features are computed when they are asked for: settings and finished results can be looked at before.
    """

    compute: Callable[[], Sequence[Tensor]]  # returns the features (n, F) and (m, F); every rank has to call it
    dim: int  # F
    train_labels: Tensor  # (n,)
    test_labels: Tensor  # (m,), numbered as in train
    shared: int  # test images that are train images too
    origin: dict[str, Any]  # for the JSON file of the results
    images: ImageSets | None = None  # None for feature files
    notes: tuple[str, ...] = ()  # below the table

    @cached_property
    def features(self) -> Sequence[Tensor]:
        """The features (n, F) and (m, F). With several ranks, every one has to ask for them."""
        return self.compute()

    @property
    def train_features(self) -> Tensor:
        """(n, F), one of `features`."""
        return self.features[0]

    @property
    def test_features(self) -> Tensor:
        """(m, F), one of `features`."""
        return self.features[1]

    def to(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return features and labels on a device, in the order of the fields."""
        sets = (self.train_features, self.train_labels, self.test_features, self.test_labels)
        return tuple(tensor.to(device) for tensor in sets)  # type: ignore[return-value]

    def baselines(self) -> Iterator[tuple[str, "LabelledSets"]]:
        """Yield a name and the sets of each baseline: raw pixels, and an untrained network. Feature files have none."""
        if self.images is None:
            return
        side, pixels = self.images.pixels()
        yield f"raw pixels ({side} × {side})", self.with_features(pixels)
        yield "untrained network", self.with_features(self.images.untrained())

    def with_features(self, features: Sequence[Tensor]) -> "LabelledSets":
        """Return the sets with other features (n, F) and (m, F)."""
        return dataclasses.replace(self, compute=lambda: features, dim=features[0].shape[1])


def labelled_sets(
    source: Path | None,
    train: Path | None,
    test: Path | None,
    *,
    network: ForeignNetwork | None = None,
    classes: Path | None = None,
    batch_size: int | None,
    device: str,
    require: Callable[[int], object] = lambda train_images: None,
    features: Path | None = None,
    ranks: Ranks | None = None,
    published: PublishedSplit = PublishedSplit(),  # noqa: B008 (frozen)
    view_of: Callable[..., EvaluationView] = lambda own: own,
    look: Mapping[str, Any] | None = None,
    names: tuple[str, str] = NAMES,
) -> LabelledSets:
    """Return features and labels of both sets, computed from images or read from feature files.

    A line warns of images that are in both sets, and require(number of train images) is called, which may raise an
    error.

    Args:
        source: run folder or file; None if train and test are feature files.
        train, test, classes, published, names: see chosen_sets.
        network: of weights from elsewhere.
        batch_size: images or videos at a time; by default that of extract_features.
        device: name of the backbone's device.
        require: see above.
        features: folder of kept features; by default one beside the run's evaluations.
        ranks: that share the images; every one has to make the call.
        view_of: turns the backbone's own view and the options `look` into the one to compute features of.
        look: options by name, None where they are not given; feature files refuse them.

    Raises:
        FileNotFoundError, ValueError, RuntimeError: see the command knn.
    """
    source, train, test = (None if path is None else Path(path) for path in (source, train, test))
    target, ranks = choose_device(device), ranks or Ranks()
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size={batch_size}: expected at least 1")
    if source is None:
        if (train is None) != (test is None):
            raise ValueError(f"{names[0]}={train}, {names[1]}={test}: expected both or neither")
        if published != PublishedSplit():
            raise ValueError(f"split={published.split}: give a run or an exported backbone, too, to compute features")
        if train is None or test is None:
            raise ValueError(
                "nothing to evaluate: give a run or an exported backbone, or two feature files as "
                f"--{names[0]} and --{names[1]}"
            )
        own = {"features": features, "batch_size": batch_size, **changed(network or ForeignNetwork())}
        require_none({**(look or {}), **own}, f"without a run, {names[0]} and {names[1]} are feature files")
        if classes is not None:
            raise ValueError(
                f"classes={classes}: expected none for feature files; choose them by sce-fast embed --classes"
            )
        return _from_files(train, test, require, ranks, names)
    sets = chosen_sets(source, train, test, classes, published=published, names=names)
    threads = default_loader_threads()
    frozen = open_frozen(source, network=network, features=features, batch_size=batch_size, device=target, ranks=ranks)
    view = view_of(frozen.description.view(), **(look or {}))
    indices = ranks.first_then_others(lambda: sets.indices(view, threads=threads))
    require(len(indices[0]))
    notes = tuple(f"Warning: {line}" for line in sets.missing())
    for note in notes if ranks.is_first else ():
        say(note)
    shared = ranks.first(lambda: _warned(shared_samples(*indices), len(indices[1]), indices[1].kind, names))
    images = ImageSets(indices, frozen, read_config(source).seed if source.is_dir() else SEED, view, names)
    labels = [torch.as_tensor(index.labels) for index in indices]
    origin = {**frozen.origin(), **sets.origin(names)}
    for name, index in zip(names, indices, strict=True):
        origin[f"{name}_files"] = index.fingerprint
        origin[f"{name}_contents"] = ranks.first(index.contents)
    compute = partial(images.features, frozen.store)
    return LabelledSets(compute, frozen.store.dim, labels[0], labels[1], shared, origin, images, notes)


def _from_files(
    train: Path, test: Path, require: Callable[[int], object], ranks: Ranks, names: tuple[str, str]
) -> LabelledSets:
    for path in (train, test):
        if path.is_dir():
            raise ValueError(
                f"{printable(path)} is a folder of images; also give the run or exported backbone to compute features"
            )
    files = [load_features(path) for path in (train, test)]
    for path, file in zip((train, test), files, strict=True):
        if file.labels is None or not file.classes:
            raise ValueError(f"{printable(path)} has no labels; embed class folders, or a list file with classes")
        _require_finite(file.features, path)
    first, second = files
    assert first.labels is not None
    assert second.labels is not None
    if first.features.shape[1] != second.features.shape[1]:
        raise ValueError(
            f"{printable(train)} has features of {first.features.shape[1]} numbers, {printable(test)} of "
            f"{second.features.shape[1]}; expected features of the same backbone"
        )
    labels = labels_among(
        first.classes, second.labels, second.classes, train_name=printable(train), test_name=printable(test)
    )
    require(len(first.names))
    shared = ranks.first(lambda: _warned(shared_rows(first, second), len(second.names), "samples", names))
    origin: dict[str, Any] = {"source": None, names[0]: str(train), names[1]: str(test)}
    for name, file in zip(names, (first, second), strict=True):
        origin[f"{name}_features"] = hashlib.sha256(file.features.contiguous().numpy().data).hexdigest()[:16]
    features = [file.features.float() for file in files]
    return LabelledSets(lambda: features, features[0].shape[1], first.labels, labels, shared, origin)


def _warned(shared: int, test: int, kind: str, names: tuple[str, str]) -> int:
    if shared:
        say(f"Warning: {warning(shared, test, kind, names)}")
    return shared


def _require_finite(features: Tensor, path: Path) -> None:
    if bad := bad_rows(features):
        raise ValueError(f"{printable(path)}: {bad} of {len(features)} feature rows are not finite")
