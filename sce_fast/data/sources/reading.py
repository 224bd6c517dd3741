"""Reading packed samples: spans of open files, and what makes an image file of a span."""

import os
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sce_fast.data.faults import CHANGED_SHARD, DAMAGED, EMPTY, MISSING, status_or_reason
from sce_fast.data.sources.packed import COMPRESSED, PIXELS, Form, Packed

OPEN_FILES = 128  # of a process, which may have 1,024 of all kinds
_UNREADABLE = np.zeros(1, dtype=np.uint8)  # no decoder takes it


class PackedReader:
    """Reads packed samples as the contents of image files; safe to use from several threads.

    Files stay open, so that a sample costs one system call. A file that has changed since it was listed is not read.

    Args:
        root: of the listing.
        packed: the samples.
    """

    def __init__(self, root: Path, packed: Packed) -> None:
        self._root, self._packed, self._files = root, packed, _OpenFiles()

    def content(self, sample: int, limit: int | None = None) -> NDArray[np.uint8]:
        """Return a sample as an image file; a single zero if it cannot be read.

        Args:
            limit: return no more bytes than so many, if that is cheaper.
        """
        p = self._packed
        form, length = Form(int(p.form[sample])), int(p.length[sample])
        if p.shard[sample] < 0 or not length:
            return _UNREADABLE
        if limit is not None and form == Form.IMAGE:
            length = min(length, limit)
        number = int(p.shard[sample])
        span = np.empty(length, dtype=np.uint8)
        try:
            with self._files.opened(os.path.join(self._root, p.files[number]), p.stamps[number]) as descriptor:
                if os.preadv(descriptor, [span.data], int(p.offset[sample])) != length:
                    return _UNREADABLE
            if form in PIXELS:
                return _as_ppm(span, form)
            if form in COMPRESSED:
                assert p.inner is not None
                return _decompressed(span, form, *p.inner[sample].tolist())
        except (OSError, ValueError):
            return _UNREADABLE
        return span

    def refusal(self, sample: int) -> str | None:
        """Return why a sample cannot be read, as far as its file tells; None if it can."""
        return self.file_fault(sample) or span_fault(self._packed, sample)

    def file_fault(self, sample: int) -> str | None:
        """Return why the file of a sample is not the one that was listed; None if it is."""
        number = int(self._packed.shard[sample])
        if number < 0:
            return MISSING
        status = status_or_reason(os.fsencode(os.path.join(self._root, self._packed.files[number])))
        if isinstance(status, str):
            return status
        if tuple(self._packed.stamps[number]) != (status.st_mtime_ns, status.st_size):
            return CHANGED_SHARD
        return None

    def in_file_of(self, sample: int) -> NDArray[np.int64]:
        """Return all samples in the file of a sample."""
        return np.flatnonzero(self._packed.shard == self._packed.shard[sample])


def span_fault(packed: Packed, sample: int) -> str | None:
    """Return what is wrong with the span of a sample that its file should hold, or None."""
    length = int(packed.length[sample])
    if not length:
        return EMPTY
    end = int(packed.offset[sample]) + length
    return DAMAGED if end > packed.stamps[packed.shard[sample], 1] else None


@dataclass
class _Opened:
    descriptor: int
    users: int = 0


class _OpenFiles:
    """File descriptors, of which those that were used last stay open."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._by_path: OrderedDict[str, _Opened] = OrderedDict()

    @contextmanager
    def opened(self, path: str, stamp: NDArray[np.int64]) -> Iterator[int]:
        """Yield the descriptor of a file.

        Raises:
            OSError: it cannot be opened, or it is not the file that has the stamp.
        """
        with self._lock:
            file = self._by_path.get(path)
            if file is None:
                file = self._by_path[path] = _Opened(_open(path, stamp))
            self._by_path.move_to_end(path)
            file.users += 1
            self._close(keep=OPEN_FILES)
        try:
            yield file.descriptor
        finally:
            with self._lock:
                file.users -= 1

    def _close(self, keep: int) -> None:
        for path in list(self._by_path)[: max(len(self._by_path) - keep, 0)]:
            if self._by_path[path].users == 0:
                os.close(self._by_path.pop(path).descriptor)

    def __del__(self) -> None:
        for file in self._by_path.values():
            with suppress(OSError):
                os.close(file.descriptor)


def _open(path: str, stamp: NDArray[np.int64]) -> int:
    descriptor = os.open(path, os.O_RDONLY)
    status = os.fstat(descriptor)
    if (status.st_mtime_ns, status.st_size) != tuple(stamp):
        os.close(descriptor)
        raise OSError(f"{path} has changed since it was listed")
    return descriptor


def _as_ppm(span: NDArray[np.uint8], form: Form) -> NDArray[np.uint8]:
    """Return pixels as a PPM file, which any decoder turns into the same pixels."""
    side = PIXELS[form]
    pixels = span.reshape(3, side, side).transpose((1, 2, 0) if form == Form.CIFAR else (2, 1, 0))
    header = np.frombuffer(f"P6\n{side} {side}\n255\n".encode(), dtype=np.uint8)
    return np.concatenate([header, pixels.reshape(-1)])


def _decompressed(span: NDArray[np.uint8], form: Form, whole: int, start: int, length: int) -> NDArray[np.uint8]:
    """Return an image of a compressed span.

    Raises:
        OSError: the span is damaged.
    """
    import pyarrow

    content = varint(whole) + span.tobytes() if form == Form.SNAPPY else span
    buffer = pyarrow.decompress(content, decompressed_size=whole, codec=form.name.lower())
    return np.frombuffer(buffer, dtype=np.uint8)[start : start + length]


def varint(number: int) -> bytes:
    """Return a number as Snappy and Thrift write it: seven bits a byte, the lowest first."""
    found = bytearray()
    while number > 127:
        found.append(number & 127 | 128)
        number >>= 7
    return bytes([*found, number])
