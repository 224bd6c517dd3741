"""AVA's files: boxes of persons with their actions, lists of actions, and excluded key frames."""

import csv
import math
import re
from array import array
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sce_fast.util.files import printable

Frame = tuple[str, int]  # name of a video, second
_FIELD = re.compile(r'^\s*(?:name\s*:\s*(["\'])(?P<name>.*)\1|(?:label_)?id\s*:\s*(?P<id>\d+))\s*$', re.MULTILINE)


@dataclass(frozen=True)
class Persons:
    """Boxes of persons in key frames, ordered by video and second."""

    frames: list[Frame]  # key frames with at least one person
    frame: NDArray[np.int64]  # (n,) number of each person's key frame, ascending
    boxes: NDArray[np.float64]  # (n, 4) left, top, right, bottom as shares of the frame's width and height
    actions: NDArray[np.bool_]  # (n, A) whether a person does the action a, in column a − 1

    def __len__(self) -> int:
        return len(self.frame)

    def of_frames(self, numbers: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Return the persons in key frames (N,), frame by frame.

        Returns:
            The number (n,) of each person, its place among `numbers`, and its place in its key frame.
        """
        return persons_of(self.frame, numbers)


@dataclass(frozen=True)
class Detections:
    """Scored boxes: each has an action and a score."""

    frames: list[Frame]  # key frames that `frame` counts
    frame: NDArray[np.int64]  # (n,)
    boxes: NDArray[np.float64]  # (n, 4) left, top, right, bottom as shares
    actions: NDArray[np.int64]  # (n,) number of an action, from 1
    scores: NDArray[np.float64]  # (n,)


class _Row(NamedTuple):
    frame: Frame
    box: tuple[str, ...]  # as written: equal texts are one person
    action: int | None
    value: str  # eighth column: a score, or the number of a person


def read_actions(path: str | Path) -> dict[int, str]:
    """Return number → name of the actions in a .pbtxt file, by number.

    Both forms of AVA are read: `item {name: … id: …}`, and `label {name: … label_id: …}`.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file names no action, or a number twice.

    Example:
        >>> len(read_actions("ava_action_list_v2.2_for_activitynet_2019.pbtxt"))
        60
    """
    names, numbers = [], []
    for match in _FIELD.finditer(Path(path).read_text()):
        names.extend([match["name"]] if match["name"] is not None else [])
        numbers.extend([int(match["id"])] if match["id"] is not None else [])
    if not names or len(names) != len(numbers) or len(set(numbers)) != len(numbers) or min(numbers) < 1:
        raise ValueError(
            f"{printable(path)}: {len(names)} names and {len(set(numbers))} different numbers of actions; expected a "
            ".pbtxt file with one name and one id of at least 1 for each action"
        )
    return dict(sorted(zip(numbers, names, strict=True)))


def read_excluded(path: str | Path) -> frozenset[Frame]:
    """Return the key frames that a CSV file of videos and seconds excludes.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: a line is malformed.
    """
    return frozenset(_frame(path, number, fields) for number, fields in _lines(path))


def read_persons(
    paths: Sequence[str | Path],
    actions: int,
    *,
    excluded: Collection[Frame] = (),
    detected: Collection[str | Path] = (),
    min_score: float = 0.0,
) -> Persons:
    """Read CSV files of persons and their actions; rows of the same box are one person with several actions.

    A row holds video, second, left, top, right, bottom, action, and a person's number or score. The action may be
    empty or −1. Rows of a video and a second alone stand for key frames without persons.

    Args:
        paths: of the files, in the published form.
        actions: A is at least this, or a higher number of an action in the files.
        excluded: key frames to leave out.
        detected: those of the paths whose boxes are detections. The eighth column is their score.
        min_score: detections with lower scores are left out.

    Raises:
        FileNotFoundError: a file does not exist.
        ValueError: a row is malformed, or no person is left.

    Example:
        >>> persons = read_persons(["ava_train_v2.2.csv"], 80, excluded=read_excluded("ava_train_excluded….csv"))
    """
    found: dict[Frame, dict[tuple[str, ...], set[int]]] = {}
    for path in paths:
        for number, row in _rows(path):
            if row.frame in excluded or (path in detected and _number(path, number, row.value) < min_score):
                continue
            person = found.setdefault(row.frame, {}).setdefault(row.box, set())
            person |= set() if row.action is None else {row.action}
    if not found:
        raise ValueError(f"{', '.join(map(printable, paths))}: no person is left; expected boxes in key frames")
    frames = sorted(found)
    persons = [(i, box, done) for i, frame in enumerate(frames) for box, done in found[frame].items()]
    highest = max((action for _, _, done in persons for action in done), default=0)
    labels = np.zeros((len(persons), max(actions, highest)), dtype=np.bool_)
    for label, (_, _, done) in zip(labels, persons, strict=True):
        label[[action - 1 for action in done]] = True
    boxes = np.array([[float(text) for text in box] for _, box, _ in persons])
    return Persons(frames, np.array([i for i, _, _ in persons], dtype=np.int64), boxes, labels)


def read_detections(path: str | Path, *, excluded: Collection[Frame] = ()) -> Detections:
    """Read a CSV file of detections: video, second, left, top, right, bottom, action, score.

    Boxes may reach beyond the frame, as those of other programs do.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: a row is malformed, or there is none.
    """
    frames: dict[Frame, int] = {}
    frame, actions, boxes, scores = array("q"), array("q"), array("d"), array("d")  # there may be millions of rows
    for number, row in _rows(path, beyond=True):
        if row.action is None:
            raise ValueError(f"{printable(path)}, line {number}: expected an action of at least 1")
        if row.frame not in excluded:
            frame.append(frames.setdefault(row.frame, len(frames)))
            boxes.extend(map(float, row.box))
            actions.append(row.action)
            scores.append(_number(path, number, row.value))
    if not frames:
        raise ValueError(f"{printable(path)} holds no detection")
    return Detections(
        list(frames), np.array(frame), np.array(boxes).reshape(-1, 4), np.array(actions), np.array(scores)
    )


def persons_of(
    frames: NDArray[np.int64], numbers: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return the persons in key frames (N,), frame by frame; see Persons.of_frames.

    Args:
        frames: (m,) key frame of each person, ascending.
        numbers: (N,) of key frames; those without persons may be any other number.
    """
    first, end = frames.searchsorted(numbers), frames.searchsorted(numbers, side="right")
    counts = end - first
    rows = np.repeat(np.arange(len(numbers)), counts)
    places = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    return first[rows] + places, rows, places


def shared_videos(train: Persons, test: Persons) -> list[str]:
    """Return the names of the videos with key frames in both sets, sorted."""
    return sorted({video for video, _ in train.frames} & {video for video, _ in test.frames})


def _lines(path: str | Path) -> Iterator[tuple[int, list[str]]]:
    with open(path, newline="") as file:
        for number, fields in enumerate(csv.reader(file), start=1):
            if fields:
                yield number, [field.strip() for field in fields]


def _rows(path: str | Path, *, beyond: bool = False) -> Iterator[tuple[int, _Row]]:
    """Yield the rows that hold a box, with their line numbers; boxes lie in the frame, or may reach beyond it."""
    lowest, highest = (-math.inf, math.inf) if beyond else (0.0, 1.0)
    for number, fields in _lines(path):
        frame = _frame(path, number, fields)
        if len(fields) == 2:
            continue
        if len(fields) not in (7, 8):
            raise ValueError(
                f"{printable(path)}, line {number}: {len(fields)} fields; expected video, second, left, top, right, "
                "bottom, action, and a person's number or a score"
            )
        left, top, right, bottom = (_number(path, number, text) for text in fields[2:6])
        if not (lowest <= left <= right <= highest and lowest <= top <= bottom <= highest):
            raise ValueError(
                f"{printable(path)}, line {number}: box {', '.join(fields[2:6])}; expected left, top, right, bottom "
                "as shares of the frame" + ("" if beyond else ", in [0, 1]")
            )
        action = None if fields[6] in ("", "-1") else int(_number(path, number, fields[6]))
        if action is not None and action < 1:
            raise ValueError(f"{printable(path)}, line {number}: action {fields[6]}; expected at least 1")
        yield number, _Row(frame, tuple(fields[2:6]), action, fields[7] if len(fields) == 8 else "")


def _frame(path: str | Path, number: int, fields: list[str]) -> Frame:
    if len(fields) < 2 or not fields[0]:
        raise ValueError(f"{printable(path)}, line {number}: expected a video and a second")
    return fields[0], int(_number(path, number, fields[1]))


def _number(path: str | Path, number: int, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{printable(path)}, line {number}: {text!r}; expected a number") from None
