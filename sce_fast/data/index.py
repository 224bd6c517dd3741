"""The files of a data set and what their headers say, listed once and cached in a format that cannot hold code."""

import hashlib
import itertools
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from sce_fast.data.cache import cache_file_of, cached_columns, take_rows, write_cache
from sce_fast.data.faults import MISSING, evaluation_refusal
from sce_fast.data.image.alpha import Trait
from sce_fast.data.image.background import BLACK, NONE, Color, background_color
from sce_fast.data.image.files import ImageFiles
from sce_fast.data.image.formats import decode_failure_reason
from sce_fast.data.image.shards import read_shards
from sce_fast.data.sources import Listing, Shards, find_shards, list_images
from sce_fast.data.stamps import content_stamps, file_stamps
from sce_fast.util.terminal import progress_bar

CACHE_VERSION = 4
HASHED_TOGETHER = 4096
HEADERS_PER_BATCH = 256


class Index(ABC):
    """The files of a data set in a fixed order, and their headers. Subclasses add columns, one row a sample."""

    kind: ClassVar[str]  # of the samples, in messages: "images" or "videos"
    listing: Listing
    sizes: NDArray[np.int32]  # (n, 2) height, width; 0 for bad files
    bad: dict[int, str]  # sample → reason

    @abstractmethod
    def rows(self, rows: NDArray[np.int64], listing: Listing, bad: dict[int, str]) -> Self:
        """Return an index with these rows of all columns; a row number of -1 stands for a file without facts."""

    def __len__(self) -> int:
        return len(self.listing.names)

    def facts(self, part: slice = slice(None)) -> list[list[int]]:
        """Return what makes each sample another one if it changes: height and width, for videos also their frames.

        A height of 0 stands for a bad file.

        Args:
            part: the samples to return the facts of; by default all.
        """
        return self.sizes[part].tolist()

    def notes(self, background: str) -> list[str]:
        """Return lines for the user: files left out and, for images, what becomes of transparency."""
        listing = self.listing
        lines = (
            listing.describe_ignored(),
            listing.describe_missing(),
            listing.describe_others(),
            listing.describe_large_pages(),
        )
        return list(filter(None, lines))

    def subset(self, samples: NDArray[np.int64], listing: Listing | None = None) -> Self:
        """Return the index of these samples, in this order.

        Args:
            samples: their numbers.
            listing: of these samples, if it is not the part of this listing.
        """
        is_bad = np.zeros(len(self), dtype=np.bool_)
        is_bad[list(self.bad)] = True
        bad = {new: self.bad[int(samples[new])] for new in np.flatnonzero(is_bad[samples]).tolist()}
        return self.rows(samples, listing or self.listing.subset(samples), bad)

    def with_bad(self, bad: Mapping[int, str]) -> Self:
        """Return the index with further bad samples → reason."""
        return self.rows(np.arange(len(self)), self.listing, {**self.bad, **bad})

    def listed_as(self, entries: Sequence[str]) -> Self:
        """Return an index of these entries (see Listing.entries) in this order, without labels.

        Entries that this index lacks are missing.
        """
        number = {entry: i for i, entry in enumerate(self.listing.entries())}
        rows = [number.get(entry, -1) for entry in entries]
        reasons = [MISSING if i < 0 else self.bad.get(i) for i in rows]
        bad = {new: reason for new, reason in enumerate(reasons) if reason is not None}
        numbers = np.array(rows, dtype=np.int64)
        return self.rows(numbers, self.listing.listed_as(entries, numbers), bad)

    def path(self, sample: int) -> bytes:
        """Return the path of a file; of a packed sample FILE!MEMBER or FILE!ROW."""
        return os.fsencode(self.listing.path(sample))

    @property
    def stamps(self) -> NDArray[np.int64]:
        """(n, 2) modification time and length of each file, or of the file that holds a packed sample.

        A folder of frames has the newest time and the length of all of them.
        """
        listing = self.listing
        if listing.packed is None:
            return content_stamps(listing.root, listing.file_names)
        return listing.packed.stamps[listing.packed.shard]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """(n,) length of each file or folder of frames, of packed samples that of the image; 0 for bad files."""
        packed = self.listing.packed
        return self.stamps[:, 1] if packed is None else packed.sizes.astype(np.int64)

    @cached_property
    def labels(self) -> NDArray[np.int64] | None:
        """(n,) class numbers, or None."""
        return None if self.listing.labels is None else self.listing.labels.astype(np.int64)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the entries in their order. Runs with the same fingerprint have the same list of files.

        Sizes are left out: a file that breaks while a run is interrupted must not prevent the run from resuming.
        """
        digest, encoded = hashlib.sha256(), self.listing.entries().encoded()
        while some := list(itertools.islice(encoded, HASHED_TOGETHER)):
            digest.update(b"\0".join(some) + b"\0")
        return digest.hexdigest()[:16]

    def contents(self) -> str:
        """Return a hash of the entries, their classes and the lengths of their files, which changes with the contents.

        Modification times are left out: a copy of the data has others.
        """
        digest = hashlib.sha256(self.fingerprint.encode() + self.lengths.tobytes())
        digest.update(b"" if self.labels is None else self.labels.tobytes())
        digest.update(os.fsencode("\0".join(self.listing.classes)))
        return digest.hexdigest()[:16]

    def by_path(self, bad: Mapping[int, str]) -> dict[str, str]:
        """Return path → reason for samples → reasons, in the order of the index."""
        return {self.listing.path(i): bad[i] for i in sorted(bad)}

    def bad_files(self, undecodable: Mapping[int, str] | None = None) -> dict[str, str]:
        """Return path → reason for unreadable folders, files with bad headers and, if given, undecodable samples."""
        folders = {os.path.join(self.listing.root, name): why for name, why in self.listing.unreadable.items()}
        return folders | self.by_path({**self.bad, **(undecodable or {})})

    def require_readable(self) -> None:
        """Raise an error if a header or a folder could not be read: an evaluation must not skip files.

        Raises:
            ValueError: the index has bad files; the message names them.
        """
        if bad := self.bad_files():
            raise ValueError(evaluation_refusal(bad, len(self), self.kind))


@dataclass(frozen=True)
class ImageIndex(Index):
    """The images of a data set and what their headers say. Sizes are those after EXIF rotation, as decoders return."""

    kind: ClassVar[str] = "images"
    listing: Listing
    sizes: NDArray[np.int32]  # (n, 2) height, width; 0 for bad files
    traits: NDArray[np.uint8]  # (n,) flags of Trait
    bad: dict[int, str]  # sample → reason, of files whose header cannot be read

    @cached_property
    def files(self) -> ImageFiles:
        """The images as graphs read them."""
        return ImageFiles(self.listing)

    def rows(self, rows: NDArray[np.int64], listing: Listing, bad: dict[int, str]) -> "ImageIndex":
        return ImageIndex(listing, take_rows(self.sizes, rows), take_rows(self.traits, rows), bad)

    def notes(self, background: str) -> list[str]:
        return list(filter(None, [*super().notes(background), self.describe_alpha(background), self.describe_gifs()]))

    @property
    def alpha(self) -> NDArray[np.bool_]:
        """(n,) whether each image has an alpha channel or transparent colours."""
        return self.traits & Trait.ALPHA > 0

    def describe_alpha(self, background: str) -> str:
        """Return one line that counts the images with alpha and says what becomes of it; empty if there are none."""
        if not self.alpha.any():
            return ""
        shown = "dropped, so that hidden pixels show" if background == NONE else f"shown over {background}"
        return f"{self.alpha.sum()} of {len(self)} images have alpha (transparency), {shown} (--views.background)"

    def describe_gifs(self) -> str:
        """Return one line that counts the GIFs; empty if there are none."""
        count = int((self.traits & Trait.GIF > 0).sum())
        return f"{count} of {len(self)} images are GIFs, of which the first frame is taken" if count else ""

    def background(self, name: str) -> Color | None:
        """Return the colour behind the images that Pillow decodes; None if there are none.

        Raises:
            ValueError: the name is no colour; see background_color.
        """
        color = background_color(name)
        return (color or BLACK) if self.by_pillow(name).any() else None

    def by_pillow(self, background: str) -> NDArray[np.bool_]:
        """Return whether Pillow decodes each image (n,): GIFs, and images with alpha unless it is dropped."""
        return self.traits & (Trait.GIF if background_color(background) is None else Trait.GIF | Trait.ALPHA) > 0


def index_images(path: str | Path, *, threads: int = 2, cache: Path | None = None) -> ImageIndex:
    """Return the index of a folder, a list file, or shards. For files that did not change, it comes from the cache.

    The index also lists files that are missing, empty or have an unreadable header; its `bad` holds the reasons.

    Args:
        path: any path that list_images accepts.
        threads: number of threads that read headers.
        cache: folder of the cache; by default $SCE_FAST_CACHE, or sce_fast/index in the user's cache folder. A cache
            that cannot be written is ignored.

    Raises:
        FileNotFoundError, ValueError: as find_shards and list_images.
        ImportError: Parquet tables need pyarrow, which is not installed.
    """
    if (shards := find_shards(Path(path))) is not None:
        return index_shards(shards, path, threads=threads, cache=cache)
    listing = list_images(path)
    names = listing.file_names
    stamps, bad = file_stamps(listing.root, names)
    cache_file = cache_file_of(path, cache)
    headers = cached_columns(cache_file, CACHE_VERSION, ("sizes", "traits"), names, stamps) or _no_headers(len(names))
    sizes, traits = headers["sizes"], headers["traits"]
    unknown = [i for i in np.flatnonzero(sizes[:, 0] == 0).tolist() if i not in bad]
    if unknown:
        paths = [os.fsencode(listing.path(i)) for i in unknown]
        sizes[unknown], traits[unknown] = read_headers(paths, threads=threads)
        write_cache(cache_file, CACHE_VERSION, names, stamps=stamps, sizes=sizes, traits=traits)
        bad |= {i: decode_failure_reason(path) for i, path in zip(unknown, paths, strict=True) if sizes[i, 0] == 0}
    return ImageIndex(listing, sizes, traits, bad)


def index_shards(shards: Shards, path: str | Path, *, threads: int = 2, cache: Path | None = None) -> ImageIndex:
    """Return the index of some shards; see index_images.

    Args:
        shards: the files.
        path: names the cache. Different shards have different paths.
        threads, cache: see index_images.

    Raises:
        ValueError, ImportError: as index_images.
    """
    return ImageIndex(*read_shards(shards, cache_file_of(path, cache, "-shards"), threads=threads))


def read_headers(paths: list[bytes], *, threads: int = 2) -> tuple[NDArray[np.int32], NDArray[np.uint8]]:
    """Return height and width (n, 2) of each image, (0, 0) if its header cannot be read, and its traits (n,)."""
    from sce_fast.data.image.sizes import SizeReader

    reader = SizeReader(decode=False, batch_size=HEADERS_PER_BATCH, threads=threads)
    sizes = np.zeros((len(paths), 2), dtype=np.int32)
    traits = np.zeros(len(paths), dtype=np.uint8)
    silent = len(paths) <= HEADERS_PER_BATCH  # done at once
    with progress_bar(len(paths), "Reading image headers", unit="image", silent=silent) as bar:
        for start in range(0, len(paths), HEADERS_PER_BATCH):
            batch = paths[start : start + HEADERS_PER_BATCH]
            part = slice(start, start + len(batch))
            sizes[part], traits[part] = reader.headers(batch)
            bar.update(len(batch))
    unreadable = sizes.min(axis=1) == 0
    sizes[unreadable], traits[unreadable] = 0, 0
    return sizes, traits


def _no_headers(files: int) -> dict[str, NDArray[Any]]:
    return {"sizes": np.zeros((files, 2), dtype=np.int32), "traits": np.zeros(files, dtype=np.uint8)}
