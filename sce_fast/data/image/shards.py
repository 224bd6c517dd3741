"""The index of images in shards: where they are, what their headers say, cached for each file."""

import json
import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sce_fast.data.cache import one_at_a_time, read_cache, write_cache
from sce_fast.data.faults import status_or_reason
from sce_fast.data.image.files import ImageFiles
from sce_fast.data.sources.listing import Listing
from sce_fast.data.sources.names import Names
from sce_fast.data.sources.packed import PIXELS, Packed
from sce_fast.data.sources.reading import PackedReader, span_fault
from sce_fast.data.sources.scanned import Scanned, joined
from sce_fast.data.sources.shards import Shards, scan_file
from sce_fast.util.files import printable
from sce_fast.util.terminal import progress_bar

CACHE_VERSION = 3
HEADER_BYTES = 65536  # of a JPEG, whose size stands before its pixels; others may keep their orientation at the end
HEADERS_PER_BATCH = 256
FEW_FILES = 4  # read without a progress bar
SECONDS_PER_CACHE_WRITE = 60
_JPEG = b"\xff\xd8\xff"
_PACKED = ("shard", "offset", "length", "form", "inner?", "row?", "text?", "ends?")  # see Packed.arrays
_COLUMNS = (*_PACKED, "labels", "sizes", "traits", "notes")


class _Known(NamedTuple):
    """What is known of some files: their samples, and the headers of these."""

    scanned: Scanned
    sizes: NDArray[np.int32]  # (n, 2)
    traits: NDArray[np.uint8]  # (n,)


def read_shards(
    shards: Shards, cache_file: Path, *, threads: int = 2
) -> tuple[Listing, NDArray[np.int32], NDArray[np.uint8], dict[int, str]]:
    """Return the listing of some shards, the sizes and traits of its images, and the bad ones' reasons.

    Files that did not change since are not read again.

    Raises:
        ValueError: no file can be read, or none holds an image.
        ImportError: see scan_file.
    """
    stamps, faults = {}, dict(shards.missing)
    for name in shards.names:
        status = status_or_reason(os.fsencode(shards.root / name))
        if isinstance(status, str):
            faults[name] = status
        else:
            stamps[name] = status.st_mtime_ns, status.st_size
    if not stamps:
        raise _nothing(shards, faults)
    with one_at_a_time(cache_file):
        cached = _cached(cache_file)
        if cached is None or _stamps_of(cached) != stamps:
            cached = _read(shards.root, cache_file, stamps, {} if cached is None else _by_file(cached), threads)
    scanned, sizes, traits = cached
    faults |= scanned.faults
    if not len(scanned.packed):
        raise _nothing(shards, faults)
    labels, classes = scanned.labelled()
    listing = Listing(
        shards.root,
        scanned.packed.names,
        labels,
        classes,
        source=shards.source,
        ignored=sum(map(Counter, scanned.ignored.values()), Counter()),
        unreadable=faults,
        packed=scanned.packed,
        others=shards.others,
        unlabelled=scanned.describe_unlabelled(),
    )
    files = ImageFiles(listing)
    bad = {i: files.failure_reason(i) for i in np.flatnonzero(sizes[:, 0] == 0).tolist()}
    return listing, sizes, traits, bad


def _read(
    root: Path, cache_file: Path, stamps: Mapping[str, tuple[int, int]], known: dict[str, _Known], threads: int
) -> _Known:
    """Return what is known of all files, after reading those that are new or have changed, and write the cache."""
    found: list[_Known] = []
    headers, written = _Headers(root, threads), time.monotonic()
    with progress_bar(len(stamps), "Reading shards", unit="file", silent=len(stamps) - len(known) < FEW_FILES) as bar:
        for name, stamp in stamps.items():
            before = known.get(name)
            if before is None or _stamps_of(before)[name] != stamp:
                scanned = scan_file(root, name, stamp)
                before = _Known(scanned, *headers.read(scanned.packed))
            found.append(before)
            bar.update()
            if time.monotonic() - written > SECONDS_PER_CACHE_WRITE:
                _write(cache_file, _joined(found))
                written = time.monotonic()
    everything = _joined(found)
    _write(cache_file, everything)
    return everything


class _Headers:
    """Reads the headers of packed images."""

    def __init__(self, root: Path, threads: int) -> None:
        self._root, self._threads = root, threads

    def read(self, packed: Packed) -> tuple[NDArray[np.int32], NDArray[np.uint8]]:
        """Return what read_headers returns of files."""
        sizes, traits = np.zeros((len(packed), 2), dtype=np.int32), np.zeros(len(packed), dtype=np.uint8)
        for form, side in PIXELS.items():
            sizes[packed.form == form] = side
        is_whole = np.array([span_fault(packed, sample) is None for sample in range(len(packed))], dtype=np.bool_)
        sizes[~is_whole] = 0
        reader = PackedReader(self._root, packed)
        unknown = np.flatnonzero(~np.isin(packed.form, list(PIXELS)) & is_whole)
        for start in range(0, len(unknown), HEADERS_PER_BATCH):
            some = unknown[start : start + HEADERS_PER_BATCH]
            contents = [_beginning(reader, sample) for sample in some.tolist()]
            its_sizes, traits[some] = self._sizes.headers(contents)
            cut = [i for i in np.flatnonzero(its_sizes[:, 0] == 0).tolist() if len(contents[i]) == HEADER_BYTES]
            if cut:
                its_sizes[cut] = self._sizes.sizes([reader.content(sample) for sample in some[cut].tolist()])
            sizes[some] = its_sizes
        unreadable = sizes.min(axis=1, initial=1) == 0
        sizes[unreadable], traits[unreadable] = 0, 0
        return sizes, traits

    @cached_property
    def _sizes(self) -> Any:
        from sce_fast.data.image.sizes import SizeReader

        return SizeReader(decode=False, contents=True, batch_size=HEADERS_PER_BATCH, threads=self._threads)


def _beginning(reader: PackedReader, sample: int) -> NDArray[np.uint8]:
    """Return the first bytes of a JPEG, or the whole content of another image."""
    content = reader.content(sample, HEADER_BYTES)
    is_cut = len(content) == HEADER_BYTES and content[:3].tobytes() != _JPEG
    return reader.content(sample) if is_cut else content


def _joined(parts: Sequence[_Known]) -> _Known:
    return _Known(
        joined([part.scanned for part in parts]),
        np.concatenate([part.sizes for part in parts]),
        np.concatenate([part.traits for part in parts]),
    )


def _stamps_of(known: _Known) -> dict[str, tuple[int, int]]:
    packed = known.scanned.packed
    return {name: (time, length) for name, (time, length) in zip(packed.files, packed.stamps.tolist(), strict=True)}


def _by_file(known: _Known) -> dict[str, _Known]:
    """Return what is known of each file. The samples of a file stand together, and the files are in their order."""
    scanned = known.scanned
    packed, found = scanned.packed, {}
    ends = np.searchsorted(packed.shard, np.arange(len(packed.files)), side="right").tolist()
    for number, (start, end) in enumerate(zip([0, *ends], ends, strict=False)):
        rows = slice(start, end)
        name = packed.files[number]
        part = replace(
            scanned,
            packed=packed.of_file(number, np.arange(start, end)),
            labels=scanned.labels[rows],
            faults={name: scanned.faults[name]} if name in scanned.faults else {},
            ignored={name: scanned.ignored[name]} if name in scanned.ignored else {},
        )
        found[name] = _Known(part, known.sizes[rows], known.traits[rows])
    return found


def _cached(cache_file: Path) -> _Known | None:
    cached = read_cache(cache_file, CACHE_VERSION, _COLUMNS)
    if cached is None:
        return None
    columns = cached.columns
    notes = json.loads(columns["notes"].tobytes())
    packed = Packed.from_arrays(cached.names, {"stamps": cached.stamps, **columns})
    scanned = Scanned(packed, columns["labels"], tuple(notes["classes"]), notes["faults"], notes["ignored"])
    return _Known(scanned, columns["sizes"], columns["traits"])


def _write(cache_file: Path, known: _Known) -> None:
    scanned = known.scanned
    notes = {"classes": scanned.classes, "faults": dict(scanned.faults), "ignored": dict(scanned.ignored)}
    write_cache(
        cache_file,
        CACHE_VERSION,
        Names.of(scanned.packed.files),
        **scanned.packed.arrays(),
        labels=scanned.labels,
        sizes=known.sizes,
        traits=known.traits,
        notes=np.frombuffer(json.dumps(notes).encode(), dtype=np.uint8),
    )


def _nothing(shards: Shards, faults: Mapping[str, str]) -> ValueError:
    names = ", ".join(map(printable, shards.names[:5])) + (", …" if len(shards.names) > 5 else "")
    reasons = [f"{printable(name)}: {reason}" for name, reason in faults.items()]
    return ValueError("; ".join([f"{printable(shards.source or shards.root)}: no images found in {names}", *reasons]))
