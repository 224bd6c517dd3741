"""Samples that lie in a few large files: where the bytes of each one are. Ten million take half a gigabyte."""

import enum
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

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
    # Either (n,) the number of each sample in its file, from 0, or all names one after another and (n,) their ends.
    row: NDArray[np.int32] | None = None
    text: NDArray[np.uint8] | None = None
    ends: NDArray[np.int64] | None = None

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
        if self.row is not None:
            return str(self.row[i])
        assert self.text is not None
        assert self.ends is not None
        start = self.ends[i - 1] if i else 0
        return os.fsdecode(self.text[start : self.ends[i]].tobytes())

    def take(self, rows: NDArray[np.int64]) -> "Packed":
        """Return these rows; a missing sample where a number is -1."""
        if len(rows) == len(self) and np.array_equal(rows, np.arange(len(self))):
            return self
        columns: dict[str, Any] = {name: column[rows] for name, column in self._columns()}
        columns["shard"][rows < 0] = -1
        if self.text is None or self.ends is None:
            return replace(self, **columns)
        starts = np.concatenate([np.zeros(1, dtype=np.int64), self.ends])[:-1]
        lengths = np.where(rows < 0, 0, (self.ends - starts)[rows])
        ends = np.cumsum(lengths, dtype=np.int64)
        places = np.repeat(starts[rows] - (ends - lengths), lengths) + np.arange(lengths.sum())
        return replace(self, **columns, text=self.text[places], ends=ends)

    def of_file(self, number: int, rows: NDArray[np.int64]) -> "Packed":
        """Return these rows, which are samples of one file, as those of this file alone."""
        part = self.take(rows)
        shard, stamps = np.zeros(len(rows), dtype=np.int32), self.stamps[number : number + 1]
        return replace(part, files=(self.files[number],), stamps=stamps, shard=shard)

    def _columns(self) -> Iterator[tuple[str, NDArray[Any]]]:
        """Yield the columns that have one value or row for each sample, but for the names."""
        for name in ("shard", "offset", "length", "form", "inner", "row"):
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
        rows = [part.row for part in parts if part.row is not None]
        texts = [part.text for part in parts if part.text is not None]
        ends = [part.ends for part in parts if part.ends is not None]
        if rows:
            columns["row"] = np.concatenate(rows)
        else:
            bytes_before = np.cumsum([0, *map(len, texts)])
            columns["text"] = np.concatenate(texts)
            columns["ends"] = np.concatenate([e + n for e, n in zip(ends, bytes_before, strict=False)])
        return Packed(
            files=tuple(file for part in parts for file in part.files),
            stamps=np.concatenate([part.stamps for part in parts]),
            **columns,
        )

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return the columns that are there, and the stamps, for a cache."""
        found = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "files"}
        return {name: array for name, array in found.items() if array is not None}


class PackedNames(Sequence[str]):
    """The names of packed samples as strings, made when they are asked for."""

    def __init__(self, packed: Packed) -> None:
        self._packed = packed

    def __len__(self) -> int:
        return len(self._packed)

    @overload
    def __getitem__(self, i: int) -> str: ...

    @overload
    def __getitem__(self, i: slice) -> list[str]: ...

    def __getitem__(self, i: int | slice) -> str | list[str]:
        if isinstance(i, slice):
            return [self[k] for k in range(len(self))[i]]
        i = range(len(self))[i]  # as a list counts from the end, and refuses
        return f"{self._packed.files[self._packed.shard[i]]}{BETWEEN}{self._packed.member(i)}"

    def __iter__(self) -> Iterator[str]:
        packed, chunk = self._packed, 65536
        for start in range(0, len(packed), chunk):
            part = slice(start, start + chunk)
            files = [f"{packed.files[f]}{BETWEEN}" for f in packed.shard[part].tolist()]
            if packed.row is not None:
                yield from (file + str(row) for file, row in zip(files, packed.row[part].tolist(), strict=True))
                continue
            assert packed.text is not None
            assert packed.ends is not None
            first = int(packed.ends[start - 1]) if start else 0
            ends = (packed.ends[part] - first).tolist()
            text = packed.text[first : first + ends[-1]].tobytes()
            for file, begin, end in zip(files, [0, *ends], ends, strict=False):
                yield file + os.fsdecode(text[begin:end])

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, str):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    def __repr__(self) -> str:
        return f"<{len(self)} names>"
