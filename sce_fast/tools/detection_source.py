"""Options of evaluate detection that say where persons come from: from videos, or from features that are kept."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import OmitArgPrefixes

from sce_fast.export import ForeignNetwork
from sce_fast.tools.arguments import OptionalFile, OptionalFolder
from sce_fast.tools.clip_options import ClipOptions
from sce_fast.util.files import printable

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
    start: float
    freeze: bool
    crop: Crop | None
    kept: PersonFeatureOptions
    clips: ClipOptions
    size: int | None
    resize: int | None

    @property
    def frozen(self) -> bool:
        """Whether only heads are trained: without a run there is no backbone."""
        return self.freeze or self.run is None

    @property
    def centre(self) -> bool:
        """Whether every epoch shows the train persons alike, in whole frames."""
        return self.crop == "centre" or "train" in self.kept.files()

    def check(self) -> None:
        """Raise an error if something is missing, or given although nothing depends on it.

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
        given = {"crop": self.crop if self.crop == "centre" else None, **vars(self.kept)}
        if not self.frozen and (named := [f"{name}={value}" for name, value in given.items() if value is not None]):
            raise ValueError(f"{', '.join(named)}: expected --freeze too, as a backbone in training has no features")
        if "train" in files and self.crop == "scaled":
            raise ValueError("crop='scaled': expected centre, as features do not change from epoch to epoch")
        if self.run is None:
            further = {"videos": self.videos, "features": self.kept.features, "size": self.size, "resize": self.resize}
            self.clips.require_none("without a run, persons are read from feature files", **further)
        if self.centre:
            none = {"size": self.size, "shorter_side": self.clips.shorter_side, "flip": self.clips.flip}
            ClipOptions().require_none("train clips are whole frames, neither cropped nor flipped", **none)
