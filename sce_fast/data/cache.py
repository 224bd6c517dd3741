"""Caches of what reading a data set has found, in a format that cannot hold code."""

import fcntl
import hashlib
import os
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


def take_rows(column: NDArray[Any], rows: NDArray[np.int64]) -> NDArray[Any]:
    """Return these rows of a column; zeros where a number is -1."""
    taken = np.zeros((len(rows), *column.shape[1:]), dtype=column.dtype)
    taken[rows >= 0] = column[rows[rows >= 0]]
    return taken


@dataclass(frozen=True)
class Cached:
    """The content of a cache: columns with a row for each file."""

    names: list[bytes]
    stamps: NDArray[np.int64]  # (n, 2)
    columns: dict[str, NDArray[Any]]

    def rows(self, names: Sequence[str], stamps: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the row of each file; -1 for files that are new or changed."""
        known = {name: i for i, name in enumerate(self.names)}
        rows = np.array([known.get(os.fsencode(name), -1) for name in names], dtype=np.int64)
        same = (take_rows(self.stamps, rows) == stamps).all(axis=1)
        return np.where(same, rows, -1)


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
    try:
        with np.load(cache_file, allow_pickle=False) as cached:
            if int(cached["version"]) != version:
                return None
            names = cached["names"].tobytes().split(b"\0")
            wanted = [name.removesuffix("?") for name in columns if not name.endswith("?") or name[:-1] in cached]
            found = Cached(names, cached["stamps"], {name: cached[name] for name in wanted})
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile):
        return None
    return found if found.stamps.shape == (len(names), 2) else None


def write_cache(cache_file: Path, version: int, names: Sequence[str], **columns: Any) -> None:
    """Write a cache atomically; a cache that cannot be written is ignored."""
    joined = np.frombuffer(b"\0".join(os.fsencode(name) for name in names), dtype=np.uint8)
    temporary = cache_file.with_name(f".{cache_file.stem}.{os.getpid()}.npz")
    with suppress(OSError):  # optional: a read-only home folder must not stop a run
        cache_file.parent.mkdir(parents=True, exist_ok=True)
        np.savez(temporary, version=version, names=joined, **columns)
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
