"""The pages of a column of a Parquet table: where the bytes of each value are in the file.

pyarrow reads whole groups of rows, some hundred images for one of them. Values of plain pages lie in the file as they
are. Snappy compresses spans of 64 KiB without regard to those before, so that an image is read by the few spans that
hold it. Pages of other compressions are read and decompressed whole.
"""

import os
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sce_fast.data.sources.packed import Form
from sce_fast.data.sources.thrift import read_struct

DATA, DICTIONARY, DATA_V2 = 0, 2, 3  # types of pages
PLAIN, PLAIN_DICTIONARY, RLE_DICTIONARY = 0, 2, 8  # encodings
FRAGMENT = 65536  # bytes that Snappy compresses on their own
_HEADER_BYTES = 1024  # more than most headers of pages


class Value(NamedTuple):
    """Where a value is: the bytes to read, and the part of them that it is once they are decompressed."""

    offset: int
    length: int
    whole: int  # bytes after decompression
    start: int
    size: int
    form: Form


ABSENT = Value(0, 0, 0, 0, 0, Form.IMAGE)


class Pages:
    """Iterates over the pages of a column chunk as lists of values; ABSENT for nulls.

    Args:
        descriptor: of the file.
        chunk: pyarrow's metadata of the column chunk.
        form: of its pages.
        levels: highest definition level, which a value that is not null has.

    Raises:
        ValueError, IndexError, OSError: on iterating, a page is damaged.
        NotImplementedError: the values are encoded in another way.
    """

    def __init__(self, descriptor: int, chunk: Any, *, form: Form, levels: int) -> None:
        self._descriptor, self._form, self._levels, self._chunk = descriptor, form, levels, chunk
        self._dictionary: list[Value] = []

    def __iter__(self) -> Iterator[list[Value]]:
        chunk, done = self._chunk, 0
        offset = chunk.data_page_offset
        if chunk.has_dictionary_page and chunk.dictionary_page_offset:
            offset = min(offset, chunk.dictionary_page_offset)
        while done < chunk.num_values:
            header, start = self._header(offset)
            length = header[3]
            offset = start + length
            if header[1] == DICTIONARY:
                body = _Body(self._read(start, length), start, header[2], self._form)
                self._dictionary = body.plain(0, header[7][1])
            elif header[1] in (DATA, DATA_V2):
                values = self._values(header, start, length)
                done += len(values)
                yield values

    def _values(self, header: dict[int, Any], start: int, length: int) -> list[Value]:
        is_first = header[1] == DATA
        page = header[5] if is_first else header[8]
        count, encoding = page[1], page[2] if is_first else page[4]
        stored = self._read(start, length)
        if is_first:
            body = _Body(stored, start, header[2], self._form)
            first = 4 + int.from_bytes(body.content[:4], "little") if self._levels else 0
            levels = body.content[4:first]
        else:  # the levels are not compressed, and the values need not be
            first, before = 0, page.get(6, 0) + page.get(5, 0)
            form = self._form if page.get(7, True) else Form.IMAGE
            body = _Body(stored[before:], start + before, header[2] - before, form)
            levels = stored[page.get(6, 0) : before]
        present = np.ones(count, dtype=np.bool_)
        if self._levels:
            present = hybrid(levels, int(self._levels).bit_length(), count) == self._levels
        there = int(present.sum())
        if encoding == PLAIN:
            found = body.plain(first, there)
        elif encoding in (PLAIN_DICTIONARY, RLE_DICTIONARY):
            width = body.content[first] if there else 0
            found = [self._dictionary[i] for i in hybrid(body.content[first + 1 :], width, there).tolist()]
        else:
            raise NotImplementedError(f"stored in Parquet's encoding number {encoding}")
        rest = iter(found)
        return [next(rest) if is_there else ABSENT for is_there in present.tolist()]

    def _header(self, offset: int) -> tuple[dict[int, Any], int]:
        """Return the header of the page that begins at an offset, and where its content begins."""
        wanted = _HEADER_BYTES
        while True:
            content = os.pread(self._descriptor, wanted, offset)
            try:
                header, end = read_struct(content)
                return header, offset + end
            except IndexError:
                if len(content) < wanted:
                    raise
                wanted *= 16

    def _read(self, offset: int, length: int) -> bytes:
        content = os.pread(self._descriptor, length, offset)
        if len(content) < length:
            raise ValueError(f"the file ends within {length} bytes at {offset}")
        return content


class _Body:
    """The decompressed content of a page, and where its parts are in the file."""

    def __init__(self, stored: bytes, offset: int, size: int, form: Form) -> None:
        self._offset, self._size, self._stored = offset, size, len(stored)
        self._fragments: NDArray[np.int64] | None = None  # where each begins in the page as it is stored
        self._form = form
        if form == Form.IMAGE:
            self.content = stored
            return
        import pyarrow

        codec = form.name.lower()
        self.content = pyarrow.decompress(stored, decompressed_size=size, codec=codec, asbytes=True) if size else b""
        if form == Form.SNAPPY:
            self._fragments = snappy_fragments(stored)

    def plain(self, first: int, count: int) -> list[Value]:
        """Return the places of values that stand one after another, each behind its length."""
        content, found, position = self.content, [], first
        for _ in range(count):
            size = int.from_bytes(content[position : position + 4], "little")
            position += 4
            if position + size > len(content):
                raise ValueError("a value is longer than its page")
            found.append(self._place(position, size))
            position += size
        return found

    def _place(self, position: int, size: int) -> Value:
        if not size:
            return ABSENT
        if self._form == Form.IMAGE:
            return Value(self._offset + position, size, size, 0, size, self._form)
        if self._fragments is None:
            return Value(self._offset, self._stored, self._size, position, size, self._form)
        first, last = position // FRAGMENT, (position + size - 1) // FRAGMENT + 1
        begin, end = self._fragments[first], self._fragments[last]
        whole = min(last * FRAGMENT, self._size) - first * FRAGMENT
        start = position - first * FRAGMENT
        return Value(self._offset + int(begin), int(end - begin), whole, start, size, self._form)


def snappy_fragments(stored: bytes) -> NDArray[np.int64] | None:
    """Return where each FRAGMENT begins in a Snappy stream, and where the stream ends; None if they are not apart."""
    position, size, shift = 0, 0, 0
    while True:  # the length, seven bits a byte
        byte = stored[position]
        size |= (byte & 127) << shift
        position, shift = position + 1, shift + 7
        if byte < 128:
            break
    begins, done, end = [position], 0, len(stored)
    while position < end:
        tag = stored[position]
        if not tag & 3:  # a literal: bytes as they are
            length, extra = (tag >> 2) + 1, 0
            if length > 60:
                extra = length - 60
                length = int.from_bytes(stored[position + 1 : position + 1 + extra], "little") + 1
            position += 1 + extra + length
        else:  # a copy of earlier bytes
            if tag & 3 == 1:
                length, extra = (tag >> 2 & 7) + 4, 1
                back = (tag >> 5) << 8 | stored[position + 1]
            else:
                length, extra = (tag >> 2) + 1, 2 if tag & 3 == 2 else 4
                back = int.from_bytes(stored[position + 1 : position + 1 + extra], "little")
            if back > done % FRAGMENT:
                return None
            position += 1 + extra
        if done % FRAGMENT + length > FRAGMENT:
            return None
        done += length
        if done % FRAGMENT == 0 or done == size:
            begins.append(position)
    return np.array(begins, dtype=np.int64) if done == size else None


def hybrid(content: bytes, width: int, count: int) -> NDArray[np.int64]:
    """Return numbers of so many bits that Parquet stores as runs of one value and as packed groups of eight.

    Raises:
        IndexError, ValueError: there are too few.
    """
    found: list[NDArray[np.int64]] = []
    position, have, size = 0, 0, (width + 7) // 8
    while have < count:
        head, shift = 0, 0
        while True:
            byte = content[position]
            head |= (byte & 127) << shift
            position, shift = position + 1, shift + 7
            if byte < 128:
                break
        if head & 1:
            groups = head >> 1
            if width == 0:
                values = np.zeros(8 * groups, dtype=np.int64)
            else:
                packed = np.frombuffer(content[position : position + groups * width], dtype=np.uint8)
                bits = np.unpackbits(packed, bitorder="little").reshape(-1, width)
                values = bits.astype(np.int64) @ (1 << np.arange(width, dtype=np.int64))
            position += groups * width
        else:
            value = int.from_bytes(content[position : position + size], "little")
            values = np.full(min(head >> 1, count - have), value, dtype=np.int64)
            position += size
        if not len(values):
            raise ValueError("a run of no numbers")
        found.append(values)
        have += len(values)
    return np.concatenate([np.zeros(0, dtype=np.int64), *found])[:count]
