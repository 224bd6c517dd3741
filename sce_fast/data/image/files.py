"""What graphs read of a data set's images: the paths of files, or the contents of packed samples read ahead."""

import os
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from functools import partial

import numpy as np
from numpy.typing import NDArray

from sce_fast.data.faults import status_or_reason
from sce_fast.data.image.formats import content_failure_reason, decode_failure_reason
from sce_fast.data.sources.listing import Listing
from sce_fast.data.sources.reading import PackedReader
from sce_fast.util.ahead import Work, run_ahead

READERS = 4  # threads; most of the time they wait for a disk or a file server
SAMPLES_PER_TASK = 8

Item = bytes | NDArray[np.uint8]  # the path of a file, or the content of one


class ImageFiles:
    """The images of a listing as a graph reads them.

    Args:
        listing: of the images.
    """

    def __init__(self, listing: Listing) -> None:
        self._listing = listing
        self._reader = None if listing.packed is None else PackedReader(listing.root, listing.packed)

    @property
    def are_contents(self) -> bool:
        """Whether graphs get the contents of files in place of their paths."""
        return self._reader is not None

    def item(self, sample: int) -> Item:
        """Return the path of an image, or its content; an unreadable one's is a single zero."""
        return os.fsencode(self._listing.path(sample)) if self._reader is None else self._reader.content(sample)

    def content(self, sample: int) -> NDArray[np.uint8]:
        """Return the content of an image's file.

        Raises:
            OSError: the file cannot be read.
        """
        item = self.item(sample)
        return np.fromfile(os.fsdecode(item), dtype=np.uint8) if isinstance(item, bytes) else item

    def items(self, samples: NDArray[np.int64]) -> Sequence[Item]:
        """Return an item for each sample."""
        return [self.item(sample) for sample in samples.tolist()]

    def items_ahead(self, batches: Iterator[NDArray[np.int64]]) -> Generator[Sequence[Item], None, None]:
        """Yield the items of each batch. Threads read packed samples ahead; closing the generator ends them."""
        packed = self._listing.packed
        if packed is None:
            yield from map(self.items, batches)
            return

        def work(samples: NDArray[np.int64]) -> Work[Sequence[Item]]:
            parts = [samples[start : start + SAMPLES_PER_TASK] for start in range(0, len(samples), SAMPLES_PER_TASK)]
            return Work([partial(self.items, part) for part in parts], int(packed.sizes[samples].sum()))

        with closing(run_ahead(map(work, batches), threads=READERS, name="shards")) as ready:
            for parts in ready:
                yield [item for part in parts for item in part]

    def refusal(self, sample: int) -> str | None:
        """Return why an image may not be opened, or None."""
        if self._reader is not None:
            return self._reader.refusal(sample)
        status = status_or_reason(os.fsencode(self._listing.path(sample)))
        return status if isinstance(status, str) else None

    def failure_reason(self, sample: int) -> str:
        """Return why a decoder refused an image."""
        if self._reader is None:
            return decode_failure_reason(os.fsencode(self._listing.path(sample)))
        return self._reader.refusal(sample) or content_failure_reason(self._reader.content(sample).tobytes())

    def failing_with(self, sample: int) -> dict[int, str]:
        """Return sample → reason for all samples in the file of one that is gone or has changed."""
        reason = None if self._reader is None else self._reader.file_fault(sample)
        if reason is None or self._reader is None:
            return {}
        return dict.fromkeys(self._reader.in_file_of(sample).tolist(), reason)
