"""Options of evaluate detection that say where persons come from: from videos, or from features that are kept."""

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tyro.conf import OmitArgPrefixes

from sce_fast.export import ForeignNetwork
from sce_fast.tools.arguments import OptionalFile, OptionalFolder
from sce_fast.tools.clip_options import ClipOptions
from sce_fast.util.files import printable
from sce_fast.util.settings import changed, require_none

FIRST_SECOND = 900.0  # of AVA's videos, which are cut from films
Crop = Literal["scaled", "centre"]


@dataclass(frozen=True, kw_only=True)
class PersonFeatureOptions:
    """Features of persons that a frozen backbone has computed; only with --freeze."""

    features: OptionalFolder = None
    """Folder in which features are kept and looked for. Default: RUN/evaluations/features."""
    train_features: OptionalFile = None
    """Feature file with the persons to train on, instead of their videos; it is one that --crop centre has kept."""
    test_features: OptionalFile = None
    """Feature file with the persons to score, instead of their videos."""

    def files(self) -> dict[str, Path]:
        """Return the feature files by set: train, test."""
        given = {"train": self.train_features, "test": self.test_features}
        return {name: Path(path) for name, path in given.items() if path is not None}


KeptFeatures = OmitArgPrefixes[PersonFeatureOptions]


@dataclass(frozen=True, kw_only=True)
class PersonSource:
    """The options that say where persons come from and what they look like."""

    run: Path | None
    foreign: ForeignNetwork
    videos: Path | None
    first_second: float | None
    freeze: bool
    crop: Crop | None
    kept: PersonFeatureOptions
    clips: ClipOptions
    size: int | None
    resize: int | None

    @property
    def start(self) -> float:
        """Second of the annotations at which the videos begin."""
        return FIRST_SECOND if self.first_second is None else self.first_second

    @property
    def frozen(self) -> bool:
        """Whether only heads are trained: without a run there is no backbone."""
        return self.freeze or self.run is None

    @property
    def centre(self) -> bool:
        """Whether every epoch shows the train persons alike, in whole frames."""
        return self.crop == "centre" or "train" in self.kept.files()

    def check(self, out: Path | None, **training: Any) -> None:
        """Raise an error if something is missing, or given although nothing depends on it.

        Args:
            out: folder for the results, if one is given.
            training: options of the training by name, None where they are not given.

        Raises:
            FileNotFoundError: a feature file does not exist.
            ValueError: see above; the message names the options.
        """
        files = self.kept.files()
        for name, path in files.items():
            if not path.is_file():
                raise FileNotFoundError(f"{name}_features={printable(path)}: no such file")
        if len(files) < 2 and (self.run is None or self.videos is None):
            raise ValueError(
                f"run={self.run}, videos={self.videos}: expected both, or --train-features and --test-features, or "
                "--detections FILE alone"
            )
        if self.run is None and out is None:
            raise ValueError("out=None: expected a folder for the results, as feature files have none")
        frozen = {"crop": self.crop if self.crop == "centre" else None, **vars(self.kept)}
        if not self.frozen and (named := [f"{name}={value}" for name, value in frozen.items() if value is not None]):
            raise ValueError(f"{', '.join(named)}: expected --freeze too, as a backbone in training has no features")
        if "train" in files and self.crop == "scaled":
            raise ValueError("crop='scaled': expected centre, as features do not change from epoch to epoch")
        given = self.given() | training
        for is_unused, names, why in self._unused():
            if is_unused:
                require_none({name: given.get(name) for name in names}, why)

    def given(self) -> dict[str, Any]:
        """Return the options by name; None where they are not given."""
        own = {name: getattr(self, name) for name in ("run", "videos", "first_second", "crop", "size", "resize")}
        own["freeze"] = self.freeze or None
        return own | vars(self.kept) | vars(self.clips) | changed(self.foreign)

    def _unused(self) -> list[tuple[bool, Iterable[str], str]]:
        """Return when nothing depends on some options, their names, and why."""
        files = self.kept.files()
        computed = {"train", "test"} if self.centre else {"test"}
        backbone = [field.name for field in dataclasses.fields(ForeignNetwork)]
        clips = ["size", "resize", *vars(self.clips)]
        return [
            (
                self.run is None,
                ["videos", "first_second", "features", *backbone, *clips],
                "without a run, persons are read from feature files",
            ),
            (len(files) == 2, ["videos"], "persons are read from feature files"),
            (computed <= files.keys(), ["features"], "no features are computed beside the feature files"),
            (self.frozen, ["backbone_learning_rate", "batch_norm"], "the backbone is frozen"),
            (
                self.centre,
                ["size", "shorter_side", "flip"],
                "train clips are whole frames, neither cropped nor flipped",
            ),
        ]
