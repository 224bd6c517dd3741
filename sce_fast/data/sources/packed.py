"""Samples that lie in a few large files: where the bytes of each one are. Ten million take half a gigabyte."""

import enum
import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sce_fast.data.sources.names import TOGETHER, LazyNames, Names

BETWEEN = "!"  # stands between the name of a file and the name or number of a sample in it


class Form(enum.IntEnum):
    """How the bytes of a sample are stored. The numbers are in caches."""

    IMAGE = 0  # the content of an image file
    SNAPPY = 1  # inside a compressed span of a Parquet file
    ZSTD = 2
    GZIP = 3
    BROTLI = 4
    LZ4_RAW = 5
    CIFAR = 6  # 32 × 32 pixels, channel by channel, row by row
    STL = 7  # 96 × 96 pixels, channel by channel, column by column


COMPRESSED = frozenset((Form.SNAPPY, Form.ZSTD, Form.GZIP, Form.BROTLI, Form.LZ4_RAW))
WHOLE_PAGES = COMPRESSED - {Form.SNAPPY}  # of which no part can be decompressed alone
PIXELS = {Form.CIFAR: 32, Form.STL: 96}  # form → height and width
_COLUMNS = ("shard", "offset", "length", "form", "inner", "row")  # of Packed: one value or row for each sample


@dataclass(frozen=True)
class Packed:
    """The samples in a list of files; one row for each sample."""

    files: tuple[str, ...]  # relative to the root of the listing
    stamps: NDArray[np.int64]  # (files, 2) modification time and length when the file was read
    shard: NDArray[np.int32]  # (n,) number in files; -1 for a sample that is missing
    offset: NDArray[np.int64]  # (n,) where its bytes begin in the file
    length: NDArray[np.uint32]  # (n,) number of these bytes, 0 for a sample without any
    form: NDArray[np.uint8]  # (n,)
    # (n, 3) for compressed forms: length of the decompressed span, where the image begins in it, and its length.
    inner: NDArray[np.uint32] | None = None
    # Either (n,) the number of each sample in its file, from 0, or its name there.
    row: NDArray[np.int32] | None = None
    members: Names | None = None

    def __len__(self) -> int:
        return len(self.shard)

    @cached_property
    def names(self) -> "PackedNames":
        """Name of each sample: its file, an exclamation mark, and its name or number in the file."""
        return PackedNames(self)

    @cached_property
    def sizes(self) -> NDArray[np.uint32]:
        """(n,) length of each image as a file."""
        if self.inner is None:
            return self.length
        return np.where(np.isin(self.form, list(COMPRESSED)), self.inner[:, 2], self.length).astype(np.uint32)

    @cached_property
    def inner_start(self) -> NDArray[np.uint32]:
        """(n,) where each image begins in what its span holds."""
        return np.zeros(len(self), dtype=np.uint32) if self.inner is None else self.inner[:, 1]

    @cached_property
    def decompressed_share(self) -> float:
        """Bytes that are decompressed for each byte of an image, at most 1 without compression."""
        return (
            1.0 if self.inner is None else float(self.inner[:, 0].sum(dtype=np.int64) / max(int(self.sizes.sum()), 1))
        )

    def member(self, i: int) -> str:
        """Return the name or number of a sample in its file."""
        if self.members is not None:
            return self.members[i]
        assert self.row is not None
        return str(self.row[i])

    def take(self, rows: NDArray[np.int64]) -> "Packed":
        """Return these rows; a missing sample where a number is -1."""
        if len(rows) == len(self) and np.array_equal(rows, np.arange(len(self))):
            return self
        columns: dict[str, Any] = {name: column[rows] for name, column in self._columns()}
        columns["shard"][rows < 0] = -1
        return replace(self, **columns, members=None if self.members is None else self.members.take(rows))

    def of_file(self, number: int, rows: NDArray[np.int64]) -> "Packed":
        """Return these rows, which are samples of one file, as those of this file alone."""
        part = self.take(rows)
        shard, stamps = np.zeros(len(rows), dtype=np.int32), self.stamps[number : number + 1]
        return replace(part, files=(self.files[number],), stamps=stamps, shard=shard)

    def _columns(self) -> Iterator[tuple[str, NDArray[Any]]]:
        """Yield the columns that have one value or row for each sample, but for the names."""
        for name in _COLUMNS:
            if (column := getattr(self, name)) is not None:
                yield name, column

    @staticmethod
    def joined(parts: Sequence["Packed"]) -> "Packed":
        """Return the samples of all parts, which are of one kind and have different files."""
        columns: dict[str, Any] = {}
        for name in ("offset", "length", "form"):
            columns[name] = np.concatenate([getattr(part, name) for part in parts])
        before = np.cumsum([0, *(len(part.files) for part in parts)])
        columns["shard"] = np.concatenate([p.shard + np.int32(n) for p, n in zip(parts, before, strict=False)])
        if any(part.inner is not None for part in parts):
            none = [np.zeros((len(p), 3), np.uint32) if p.inner is None else p.inner for p in parts]
            columns["inner"] = np.concatenate(none)
        if rows := [part.row for part in parts if part.row is not None]:
            columns["row"] = np.concatenate(rows)
        if members := [part.members for part in parts if part.members is not None]:
            columns["members"] = Names.joined(members)
        return Packed(
            files=tuple(file for part in parts for file in part.files),
            stamps=np.concatenate([part.stamps for part in parts]),
            **columns,
        )

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return the columns that are there, and the stamps, for a cache; see from_arrays."""
        found = {"stamps": self.stamps, **dict(self._columns())}
        return found if self.members is None else {**found, "text": self.members.text, "ends": self.members.ends}

    @staticmethod
    def from_arrays(files: Iterable[str], arrays: Mapping[str, NDArray[Any]]) -> "Packed":
        """Return the samples whose arrays have been kept."""
        columns: dict[str, Any] = {name: arrays[name] for name in ("stamps", *_COLUMNS) if name in arrays}
        members = Names(arrays["text"], arrays["ends"]) if "text" in arrays else None
        return Packed(tuple(files), members=members, **columns)


class PackedNames(LazyNames):
    """The names of packed samples."""

    def __init__(self, packed: Packed) -> None:
        self._packed = packed

    def __len__(self) -> int:
        return len(self._packed)

    def name_at(self, i: int) -> str:
        return f"{self._packed.files[self._packed.shard[i]]}{BETWEEN}{self._packed.member(i)}"

    def __iter__(self) -> Iterator[str]:
        packed = self._packed
        members = None if packed.members is None else iter(packed.members)
        for start in range(0, len(packed), TOGETHER):
            part = slice(start, start + TOGETHER)
            files = [f"{packed.files[f]}{BETWEEN}" for f in packed.shard[part].tolist()]
            if members is not None:
                yield from map(operator.add, files, members)
            else:
                assert packed.row is not None
                yield from map(operator.add, files, map(str, packed.row[part].tolist()))
