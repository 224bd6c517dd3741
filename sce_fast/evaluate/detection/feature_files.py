"""Feature files of persons: the features of each box, with what they were computed by."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sce_fast.evaluate.detection.annotations import Persons
from sce_fast.evaluate.features import bad_rows, name_tensors, read_named_features
from sce_fast.evaluate.results import flat
from sce_fast.util.files import printable, save_tensors

WRITER, MADE_BY = "sce-fast evaluate detection", "made_by"
DIM = "numbers per box"  # in messages


@dataclass(frozen=True)
class PersonFile:
    """The content of a feature file of persons: a row for each box."""

    path: Path
    features: Tensor  # (n, F)
    videos: list[str]  # names, as in the annotations
    seconds: NDArray[np.int64]  # (n,) of the key frames
    boxes: NDArray[np.float64]  # (n, 4) left, top, right, bottom as shares of the frame's width and height
    made_by: dict[str, Any]  # weights, architecture, view and precision, as JSON values

    def features_of(self, persons: Persons, name: str) -> Tensor:
        """Return the features (n, F) of persons, which are found by video, second and box. Further rows do not matter.

        Args:
            persons: whose features are wanted.
            name: of the set, for the message.

        Raises:
            ValueError: the file lacks a person.
        """
        videos, seconds = _places(persons)
        if (
            videos == self.videos
            and np.array_equal(seconds, self.seconds)
            and np.array_equal(persons.boxes, self.boxes)
        ):
            return self.features  # choosing rows would hold them twice
        row = {key: i for i, key in enumerate(_keys(self.videos, self.seconds, self.boxes))}
        wanted = _keys(videos, seconds, persons.boxes)
        if missing := [key for key in wanted if key not in row]:
            video, second, *box = missing[0]
            raise ValueError(
                f"{printable(self.path)} lacks {len(missing)} of the {len(wanted)} {name} boxes, such as "
                f"{', '.join(f'{side:g}' for side in box)} at second {second} of {printable(video)}; expected features "
                f"of all boxes of the {name} annotations"
            )
        return self.features[torch.tensor([row[key] for key in wanted])]

    def require_made_by(self, expected: Mapping[str, Any], dim: int, whose: str) -> None:
        """Raise an error if the features were computed by another backbone, or of other clips.

        Args:
            expected: JSON values, as in `made_by`.
            dim: expected F.
            whose: what they are of, for the message.

        Raises:
            ValueError: see above; the message names each value, and what was expected.
        """
        own, other = flat({**self.made_by, DIM: self.features.shape[1]}), flat({**expected, DIM: dim})
        if differing := [name for name in sorted(own.keys() | other.keys()) if own.get(name) != other.get(name)]:
            lines = [f"{name}: {own.get(name)!r} in the file, {other.get(name)!r} expected" for name in differing]
            raise ValueError(f"{printable(self.path)} does not hold features of {whose}:\n  " + "\n  ".join(lines))


def save_person_features(path: Path, features: Tensor, persons: Persons, made_by: Mapping[str, Any]) -> None:
    """Write a safetensors file with the features (n, F) of persons, each with its video, second and box.

    It is a feature file whose names are those of the videos, so that sce_fast.evaluate.load_features reads it too.

    Raises:
        OSError: the file cannot be written.
    """
    videos, seconds = _places(persons)
    tensors = {
        "features": features.contiguous(),
        **name_tensors(videos),
        "seconds": torch.from_numpy(seconds),
        "boxes": torch.from_numpy(persons.boxes),
    }
    save_tensors(path, tensors, {MADE_BY: json.dumps(made_by)})


def load_person_features(path: str | Path) -> PersonFile:
    """Read a file that save_person_features has written.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: it is another file, its tensors do not fit together, or a feature is not finite.

    Example:
        >>> file = load_person_features("persons_test_0123456789abcdef.safetensors")
        >>> file.videos[0], file.seconds[0], file.boxes[0], file.features[0]  # of one person
    """
    tensors, videos, metadata = read_named_features(path, WRITER, ("seconds", "boxes"))
    if MADE_BY not in metadata:
        raise ValueError(f"{printable(path)} is not a feature file of {WRITER}: its metadata lack {MADE_BY}")
    features, rows = tensors["features"], len(videos)
    for name, kind, shape in (("seconds", torch.int64, (rows,)), ("boxes", torch.float64, (rows, 4))):
        found = tensors[name]
        if found.dtype != kind or found.shape != shape:
            raise ValueError(
                f"{printable(path)}: {name} are {found.dtype} {tuple(found.shape)}, expected {kind} {shape}"
            )
    if bad := bad_rows(features):
        raise ValueError(f"{printable(path)}: {bad} of {rows} feature rows are not finite")
    seconds, boxes = tensors["seconds"].numpy(), tensors["boxes"].numpy()
    return PersonFile(Path(path), features, videos, seconds, boxes, _made_by(path, metadata[MADE_BY]))


def _made_by(path: str | Path, text: str) -> dict[str, Any]:
    """Return the JSON object in the metadata of a file.

    Raises:
        ValueError: it is none.
    """
    try:
        values = json.loads(text)
    except ValueError:
        values = None
    if not isinstance(values, dict):
        raise ValueError(f"{printable(path)}: {MADE_BY}={text[:40]!r}: expected a JSON object")
    return values


def _places(persons: Persons) -> tuple[list[str], NDArray[np.int64]]:
    """Return the video and the second of each person's key frame."""
    videos = [persons.frames[frame][0] for frame in persons.frame.tolist()]
    seconds = np.array([second for _, second in persons.frames], dtype=np.int64)
    return videos, seconds[persons.frame]


def _keys(videos: list[str], seconds: NDArray[np.int64], boxes: NDArray[np.float64]) -> list[tuple[Any, ...]]:
    return [(video, second, *box) for video, second, box in zip(videos, seconds.tolist(), boxes.tolist(), strict=True)]
