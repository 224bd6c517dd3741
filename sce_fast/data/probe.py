"""Sizes of images by reading their headers or by decoding them, file by file where some are bad."""

from collections import deque
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sce_fast.data.faults import DAMAGED, fault_of_undecoded
from sce_fast.data.image.graph import Feed, feed_paths, shape_pipeline

FILES_AT_ONCE = 64  # few, since all those of a failed batch are decoded again


class Probe:
    """What DALI makes of image files. It fails a whole batch for one bad file and does not always name it.

    Damage that leaves a JPEG as long as it was goes unseen: DALI 2.4 refuses one that is cut off anywhere, if only its
    end marker is gone, but decodes zeros or flipped bits inside to whatever comes of them.

    Args:
        decode: decode everything; otherwise headers alone are read.
        batch_size: files at a time.
        threads: that read or decode.
        device: "cpu", or "gpu" for the decoder of the current CUDA device.
    """

    def __init__(self, *, decode: bool, batch_size: int = FILES_AT_ONCE, threads: int = 2, device: str = "cpu") -> None:
        self._settings: dict[str, Any] = {
            "decode": decode,
            "batch_size": batch_size,
            "threads": threads,
            "device": device if decode else "cpu",
        }
        self._pipeline: Any = None
        self._feeds: deque[Feed] = deque()

    def sizes(self, paths: list[bytes]) -> NDArray[np.int32]:
        """Height and width (n, 2) of each file; (0, 0) where it cannot be read or decoded."""
        limit = self._settings["batch_size"]
        batches = [self._sizes(paths[start : start + limit]) for start in range(0, len(paths), limit)]
        return np.concatenate([np.zeros((0, 2), dtype=np.int32), *batches])

    def _sizes(self, paths: list[bytes]) -> NDArray[np.int32]:
        if self._pipeline is None:
            self._feeds.clear()
            self._pipeline = shape_pipeline(lambda: self._feeds.popleft(), **self._settings)
        self._feeds.append((feed_paths(paths),))
        try:
            (shapes,) = self._pipeline.run()
        except RuntimeError:
            self._pipeline = None  # DALI says that it is no longer valid
        else:
            return np.stack([np.asarray(shapes[i])[:2] for i in range(len(paths))]).astype(np.int32)
        sizes = np.zeros((len(paths), 2), dtype=np.int32)
        if len(paths) == 1:
            return sizes
        plausible = [i for i, path in enumerate(paths) if fault_of_undecoded(path) == DAMAGED]
        if len(plausible) < len(paths):  # pages and empty files need no decoder to be known
            if plausible:
                sizes[plausible] = self._sizes([paths[i] for i in plausible])
            return sizes
        half = len(paths) // 2
        return np.concatenate([self._sizes(paths[:half]), self._sizes(paths[half:])])
