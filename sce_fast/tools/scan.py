"""The scan command: find bad files in a data set before a run, and report the number and sizes of its images."""

import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sce_fast.config import default_loader_threads
from sce_fast.data.faults import bad_files_tsv
from sce_fast.data.image.formats import decode_failure_reason
from sce_fast.data.image.sizes import FILES_PER_BATCH, SizeReader
from sce_fast.data.index import ImageIndex, index_images
from sce_fast.tools.arguments import Images, OptionalFile
from sce_fast.util.files import printable, require_new, write_atomically
from sce_fast.util.terminal import progress_bar

PIXELS_AT_ONCE = 2**27  # bounds the memory of decoded images: 384 MiB


@dataclass(frozen=True)
class Scan:
    """The findings of a scan."""

    index: ImageIndex
    bad: dict[int, str]  # sample → reason
    decoded: bool  # otherwise only the headers were read
    seconds: float  # spent on decoding

    def bad_files(self) -> dict[str, str]:
        """Return path → reason, with folders that cannot be read."""
        return self.index.bad_files(self.bad)

    def table(self) -> str:
        """Return a text for people: the data set, then the bad files by reason."""
        names, labels = self.index.listing.names, self.index.labels
        lines = [f"{len(names)} image files in {self.index.listing.title}"]
        if labels is not None:
            counts = np.bincount(labels, minlength=len(self.index.listing.classes))
            lines.append(f"{len(counts)} classes of {counts.min()} to {counts.max()} files")
        sizes = self.index.sizes[[i for i in range(len(names)) if i not in self.bad]]
        if len(sizes):
            by_area = sizes[np.argsort(sizes.prod(axis=1, dtype=np.int64), kind="stable")]
            smallest, median, largest = (f"{w} × {h}" for h, w in by_area[[0, len(by_area) // 2, -1]])
            lines.append(f"width × height: smallest {smallest}, median {median}, largest {largest}")
        if count := self.index.alpha.sum():
            lines.append(f"images with alpha (transparency): {count}; --views.background sets the colour behind them")
        if ignored := self.index.listing.describe_ignored():
            lines.append(ignored)
        if self.decoded:
            done = len(names) - len(self.index.bad)
            lines.append(f"{done} files decoded in {self.seconds:.1f} s, {done / max(self.seconds, 1e-9):.0f} images/s")
        else:
            lines.append("headers read, nothing decoded: truncated files are not found")
        folders = self.index.listing.unreadable
        reasons = Counter([*folders.values(), *self.bad.values()])
        lines.append(f"\n{reasons.total()} bad files" if reasons else "\nno bad files")
        for reason, count in reasons.most_common():
            lines.append(f"{reason}: {count}")
            lines += [f"  {printable(name)}" for name in folders if folders[name] == reason]
            lines += [f"  {printable(names[i])}" for i in sorted(self.bad) if self.bad[i] == reason]
        return "\n".join(lines)


def scan(data: Images, /, *, quick: bool = False, threads: int | None = None, out: OptionalFile = None) -> Scan:
    """Find the files that training would replace: missing, empty or damaged files, and files of other formats.

    Args:
        data: Folder of images, or a list file that names images.
        quick: Read only the headers. Truncated files are not found.
        threads: CPU threads that decode; by default one per core.
        out: New file for the list of bad files. Each line is a path, a tab and a reason.

    Raises:
        FileNotFoundError: data does not exist.
        ValueError: data holds no images, or out exists.
    """
    require_new(out)
    threads = default_loader_threads() if threads is None else threads
    if threads < 1:
        raise ValueError(f"threads={threads}: expected at least 1")
    index = index_images(data, threads=threads)
    started = time.perf_counter()
    bad = dict(index.bad) if quick else index.bad | undecodable(index, threads)
    found = Scan(index, bad, not quick, time.perf_counter() - started)
    if out is not None:
        out = Path(out)
        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(out, bad_files_tsv(found.bad_files()))
    return found


def undecodable(index: ImageIndex, threads: int) -> dict[int, str]:
    """Return sample → reason for the files whose header is good but whose image does not decode."""
    samples = np.array([i for i in range(len(index)) if i not in index.bad], dtype=np.int64)
    reader = SizeReader(decode=True, background=index.background("black"), threads=threads)
    bad: dict[int, str] = {}
    with progress_bar(len(samples), "Decoding", unit="image") as bar:
        for chunk in _chunks(samples, index.sizes):
            sizes = reader.sizes([index.paths[i] for i in chunk], index.alpha[chunk])
            for i in chunk[sizes[:, 0] == 0].tolist():
                bad[i] = decode_failure_reason(index.paths[i])
            bar.update(len(chunk))
    return bad


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
