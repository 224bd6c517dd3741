"""List files as a source of videos: with tabs, with spaces, and the tables of Kinetics."""

import csv
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from sce_fast.data.sources.listfile import ClassNumbers, lines_of
from sce_fast.data.sources.listing import Listing, Part, is_video_name
from sce_fast.data.sources.names import Names
from sce_fast.data.sources.video_folders import VideoFolders
from sce_fast.util.files import printable

KINETICS_COLUMNS = ("youtube_id", "time_start", "time_end")
FORMS = "path, path label, or path label start end (with the times in seconds), separated by tabs or by spaces"


class _Row(NamedTuple):
    name: str
    class_name: str | None
    part: Part


def list_video_file(path: Path) -> Listing:
    """Read a list file of videos or a table of Kinetics; names are relative to its folder or absolute.

    A line holds one of these, and a folder of extracted frames may stand for a video:
    - path
    - path, tab, class
    - path, tab, class, tab, start, tab, end: only the frames shown in [start, end), in seconds. Without a class: path,
      tab, start, tab, end.
    - path label, or path label start end, or path start end, separated by spaces; the label is an integer. The path may
      hold spaces: it reaches to the last ending of a video, or to the label.

    Empty lines and lines that begin with # are skipped. Classes are sorted, integers by their value.

    Raises:
        ValueError: the file is not text, a line is malformed, or only some lines have a class.
    """
    lines = list(lines_of(path, "videos"))
    if lines and set(KINETICS_COLUMNS) <= set(_split_header(lines[0][1])):
        return _list_kinetics(path)
    tabs = any("\t" in line for _, line in lines)
    rows: list[_Row] = []
    for number, line in lines:
        try:
            rows.append((_row_with_tabs if tabs else _row_with_spaces)(line))
        except ValueError as error:
            raise ValueError(f"{printable(path)}, line {number}: {error}") from None
        if (rows[-1].class_name is None) != (rows[0].class_name is None):
            raise ValueError(f"{printable(path)}, line {number}: expected a class on every line or on none")
    class_names = [row.class_name for row in rows if row.class_name is not None]
    if tabs:
        labels, classes = ClassNumbers(class_names).sorted()
    else:
        labels, classes = ClassNumbers(str(int(name)) for name in class_names).sorted(key=int)
    parts = [row.part for row in rows] if any(row.part is not None for row in rows) else None
    return Listing(path.parent, Names.of(row.name for row in rows), labels, classes, source=path, parts=parts)


def _row_with_tabs(line: str) -> _Row:
    name, *rest = (field.strip() for field in line.split("\t"))
    if len(rest) > 3:
        raise ValueError(f"{len(rest) + 1} fields; expected {FORMS}")
    part = _part(*rest[-2:]) if len(rest) > 1 else None
    return _Row(name, rest[0] if len(rest) in (1, 3) else None, part)


def _row_with_spaces(line: str) -> _Row:
    fields = line.split()
    ends = [i for i, field in enumerate(fields) if is_video_name(field)]
    # Without the ending of a video, the path is a folder of frames, and a label may follow.
    has_label = len(fields) > 1 and fields[-1].isdecimal()
    rest = fields[ends[-1] + 1 :] if ends else fields[-1:] if has_label else []
    name = line.strip()
    for field in reversed(rest):
        name = name.removesuffix(field).rstrip()
    if len(rest) > 3:
        raise ValueError(f"{len(rest)} fields after {printable(name)}; expected {FORMS}")
    class_name = rest[0] if len(rest) in (1, 3) else None
    if class_name is not None and not (class_name.isascii() and class_name.isdecimal()):
        raise ValueError(f"{printable(class_name)} after {printable(name)}: expected an integer label of at least 0")
    return _Row(name, class_name, _part(*rest[-2:]) if len(rest) > 1 else None)


def _part(start: str, end: str) -> Part:
    try:
        part = float(start), float(end)
    except ValueError:
        part = math.nan, math.nan
    if not 0 <= part[0] < part[1] < math.inf:
        raise ValueError(f"start {printable(start)}, end {printable(end)}: expected seconds with 0 <= start < end")
    return part


def _split_header(line: str) -> list[str]:
    return [name.strip() for name in line.split(",")]


class KineticsRow(NamedTuple):
    """A row of a table of Kinetics."""

    file: str
    label: str | None
    split: str  # empty without this column

    def places(self, splits: Sequence[str] = ()) -> list[str]:
        """Return where the file may be, first in its label's folder: see _list_kinetics.

        Args:
            splits: further names of the folder of its split.
        """
        label = self.label or ""
        inside = (label, label.replace(" ", "_"), "")
        folders = [os.path.join(outer, folder) for outer in ("", self.split, *splits) for folder in inside]
        return [os.path.join(folder, self.file) for folder in dict.fromkeys(folders)]


def kinetics_rows(path: Path) -> list[KineticsRow]:
    """Return the rows of a table of Kinetics: label, youtube_id, time_start, time_end, split; see _list_kinetics.

    Raises:
        ValueError: the file is no such table, or a row is malformed.
    """
    lines = list(lines_of(path, "videos"))
    header = _split_header(lines[0][1]) if lines else []
    if not set(KINETICS_COLUMNS) <= set(header):
        raise ValueError(f"{printable(path)}: expected a table with the columns {', '.join(KINETICS_COLUMNS)}")
    rows = []
    for number, line in lines[1:]:
        (fields,) = csv.reader([line])
        row = dict(zip(header, fields, strict=False))
        try:
            if len(fields) != len(header):
                raise ValueError(f"{len(fields)} fields; expected {len(header)}")
            if not row.get("label", "-"):
                raise ValueError("expected a label")
            start, end = (int(_seconds(row[column])) for column in KINETICS_COLUMNS[1:])
        except ValueError as error:
            raise ValueError(f"{printable(path)}, line {number}: {error}") from None
        file = f"{row['youtube_id']}_{start:06d}_{end:06d}.mp4"
        rows.append(KineticsRow(file, row.get("label"), row.get("split", "")))
    return rows


def _list_kinetics(path: Path) -> Listing:
    """Read a table of Kinetics: label, youtube_id, time_start, time_end, split, of which label and split may lack.

    The file of a row is named ID_START_END.mp4 with times of six digits, or has another ending. It stands beside the
    table, in a folder of its label (with spaces or underscores), in a folder of its split, or in a label's folder
    there. A row without a file names the file in its label's folder, and is found to be missing.

    Raises:
        ValueError: a row is malformed.
    """
    rows, folders = kinetics_rows(path), VideoFolders(path.parent)
    places = [row.places() for row in rows]
    names = [folders.find(of_row) or of_row[0] for of_row in places]
    labels, classes = ClassNumbers(row.label for row in rows if row.label is not None).sorted()
    return Listing(path.parent, Names.of(names), labels, classes, source=path)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < 10**6:
        raise ValueError(f"{printable(text)}: expected a time in seconds")
    return seconds
