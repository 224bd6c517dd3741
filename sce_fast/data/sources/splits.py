"""Published splits of UCF101, HMDB51, Kinetics and Something-Something v2, read as they are."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from sce_fast.data.sources.listing import Listing
from sce_fast.data.sources.names import Names
from sce_fast.data.sources.video_folders import VideoFolders
from sce_fast.data.sources.videolist import kinetics_rows
from sce_fast.util.files import printable

SplitPart = Literal["train", "test"]
# Names of a part in files and columns, the first choice first: the test labels of Kinetics and Something-Something were
# not published at first, so papers report the validation part.
NAMES_OF_PART: dict[str, tuple[str, ...]] = {"train": ("train",), "test": ("validation", "validate", "val", "test")}
UCF_CLASSES = "classInd.txt"
HMDB_ENDING = "_test_split{}.txt"
HMDB_MARKS = {"train": "1", "test": "2"}  # 0 marks videos that belong to neither part
KNOWN = (
    f"the folder of UCF101's trainlist01.txt, testlist01.txt and {UCF_CLASSES}, of HMDB51's CLASS_test_split1.txt, of "
    "Something-Something's train, validation and labels JSON, of the CSV tables of Kinetics, or one such table"
)


class _Video(NamedTuple):
    places: Sequence[str]  # where the file may be, relative to the folder of videos; the first names it
    class_name: str


class _Split(NamedTuple):
    source: Path
    videos: list[_Video]
    classes: list[str]


def read_split(split: Path, videos: Path, part: SplitPart, number: int = 1) -> Listing:
    """Return the videos of one part of a published split, with labels and classes.

    A video may have another ending than the list says (.mp4 in place of .avi), or be a folder of extracted frames. It
    may lie in the folder of its class or directly in `videos`. Videos that are not on the disk are left out, and named
    in the listing's `missing`. The classes are those of the whole list, whether their videos are there or not.

    Args:
        split: folder of the published files, or one table of Kinetics.
        videos: folder of the videos.
        part: "train" or "test"; of Kinetics and Something-Something, the test part is the validation set.
        number: of the split, where there are three: UCF101 and HMDB51.

    Raises:
        FileNotFoundError: a folder or a list does not exist, or no video of the list does.
        ValueError: an argument is wrong, the folder holds no known split, or a list is malformed.

    Example:
        >>> listing = read_split(Path("ucfTrainTestlist"), Path("UCF-101"), "test", number=2)
        >>> len(listing.names), len(listing.classes), listing.missing
        (3734, 101, ())
    """
    split, videos = Path(split), Path(videos)
    if part not in get_args(SplitPart):
        raise ValueError(f"part={part!r}: expected one of {', '.join(get_args(SplitPart))}")
    for name, path in (("split", split), ("videos", videos)):
        if not path.exists():
            raise FileNotFoundError(f"{name}={printable(path)}: no such folder or file")
    if not videos.is_dir():
        raise ValueError(f"videos={printable(videos)}: expected the folder of the videos")
    found = _read(split, part, number)
    folders = VideoFolders(videos)
    names = [folders.find(video.places) for video in found.videos]
    missing = tuple(video.places[0] for video, name in zip(found.videos, names, strict=True) if name is None)
    if len(missing) == len(names):
        example = f", such as {printable(missing[0])}" if missing else ""
        raise FileNotFoundError(
            f"videos={printable(videos)} has none of the {len(names)} videos of {printable(found.source)}{example}"
        )
    label_of = {name: label for label, name in enumerate(found.classes)}
    pairs = [(name, video) for name, video in zip(names, found.videos, strict=True) if name is not None]
    return Listing(
        videos,
        Names.of(name for name, _ in pairs),
        np.array([label_of[video.class_name] for _, video in pairs], dtype=np.int32),
        found.classes,
        source=found.source,
        missing=missing,
    )


def _read(split: Path, part: SplitPart, number: int) -> _Split:
    files = sorted(path.name for path in split.iterdir() if path.name[0] != ".") if split.is_dir() else []
    if UCF_CLASSES in files:
        return _ucf(split, part, number)
    if any(name.endswith(HMDB_ENDING.format(1)) for name in files):
        return _hmdb(split, files, part, number)
    if number != 1:
        raise ValueError(f"number={number}: expected 1, as only UCF101 and HMDB51 have several splits")
    if not split.is_dir() and split.suffix.lower() == ".csv":
        return _kinetics(split, part, whole=False)
    jsons = [name for name in files if name.endswith(".json")]
    if any("labels" in name for name in jsons):  # Kinetics has its tables as JSON, too
        return _something(split, jsons, part)
    if tables := [name for name in files if name.endswith(".csv")]:
        return _kinetics(split / _of_part(split, tables, part), part, whole=True)
    raise ValueError(f"split={printable(split)}: expected {KNOWN}")


def _ucf(split: Path, part: SplitPart, number: int) -> _Split:
    """Read lines of CLASS/FILE, in the train list followed by a number of classInd.txt."""
    class_of: dict[str, str] = {}
    for line in _lines(split / UCF_CLASSES):
        index, _, name = line.partition(" ")
        class_of[index] = name.strip()
    source = split / f"{part}list{number:02d}.txt"
    if not source.exists():
        raise FileNotFoundError(f"number={number}: {printable(source)} does not exist; UCF101 has splits 1 to 3")
    videos = []
    for line in _lines(source):
        name, _, index = line.partition(" ")
        class_name, file = os.path.split(name)
        if class_name not in class_of.values() or class_of.get(index, class_name) != class_name:
            raise ValueError(f"{printable(source)}: {printable(line)}: the class is not that of {UCF_CLASSES}")
        videos.append(_Video((name, file), class_name))
    return _Split(source, videos, list(class_of.values()))


def _hmdb(split: Path, files: Sequence[str], part: SplitPart, number: int) -> _Split:
    """Read one list for each class, with lines of FILE and a mark: 1 train, 2 test, 0 neither."""
    ending = HMDB_ENDING.format(number)
    lists = {name.removesuffix(ending): split / name for name in files if name.endswith(ending)}
    if not lists:
        raise FileNotFoundError(f"number={number}: {printable(split)} has no *{ending}; HMDB51 has splits 1 to 3")
    videos = []
    for class_name, path in lists.items():
        for line in _lines(path):
            name, _, mark = line.rpartition(" ")
            if mark not in ("0", *HMDB_MARKS.values()):
                raise ValueError(f"{printable(path)}: {printable(line)}: expected a file and 0, 1 or 2")
            if mark == HMDB_MARKS[part]:
                videos.append(_Video((os.path.join(class_name, name), name), class_name))
    return _Split(split, videos, list(lists))


def _something(split: Path, files: Sequence[str], part: SplitPart) -> _Split:
    """Read a list of {"id", "template"} and the table of labels, whose templates have no brackets."""
    labels = _of_kind(split, files, ("labels",))
    names = [name for name in files if name != labels.name]
    source = split / _of_part(split, names, part)
    class_of = {name: int(index) for name, index in _json(labels, dict).items()}
    classes = sorted(class_of, key=class_of.__getitem__)
    videos = []
    for entry in _json(source, list):
        class_name = str(entry.get("template", "")).replace("[", "").replace("]", "")
        if "id" not in entry or class_name not in class_of:
            raise ValueError(
                f"{printable(source)}: id {entry.get('id')}, template {entry.get('template')!r}: expected an id and a "
                f"template of {labels.name}"
            )
        videos.append(_Video((f"{entry['id']}.webm",), class_name))
    return _Split(source, videos, classes)


def _kinetics(source: Path, part: SplitPart, *, whole: bool) -> _Split:
    """Read a table of Kinetics, all of it or, if it has a column split, the rows of a part."""
    rows = kinetics_rows(source)
    if any(row.label is None for row in rows):
        raise ValueError(f"{printable(source)} has no column label; expected a table with labels")
    splits = {row.split for row in rows} - {""}
    if not whole and splits:
        wanted = next((name for name in NAMES_OF_PART[part] if name in splits), None)
        if wanted is None:
            expected = " or ".join(NAMES_OF_PART[part])
            raise ValueError(f"{printable(source)} has rows of {', '.join(sorted(splits))}; expected {expected}")
        rows = [row for row in rows if row.split == wanted]
    videos = [_Video(row.places(NAMES_OF_PART[part]), row.label or "") for row in rows]
    return _Split(source, videos, sorted({video.class_name for video in videos}))


def _of_part(split: Path, files: Sequence[str], part: SplitPart) -> str:
    return _of_kind(split, files, NAMES_OF_PART[part]).name


def _of_kind(split: Path, files: Sequence[str], words: Sequence[str]) -> Path:
    """Return the one file whose name holds the first of these words that occurs in any name."""
    for word in words:
        if found := [name for name in files if word in name.lower()]:
            if len(found) > 1:
                raise ValueError(
                    f"split={printable(split)}: both {found[0]} and {found[1]} may be {word}; expected one"
                )
            return split / found[0]
    raise FileNotFoundError(f"split={printable(split)}: expected a file with {' or '.join(words)} in its name")


def _lines(path: Path) -> list[str]:
    """Return the lines that are not empty. Names of HMDB51 begin with #, so there are no comments."""
    lines = (os.fsdecode(line).strip() for line in path.read_bytes().splitlines())
    return [line for line in lines if line]


def _json(path: Path, kind: type) -> Any:
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{printable(path)} is not JSON: {error}") from error
    if not isinstance(content, kind):
        raise ValueError(f"{printable(path)}: expected a JSON {'object' if kind is dict else 'array'}")
    return content
