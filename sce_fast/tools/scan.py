"""The scan command: find bad files in a data set before a run, and report the number and sizes of its files."""

import time
from collections import Counter
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sce_fast.config import default_loader_threads
from sce_fast.data.faults import bad_files_tsv
from sce_fast.data.image.sizes import FILES_PER_BATCH, SizeReader
from sce_fast.data.index import ImageIndex, Index, index_images
from sce_fast.data.sources import Listing, kinds_found
from sce_fast.data.video.files import in_threads
from sce_fast.data.video.index import VideoIndex, index_videos
from sce_fast.data.video.probe import undecodable_reason
from sce_fast.tools.arguments import Images, OptionalFile
from sce_fast.util.files import printable, require_new, write_atomically
from sce_fast.util.terminal import progress_bar

PIXELS_AT_ONCE = 2**27  # bounds the memory of decoded images: 384 MiB


@dataclass(frozen=True)
class KindScan:
    """The findings about the images, or about the videos, of a data set."""

    kind: str  # "image" or "video"
    index: Index
    bad: dict[int, str]  # sample → reason
    decoded: bool  # otherwise only the headers were read
    seconds: float  # spent on decoding

    def bad_files(self) -> dict[str, str]:
        """Return path → reason, with folders that cannot be read."""
        return self.index.bad_files(self.bad)

    def table(self, ignored: str) -> str:
        """Return a text for people: the data set, then the bad files by reason."""
        listing, labels = self.index.listing, self.index.labels
        packed = listing.packed
        lines = [f"{len(self.index)} {self.kind} files in {listing.title}"]
        if packed is not None:
            lines[0] = f"{len(self.index)} {self.kind}s in {len(packed.files)} files of {listing.title}"
        if labels is not None:
            counts = np.bincount(labels, minlength=len(listing.classes))
            lines.append(f"{len(counts)} classes of {counts.min()} to {counts.max()} files")
        good = np.array([i for i in range(len(self.index)) if i not in self.bad], dtype=np.int64)
        if len(good):
            sizes = self.index.sizes[good]
            by_area = sizes[np.argsort(sizes.prod(axis=1, dtype=np.int64), kind="stable")]
            smallest, median, largest = (f"{w} × {h}" for h, w in by_area[[0, len(by_area) // 2, -1]])
            lines.append(f"width × height: smallest {smallest}, median {median}, largest {largest}")
            if isinstance(self.index, VideoIndex):
                lines += _lines_on_videos(self.index, good)
        gifs = ""
        if isinstance(self.index, ImageIndex):
            if count := self.index.alpha.sum():
                lines.append(
                    f"images with alpha (transparency): {count}; --views.background sets the colour behind them"
                )
            gifs = self.index.describe_gifs()
        lines += filter(None, [gifs, ignored, listing.describe_others()])
        if self.decoded:
            done = len(self.index) - len(self.index.bad)
            rate = f"{done / max(self.seconds, 1e-9):.0f} {self.kind}s/s"
            lines.append(f"{done} files decoded in {self.seconds:.1f} s, {rate}")
        else:
            lines.append("headers read, nothing decoded: " + _NOT_DECODED[self.kind])
        return "\n".join([*lines, *self._lines_on_bad_files()])

    def _lines_on_bad_files(self) -> list[str]:
        listing, folders = self.index.listing, self.index.listing.unreadable
        reasons = Counter([*folders.values(), *self.bad.values()])
        lines = [f"\n{reasons.total()} bad files" if reasons else "\nno bad files"]
        for reason, count in reasons.most_common():
            lines.append(f"{reason}: {count}")
            lines += [f"  {printable(name)}" for name in folders if folders[name] == reason]
            lines += [f"  {_title(listing, i)}" for i in sorted(self.bad) if self.bad[i] == reason]
        return lines


_NOT_DECODED = {"image": "truncated files are not found", "video": "damage inside a file is not found"}


@dataclass(frozen=True)
class Scan:
    """The findings of a scan: of images, of videos, or of both where a folder holds both."""

    kinds: tuple[KindScan, ...]
    ignored: str  # a line about files that are of no kind that was scanned; may be empty

    def bad_files(self) -> dict[str, str]:
        """Return path → reason, with folders that cannot be read."""
        return {path: reason for scan in self.kinds for path, reason in scan.bad_files().items()}

    def table(self) -> str:
        """Return a text for people."""
        return "\n\n".join(scan.table(self.ignored) for scan in self.kinds)


def scan(
    data: Images,
    /,
    *,
    only: Literal["images", "videos"] | None = None,
    quick: bool = False,
    threads: int | None = None,
    out: OptionalFile = None,
) -> Scan:
    """Find the files that training would replace: missing, empty or damaged files, and files of other formats.

    Args:
        data: Folder of images or videos, a list file that names them, or tar shards, Parquet tables, CIFAR or STL-10.
        only: Scan only the images or only the videos of a folder with both. Extracted frames count as images; with
            "videos", each of their folders counts as one video.
        quick: Read only the headers. Truncated images and damage inside videos are not found.
        threads: CPU threads that decode; by default one per core.
        out: New file for the list of bad files. Each line is a path, a tab and a reason.

    Raises:
        FileNotFoundError: data does not exist.
        ValueError: data holds neither images nor videos, or out exists.
    """
    require_new(out)
    threads = default_loader_threads() if threads is None else threads
    if threads < 1:
        raise ValueError(f"threads={threads}: expected at least 1")
    # Where there is nothing, the listing of images says so.
    kinds = (only,) if only is not None else kinds_found(data) or ("images",)
    scans = [(_scan_videos if kind == "videos" else _scan_images)(data, quick, threads) for kind in kinds]
    found = Scan(tuple(scans), _describe_ignored([scan.index.listing for scan in scans]))
    if out is not None:
        out = Path(out)
        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(out, bad_files_tsv(found.bad_files()))
    return found


def _scan_images(data: Path, quick: bool, threads: int) -> KindScan:
    index = index_images(data, threads=threads)
    started = time.perf_counter()
    bad = dict(index.bad) if quick else index.bad | undecodable(index, threads)
    return KindScan("image", index, bad, not quick, time.perf_counter() - started)


def _scan_videos(data: Path, quick: bool, threads: int) -> KindScan:
    index = index_videos(data, threads=threads)
    started = time.perf_counter()
    bad = dict(index.bad) if quick else index.bad | undecodable_videos(index, threads)
    return KindScan("video", index, bad, not quick, time.perf_counter() - started)


def undecodable(index: ImageIndex, threads: int) -> dict[int, str]:
    """Return sample → reason for the files whose header is good but whose image does not decode."""
    samples = np.array([i for i in range(len(index)) if i not in index.bad], dtype=np.int64)
    files, chunks, pillow = index.files, _chunks(samples, index.sizes), index.by_pillow("black")
    settings: dict[str, Any] = {"background": index.background("black"), "threads": threads}
    reader = SizeReader(decode=True, contents=files.are_contents, **settings)
    bad: dict[int, str] = {}
    with (
        progress_bar(len(samples), "Decoding", unit="image") as bar,
        closing(files.items_ahead(iter(chunks))) as ready,
        closing(reader),
    ):
        for chunk, items in zip(chunks, ready, strict=True):
            sizes = reader.sizes(items, pillow[chunk])
            bad |= {i: files.failure_reason(i) for i in chunk[sizes[:, 0] == 0].tolist()}
            bar.update(len(chunk))
    return bad


def undecodable_videos(index: VideoIndex, threads: int) -> dict[int, str]:
    """Return sample → reason for the videos of which not all frames decode. A file with several parts is read once."""
    samples = [i for i in range(len(index)) if i not in index.bad]
    paths = list(dict.fromkeys(index.path(i) for i in samples))
    with progress_bar(len(paths), "Decoding", unit="video") as bar:
        results = in_threads(undecodable_reason, paths, threads, bar.update)
    reasons = {path: reason for path, reason in zip(paths, results, strict=True) if reason is not None}
    return {i: reasons[index.path(i)] for i in samples if index.path(i) in reasons}


def _title(listing: Listing, sample: int) -> str:
    part = listing.parts[sample] if listing.parts else None
    return printable(listing.names[sample]) + (f" ({part[0]:g} to {part[1]:g} s)" if part else "")


def _describe_ignored(listings: list[Listing]) -> str:
    """Return one line that counts the files that all listings leave out."""
    shared = set.intersection(*(set(listing.ignored) for listing in listings))
    ignored = {ending: count for ending, count in listings[0].ignored.items() if ending in shared}
    return replace(listings[0], ignored=ignored).describe_ignored()


def _lines_on_videos(index: VideoIndex, good: NDArray[np.int64]) -> list[str]:
    """Return lines with the lengths, rates and codecs of the good videos."""
    times = index.timelines
    seconds = times.duration[good] * times.tick[good]
    frames = times.frames[good]
    codecs = ", ".join(f"{count} {codec}" for codec, count in Counter(index.codecs[good].tolist()).most_common())
    line = f"{frames.sum()} frames, {seconds.sum() / 3600:.1f} h"
    lines = [
        f"seconds: shortest {seconds.min():.1f}, median {np.median(seconds):.1f}, longest {seconds.max():.1f}; {line}",
        f"frames per second: {(frames / seconds).min():.4g} to {(frames / seconds).max():.4g}",
        f"codecs: {codecs}",
    ]
    if irregular := sum(not times.is_regular(sample) for sample in good.tolist()):
        lines.append(f"videos with frames at irregular times: {irregular}")
    if rotated := int((index.rotations[good] != 0).sum()):
        lines.append(f"videos that are turned when they are shown: {rotated}")
    return lines


def _chunks(samples: NDArray[np.int64], sizes: NDArray[np.int32]) -> list[NDArray[np.int64]]:
    """Split the samples into chunks to decode together, within the limits of files and pixels, or of one sample."""
    pixels = np.cumsum(sizes[samples].prod(axis=1, dtype=np.int64))
    chunks, start = [], 0
    while start < len(samples):
        before = pixels[start - 1] if start else 0
        end = int(np.searchsorted(pixels, before + PIXELS_AT_ONCE, side="right"))
        end = max(start + 1, min(end, start + FILES_PER_BATCH))
        chunks.append(samples[start:end])
        start = end
    return chunks
