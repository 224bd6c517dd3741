"""What probing finds in video files: a table with a row for each file, and its cache."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from sce_fast.data.cache import read_cache, take_rows, write_cache
from sce_fast.data.faults import UNREADABLE
from sce_fast.data.sources import Names
from sce_fast.data.video.probe import VideoFacts, probe
from sce_fast.util.terminal import progress_bar

T = TypeVar("T")

CACHE_VERSION = 3
FILES_PER_CACHE_WRITE = 16384
FEW_FILES = 256  # probed at once, without a progress bar


@dataclass(frozen=True)
class Ragged:
    """Arrays of different lengths in one: some hundred thousand small arrays would need more memory than their values.

    Example:
        >>> rows = Ragged.of([np.array([0, 12]), np.array([0])])
        >>> rows[0].tolist(), rows.take(np.array([1, -1]))[1].tolist()
        ([0, 12], [])
    """

    values: NDArray[np.int32] | NDArray[np.int64]  # all arrays one after another
    ends: NDArray[np.int64]  # (n,) where each array ends in values

    @staticmethod
    def of(arrays: Sequence[NDArray[Any]]) -> "Ragged":
        values = np.concatenate([np.zeros(0, dtype=np.int64), *arrays])
        return Ragged(_compact(values), np.cumsum([len(array) for array in arrays], dtype=np.int64))

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, i: int) -> NDArray[Any]:
        i = range(len(self))[i]  # as a list counts from the end, and refuses
        return self.values[self.ends[i - 1] if i else 0 : self.ends[i]]

    def take(self, rows: NDArray[np.int64]) -> "Ragged":
        """Return these arrays; empty ones where a number is -1."""
        if np.array_equal(rows, np.arange(len(self))):
            return self
        arrays = [self[i] if i >= 0 else self.values[:0] for i in rows.tolist()]
        ends = np.cumsum([len(array) for array in arrays], dtype=np.int64)
        return Ragged(np.concatenate([self.values[:0], *arrays]), ends)


@dataclass(frozen=True)
class FileTable:
    """What probing has found; one row for each file."""

    reasons: NDArray[np.str_]  # why a file cannot be used; empty if it can
    sizes: NDArray[np.int32]  # and the following columns as in VideoIndex
    streams: NDArray[np.int16]
    codecs: NDArray[np.str_]
    pixel_formats: NDArray[np.str_]
    rotations: NDArray[np.int16]
    matrices: NDArray[np.int8]
    ranges: NDArray[np.int8]
    timed: NDArray[np.bool_]
    plain: NDArray[np.bool_]
    one_picture: NDArray[np.bool_]
    frames: NDArray[np.int64]  # and the following columns as in Timelines
    tick: NDArray[np.float64]
    first: NDArray[np.int64]
    step: NDArray[np.int64]
    duration: NDArray[np.int64]
    key_frames: Ragged
    variable: Ragged  # ticks from the first frame on; empty for a constant rate

    @staticmethod
    def of(found: Sequence[VideoFacts | str]) -> "FileTable":
        """Return a row for each result of probe."""
        good = [facts for facts in found if not isinstance(facts, str)]
        steps = [_constant_step(facts) for facts in good]
        offsets = [facts.times - facts.times[0] for facts in good]
        files = FileTable(
            reasons=np.array([""] * len(good), dtype=np.str_),
            sizes=np.array([facts.size for facts in good], dtype=np.int32).reshape(-1, 2),
            streams=np.array([facts.stream for facts in good], dtype=np.int16),
            codecs=np.array([facts.codec for facts in good], dtype=np.str_),
            pixel_formats=np.array([facts.pixel_format for facts in good], dtype=np.str_),
            rotations=np.array([facts.rotation for facts in good], dtype=np.int16),
            matrices=np.array([facts.matrix for facts in good], dtype=np.int8),
            ranges=np.array([facts.range for facts in good], dtype=np.int8),
            timed=np.array([facts.timed for facts in good], dtype=np.bool_),
            plain=np.array([facts.plain for facts in good], dtype=np.bool_),
            one_picture=np.array([facts.one_picture for facts in good], dtype=np.bool_),
            frames=np.array([len(facts.times) for facts in good], dtype=np.int64),
            tick=np.array([float(facts.tick) for facts in good], dtype=np.float64),
            first=np.array([facts.times[0] for facts in good], dtype=np.int64),
            step=np.array(steps, dtype=np.int64),
            duration=np.array([facts.end - facts.times[0] for facts in good], dtype=np.int64),
            key_frames=Ragged.of([facts.key_frames for facts in good]),
            variable=Ragged.of([ticks[:0] if step else ticks for step, ticks in zip(steps, offsets, strict=True)]),
        )
        rows = np.array([-1 if isinstance(facts, str) else 0 for facts in found], dtype=np.int64)
        rows[rows == 0] = np.arange(len(good))
        reasons = np.array([facts if isinstance(facts, str) else "" for facts in found], dtype=np.str_)
        return replace(files.take(rows), reasons=reasons)

    def take(self, rows: NDArray[np.int64]) -> "FileTable":
        """Return these rows; zeros and empty arrays where a number is -1."""
        return self._each(lambda name, column: column.take(rows) if name in _RAGGED else take_rows(column, rows))

    def joined(self, other: "FileTable") -> "FileTable":
        """Return the rows of both."""
        return self._each(lambda name, column: _joined(column, getattr(other, name)))

    def _each(self, change: Callable[[str, Any], Any]) -> "FileTable":
        return FileTable(**{name: change(name, column) for name, column in vars(self).items()})

    def columns(self) -> dict[str, NDArray[Any]]:
        """Return plain arrays for the cache; see from_columns."""
        columns = {name: getattr(self, name) for name in _PLAIN}
        for name in _RAGGED:
            ragged: Ragged = getattr(self, name)
            columns |= {f"{name}_values": ragged.values, f"{name}_ends": ragged.ends}
        return columns

    @staticmethod
    def from_columns(columns: dict[str, NDArray[Any]]) -> "FileTable":
        found: dict[str, Any] = {name: columns[name] for name in _PLAIN}
        found |= {name: Ragged(columns[f"{name}_values"], columns[f"{name}_ends"]) for name in _RAGGED}
        return FileTable(**found)


_RAGGED = ("key_frames", "variable")
_PLAIN = tuple(field.name for field in fields(FileTable) if field.name not in _RAGGED)
_COLUMNS = (*_PLAIN, *(f"{name}_{part}" for name in _RAGGED for part in ("values", "ends")))


def probed_files(
    cache_file: Path, names: Names, paths: list[bytes], stamps: NDArray[np.int64], unopened: set[int], threads: int
) -> FileTable:
    """Return what the cache or probing says of each file; zeros for files that cannot be opened."""
    cached = read_cache(cache_file, CACHE_VERSION, _COLUMNS)
    files = FileTable.of([]) if cached is None else FileTable.from_columns(cached.columns)
    rows = np.full(len(names), -1, dtype=np.int64) if cached is None else cached.rows(names, stamps)
    unknown = [i for i in np.flatnonzero(rows < 0).tolist() if i not in unopened]
    silent = len(unknown) <= FEW_FILES
    with progress_bar(len(unknown), "Reading videos", unit="video", silent=silent) as bar:
        for start in range(0, len(unknown), FILES_PER_CACHE_WRITE):
            chunk = unknown[start : start + FILES_PER_CACHE_WRITE]
            found = in_threads(probe, [paths[i] for i in chunk], threads, lambda: bar.update())
            rows[chunk] = np.arange(len(chunk)) + len(files.reasons)
            files = files.joined(FileTable.of(found))
            # What a file's permissions forbid may be allowed later, though the file has not changed.
            known = np.flatnonzero((rows >= 0) & (take_rows(files.reasons, rows) != UNREADABLE))
            columns = {"stamps": stamps[known], **files.take(rows[known]).columns()}
            write_cache(cache_file, CACHE_VERSION, names.take(known), **columns)
    return files.take(rows)


def in_threads(
    work: Callable[[bytes], T], paths: Sequence[bytes], threads: int, after_each: Callable[[], object]
) -> list[T]:
    """Return the results of some work on files, in order; an interrupt cancels what has not begun."""
    pool = ThreadPoolExecutor(threads)
    results = []
    try:
        for result in pool.map(work, paths):
            results.append(result)
            after_each()
    finally:
        pool.shutdown(cancel_futures=True)
    return results


def _constant_step(facts: VideoFacts) -> int:
    """Return the ticks between two frames if they are the same everywhere; otherwise 0."""
    if len(facts.times) == 1:
        return facts.end - int(facts.times[0])
    steps = np.diff(facts.times)
    return int(steps[0]) if (steps == steps[0]).all() else 0


def _joined(first: Any, second: Any) -> Any:
    if isinstance(first, Ragged):
        return Ragged(
            np.concatenate([first.values, second.values]), np.concatenate([first.ends, second.ends + len(first.values)])
        )
    return np.concatenate([first, second])


def _compact(values: NDArray[np.int64]) -> NDArray[np.int32] | NDArray[np.int64]:
    return values.astype(np.int32) if np.abs(values).max(initial=0) < 2**31 else values
