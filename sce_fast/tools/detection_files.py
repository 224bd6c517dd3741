"""The files of AVA, found under their published names or named by options."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tyro.conf import OmitArgPrefixes

from sce_fast.evaluate.detection.annotations import Frame, Persons, read_actions, read_excluded, read_persons
from sce_fast.tools.arguments import OptionalFile, OptionalFolder
from sce_fast.util.files import printable

# option → patterns of published names: those of AVA, and those of SlowFast for detected persons
NAMES = {
    "train": ("ava_train_v2.2.csv", "ava_train_v*.csv"),
    "test": ("ava_val_v2.2.csv", "ava_val_v*.csv"),
    "actions": ("ava_action_list_v2.2_for_activitynet_2019.pbtxt", "ava_action_list_*for_activitynet*.pbtxt"),
    "train_excluded": ("ava_train_excluded_timestamps_v2.2.csv", "ava_train_excluded_timestamps_v*.csv"),
    "test_excluded": ("ava_val_excluded_timestamps_v2.2.csv", "ava_val_excluded_timestamps_v*.csv"),
    "train_boxes": (
        "ava_detection_train_boxes_and_labels_include_negative_v2.2.csv", "ava_train_predicted_boxes.csv",
    ),
    "test_boxes": ("ava_detection_val_boxes_and_labels.csv", "ava_val_predicted_boxes.csv"),
}  # fmt: skip
NEEDED = ("train", "test", "actions")


@dataclass(frozen=True, kw_only=True)
class DetectionFiles:
    """Files of annotations in AVA's form. An option overrides the file that `data` holds."""

    data: OptionalFolder = None
    """Folder that holds AVA's files under their published names, or in folders within, to a depth of two."""
    train: OptionalFile = None
    """CSV of the persons to train on: video, second, left, top, right, bottom, action, person."""
    test: OptionalFile = None
    """CSV of the persons to find, in the same form."""
    actions: OptionalFile = None
    """List of the actions to evaluate, as .pbtxt. AVA evaluates 60 of its 80 actions."""
    train_excluded: OptionalFile = None
    """CSV of key frames (video, second) that are not trained on."""
    test_excluded: OptionalFile = None
    """CSV of key frames that are not evaluated."""
    train_boxes: OptionalFile = None
    """CSV of detected persons to train on as well: the same columns, with the detector's score as the last."""
    test_boxes: OptionalFile = None
    """CSV of the detected persons to score, with their scores. Default: that of `data`, else the annotated boxes."""
    min_score: float = 0.9
    """Detected persons with a lower score are left out."""

    def found(self) -> dict[str, Path]:
        """Return the files by option.

        Raises:
            FileNotFoundError: a file or the folder does not exist.
            ValueError: a file is needed and not named, or the folder holds several of its kind.
        """
        if self.data is not None and not Path(self.data).is_dir():
            raise FileNotFoundError(f"data={printable(self.data)}: no such folder")
        files = {name: self._found(name) for name in NAMES}
        if missing := [name for name in NEEDED if files[name] is None]:
            options = ", ".join(f"--{name} (or {NAMES[name][0]} in --data)" for name in missing)
            raise ValueError(f"files of annotations are missing: give {options}")
        return {name: path for name, path in files.items() if path is not None}

    def _found(self, name: str) -> Path | None:
        given = getattr(self, name)
        if given is not None:
            if not Path(given).is_file():
                raise FileNotFoundError(f"{name}={printable(given)}: no such file")
            return Path(given)
        if self.data is None:
            return None
        for pattern in NAMES[name]:
            paths = sorted({path for inside in ("", "*/", "*/*/") for path in Path(self.data).glob(inside + pattern)})
            if len(paths) > 1:
                raise ValueError(
                    f"data={printable(self.data)} holds {', '.join(map(printable, paths))}; choose one by "
                    f"--{_option(name)}"
                )
            if paths:
                return paths[0]
        return None


AnnotationFiles = OmitArgPrefixes[DetectionFiles]


@dataclass(frozen=True)
class Annotations:
    """What the files say."""

    actions: dict[int, str]  # to evaluate
    truth: Persons  # to find
    test_excluded: frozenset[Frame]
    files: dict[str, Path]
    min_score: float

    def train(self) -> Persons:
        """Return the persons to train on.

        Raises:
            ValueError: a row is malformed, or no person is left.
        """
        return self._persons(["train", "train_boxes"], read_excluded_of(self.files, "train_excluded"))

    def test(self) -> Persons:
        """Return the persons to score: the detected ones, or the annotated ones if there is no file of detections.

        Raises:
            ValueError: a row is malformed, or no person is left.
        """
        return self._persons(["test_boxes"], self.test_excluded) if "test_boxes" in self.files else self.truth

    def names(self, count: int) -> list[str]:
        """Return a name for each of the actions 1 to `count`; those that are not evaluated have none of their own."""
        return [self.actions.get(action, f"action {action}") for action in range(1, count + 1)]

    def describe(self) -> str:
        """Return a line that tells which files are used, and for which options there are none."""
        used = ", ".join(f"--{_option(name)} {printable(path)}" for name, path in self.files.items())
        absent = ", ".join(f"--{_option(name)}" for name in NAMES if name not in self.files)
        return f"Annotations: {used}" + (f"; none for {absent}" if absent else "")

    def origin(self) -> dict[str, Any]:
        """Return what the results depend on, as JSON values."""
        described = {name: described_file(path) for name, path in self.files.items()}
        return {"files": described, "min_score": self.min_score}

    def _persons(self, names: list[str], excluded: frozenset[Frame]) -> Persons:
        paths = [self.files[name] for name in names if name in self.files]
        detected = [self.files[name] for name in ("train_boxes", "test_boxes") if name in self.files]
        return read_persons(paths, max(self.actions), excluded=excluded, detected=detected, min_score=self.min_score)


def read_annotations(chosen: DetectionFiles) -> Annotations:
    """Read the files that both training and testing need.

    Raises:
        FileNotFoundError, ValueError: as DetectionFiles.found, or a file is malformed.
    """
    files = chosen.found()
    actions, excluded = read_actions(files["actions"]), read_excluded_of(files, "test_excluded")
    truth = read_persons([files["test"]], max(actions), excluded=excluded)
    return Annotations(actions, truth, excluded, files, chosen.min_score)


def _option(name: str) -> str:
    return name.replace("_", "-")


def described_file(path: Path) -> dict[str, str]:
    """Return path and digest of a file, as settings of a result hold them."""
    with path.open("rb") as file:
        return {"path": str(path), "digest": hashlib.file_digest(file, "sha256").hexdigest()[:16]}


def read_excluded_of(files: dict[str, Path], name: str) -> frozenset[Frame]:
    """Return the key frames that a file excludes; none if there is no such file."""
    return read_excluded(files[name]) if name in files else frozenset()
