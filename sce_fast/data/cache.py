"""Caches of what reading a data set has found, in a format that cannot hold code."""

import fcntl
import hashlib
import os
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sce_fast.data.sources.names import Names

# What reading a cache raises if there is none, or if it is damaged.
_NO_CACHE = (OSError, EOFError, ValueError, KeyError, IndexError, NotImplementedError, zipfile.BadZipFile)


def take_rows(column: NDArray[Any], rows: NDArray[np.int64]) -> NDArray[Any]:
    """Return these rows of a column; zeros where a number is -1."""
    taken = np.zeros((len(rows), *column.shape[1:]), dtype=column.dtype)
    taken[rows >= 0] = column[rows[rows >= 0]]
    return taken


@dataclass(frozen=True)
class Cached:
    """The content of a cache: columns with a row for each file."""

    names: Names
    stamps: NDArray[np.int64]  # (n, 2)
    columns: dict[str, NDArray[Any]]

    def rows(self, names: Names, stamps: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the row of each file; -1 for files that are new or changed."""
        rows = self.names.find(names)
        return np.where((take_rows(self.stamps, rows) == stamps).all(axis=1), rows, -1)


def cache_file_of(path: str | Path, cache: Path | None, kind: str = "") -> Path:
    """Return the file that caches what is known of a data set.

    Args:
        path: of the data set.
        cache: folder of the cache; None as for index_images.
        kind: tells apart the caches of one path.
    """
    name = hashlib.sha256(os.fsencode(Path(path).resolve())).hexdigest()[:24]
    return (cache or _cache_folder()) / f"{name}{kind}.npz"


def _cache_folder() -> Path:
    if named := os.environ.get("SCE_FAST_CACHE"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sce_fast" / "index"


def read_cache(cache_file: Path, version: int, columns: Iterable[str]) -> Cached | None:
    """Return the content of a cache; None if there is none, or if it is damaged or of another version.

    Args:
        columns: names of the columns; those that end in a question mark may be missing.
    """
    with suppress(*_NO_CACHE), _opened(cache_file, version) as cached:
        wanted = [name.removesuffix("?") for name in columns if not name.endswith("?") or name[:-1] in cached]
        names = Names(cached["names"], cached["name_ends"])
        found = Cached(names, cached["stamps"], {name: cached[name] for name in wanted})
        return found if found.stamps.shape == (len(names), 2) else None
    return None


def cached_columns(
    cache_file: Path, version: int, columns: Iterable[str], names: Names, stamps: NDArray[np.int64]
) -> dict[str, NDArray[Any]] | None:
    """Return columns of a cache with a row for each of some files, zeros for those that are new or have changed.

    None if there is no cache; see read_cache. If the names are those of the cache, they are not read, and one column is
    in memory at a time beside the result.
    """
    with suppress(*_NO_CACHE), _opened(cache_file, version) as cached:
        known = cached["digest"].tobytes() == names.digest()
        rows = None if known else Names(cached["names"], cached["name_ends"]).find(names)
        same = (_of_rows(cached["stamps"], rows, len(names)) == stamps).all(axis=1)
        found = {}
        for name in columns:
            found[name] = _of_rows(cached[name], rows, len(names))
            found[name][~same] = 0
        return found
    return None


def _of_rows(column: NDArray[Any], rows: NDArray[np.int64] | None, count: int) -> NDArray[Any]:
    """Return these rows of a column, or all, of which there must be `count`."""
    if rows is not None:
        return take_rows(column, rows)
    if len(column) != count:
        raise ValueError
    return column


@contextmanager
def _opened(cache_file: Path, version: int) -> Iterator[Mapping[str, NDArray[Any]]]:
    """Open a cache, which reads a column whenever it is asked for one; one of _NO_CACHE is raised if it cannot."""
    with np.load(cache_file, allow_pickle=False) as cached:
        if int(cached["version"]) != version:
            raise ValueError
        yield cached


def write_cache(cache_file: Path, version: int, names: Names, **columns: Any) -> None:
    """Write a cache atomically; a cache that cannot be written is ignored."""
    columns |= {"names": names.text, "name_ends": names.ends, "digest": np.frombuffer(names.digest(), np.uint8)}
    temporary = cache_file.with_name(f".{cache_file.stem}.{os.getpid()}.npz")
    with suppress(OSError):  # optional: a read-only home folder must not stop a run
        cache_file.parent.mkdir(parents=True, exist_ok=True)
        np.savez(temporary, version=version, **columns)
        os.replace(temporary, cache_file)
    with suppress(OSError):
        temporary.unlink()


@contextmanager
def one_at_a_time(cache_file: Path) -> Iterator[None]:
    """Let one process at a time fill a cache, so that the ranks of a machine do not all read the same shards."""
    descriptor = -1
    with suppress(OSError):  # a folder that cannot be written, or a file system without locks
        cache_file.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(cache_file.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o666)
        fcntl.lockf(descriptor, fcntl.LOCK_EX)
    try:
        yield
    finally:
        if descriptor >= 0:
            os.close(descriptor)
