"""Names in one piece of memory. Ten million as long as ImageNet's take 0.4 GB; strings would take 1 GB."""

import hashlib
import itertools
import os
from abc import abstractmethod
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import overload

import numpy as np
from numpy.typing import NDArray

TOGETHER = 65536  # names that are strings at a time


class LazyNames(Sequence[str]):
    """A sequence of strings that are made when they are asked for. Subclasses have a length and make one string."""

    @abstractmethod
    def name_at(self, i: int) -> str:
        """Return string i, which is in range(len(self))."""

    @overload
    def __getitem__(self, i: int) -> str: ...

    @overload
    def __getitem__(self, i: slice) -> list[str]: ...

    def __getitem__(self, i: int | slice) -> str | list[str]:
        numbers = range(len(self))  # counts from the end and refuses as a list does
        return [self.name_at(k) for k in numbers[i]] if isinstance(i, slice) else self.name_at(numbers[i])

    def encoded(self) -> Iterator[bytes]:
        """Yield the bytes of each string."""
        return map(os.fsencode, self)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, str):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    def __repr__(self) -> str:
        return f"<{len(self)} names>"


class Names(LazyNames):
    """Names as bytes, one after another.

    Args:
        text: (bytes,) all names.
        ends: (n,) where each name ends in the text.
    """

    def __init__(self, text: NDArray[np.uint8], ends: NDArray[np.int64]) -> None:
        self.text, self.ends = text, ends

    @staticmethod
    def of(names: Iterable[str | bytes]) -> "Names":
        """Return names, which are taken one by one.

        Example:
            >>> list(Names.of(["a.jpg", "b.jpg"]))
            ['a.jpg', 'b.jpg']
        """
        found = NamesBuilder()
        found.extend(names)
        return found.names()

    @staticmethod
    def joined(parts: Sequence["Names"]) -> "Names":
        """Return the names of all parts."""
        before = np.cumsum([0, *(len(part.text) for part in parts)])
        ends = [part.ends + start for part, start in zip(parts, before, strict=False)]
        return Names(np.concatenate([part.text for part in parts]), np.concatenate(ends))

    def __len__(self) -> int:
        return len(self.ends)

    def name_at(self, i: int) -> str:
        return os.fsdecode(self._encoded(i))

    def __iter__(self) -> Iterator[str]:
        return map(os.fsdecode, self.encoded())

    def encoded(self) -> Iterator[bytes]:
        for start in range(0, len(self), TOGETHER):
            first = int(self.ends[start - 1]) if start else 0
            ends = (self.ends[start : start + TOGETHER] - first).tolist()
            text = self.text[first : first + ends[-1]].tobytes()
            yield from (text[begin:end] for begin, end in zip([0, *ends], ends, strict=False))

    def digest(self) -> bytes:
        """Return a hash of the names and their order."""
        digest = hashlib.sha256(self.text.data)
        digest.update(self.ends.data)
        return digest.digest()

    def take(self, rows: NDArray[np.int64]) -> "Names":
        """Return these names; an empty one where a number is -1."""
        text, ends = bytearray(), np.empty(len(rows), dtype=np.int64)
        for first in range(0, len(rows), TOGETHER):  # the place of each byte takes eight times the memory of the text
            some = rows[first : first + TOGETHER]
            starts = np.where(some > 0, self.ends[(some - 1).clip(min=0)], 0)
            lengths = np.where(some < 0, 0, self.ends[some] - starts)
            stops = np.cumsum(lengths)
            places = np.repeat(starts - (stops - lengths), lengths) + np.arange(stops[-1])
            ends[first : first + TOGETHER] = len(text) + stops
            text += self.text[places].tobytes()
        return Names(np.frombuffer(text, dtype=np.uint8), ends)

    def find(self, names: "Names") -> NDArray[np.int64]:
        """Return the number here of each of some names; -1 for a name that is not here. Of equal names, one is found.

        Dictionaries of ten million names would take 2 GB.
        """
        if not len(self):
            return np.full(len(names), -1, dtype=np.int64)
        mine = _hashes(self)
        order = np.argsort(mine)
        rows = order[np.searchsorted(mine, _hashes(names), sorter=order).clip(max=len(mine) - 1)]
        pairs = zip(rows.tolist(), names.encoded(), strict=True)
        same = np.fromiter((self._encoded(i) == name for i, name in pairs), dtype=np.bool_, count=len(names))
        return np.where(same, rows, -1)

    def _encoded(self, i: int) -> bytes:
        return self.text[self.ends[i - 1] if i else 0 : self.ends[i]].tobytes()


class NamesBuilder:
    """Collects names without ever holding many strings, or two copies of their text."""

    def __init__(self) -> None:
        self._text, self._lengths = bytearray(), array("i")

    def extend(self, names: Iterable[str | bytes]) -> int:
        """Add names, which are taken one by one, and return their number."""
        before, remaining = len(self._lengths), iter(names)
        while some := list(map(os.fsencode, itertools.islice(remaining, TOGETHER))):
            self._text += b"".join(some)
            self._lengths.extend(map(len, some))
        return len(self._lengths) - before

    def names(self) -> Names:
        """Return the names; none can be added after it."""
        lengths = np.frombuffer(self._lengths, dtype=np.int32)
        return Names(np.frombuffer(self._text, dtype=np.uint8), np.cumsum(lengths, dtype=np.int64))


def _hashes(names: Names) -> NDArray[np.int64]:
    return np.fromiter(map(hash, names.encoded()), dtype=np.int64, count=len(names))
