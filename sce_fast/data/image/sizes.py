"""Sizes of images, read from their headers or by decoding them. Bad files are found one by one."""

from collections import deque
from collections.abc import Sequence
from contextlib import closing
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sce_fast.data.image.alpha import Trait, gif_size, traits_of
from sce_fast.data.image.background import Color
from sce_fast.data.image.files import ImageFiles, Item
from sce_fast.data.image.formats import is_plausible, is_plausible_content
from sce_fast.data.image.graph import file_feed, shape_pipeline
from sce_fast.data.pipeline import Feed, shut_down

FILES_PER_BATCH = 64  # few, because all files of a failed batch are decoded again


class SizeReader:
    """A reader of image sizes that copes with bad files. DALI fails a whole batch and may not name the bad file.

    DALI 2.4 refuses a JPEG that is cut off anywhere, even if only its end marker is missing. It does not notice damage
    that keeps a JPEG's length: it decodes zeros or flipped bits to arbitrary pixels.

    Args:
        decode: decode the images; otherwise read only headers.
        batch_size: files at a time.
        threads: number of threads that read or decode.
        background: lay what Pillow decodes over this colour; None leaves all images to DALI.
        device: "cpu", or "gpu" for the decoder of the current CUDA device.
        contents: take the contents of files in place of their paths.
    """

    def __init__(
        self,
        *,
        decode: bool,
        background: Color | None = None,
        batch_size: int = FILES_PER_BATCH,
        threads: int = 2,
        device: str = "cpu",
        contents: bool = False,
    ) -> None:
        self._contents = contents
        self._settings: dict[str, Any] = {
            "decode": decode,
            "background": background,
            "batch_size": batch_size,
            "threads": threads,
            "device": device if decode else "cpu",
            "contents": contents,
        }
        self._pipeline: Any = None
        self._feeds: deque[Feed] = deque()

    def sizes(self, paths: Sequence[Item], pillow: NDArray[np.bool_] | None = None) -> NDArray[np.int32]:
        """Return height and width (n, 2) of each file; (0, 0) where it cannot be read or decoded.

        Args:
            pillow: (n,) whether Pillow decodes each image; by default none.
        """
        limit = self._settings["batch_size"]
        if pillow is None:
            pillow = np.zeros(len(paths), dtype=np.bool_)
        parts = [slice(start, start + limit) for start in range(0, len(paths), limit)]
        return np.concatenate([np.zeros((0, 2), dtype=np.int32), *(self._sizes(paths[i], pillow[i]) for i in parts)])

    def close(self) -> None:
        """Free the pipeline. The next sizes build another one."""
        if self._pipeline is not None:
            shut_down(self._pipeline)
        self._pipeline = None

    def headers(self, paths: Sequence[Item]) -> tuple[NDArray[np.int32], NDArray[np.uint8]]:
        """Return height and width (n, 2) and traits (n,) of each file, from its header; (0, 0) if it cannot be read."""
        traits = np.array([traits_of(path) for path in paths], dtype=np.uint8)
        sizes = np.zeros((len(paths), 2), dtype=np.int32)
        is_gif = traits & Trait.GIF > 0
        others = np.flatnonzero(~is_gif)
        sizes[others] = self.sizes([paths[i] for i in others.tolist()])
        for i in np.flatnonzero(is_gif).tolist():
            sizes[i] = gif_size(paths[i])
        return sizes, traits

    def _sizes(self, paths: Sequence[Item], pillow: NDArray[np.bool_]) -> NDArray[np.int32]:
        if self._pipeline is None:
            self._feeds.clear()
            self._pipeline = shape_pipeline(iter(self._feeds.popleft, None), **self._settings)
        self._feeds.append(file_feed(paths, pillow, self._settings["background"]))
        try:
            (shapes,) = self._pipeline.run()
        except RuntimeError:
            self.close()  # DALI says that the pipeline is no longer valid
        else:
            return np.stack([np.asarray(shapes[i])[:2] for i in range(len(paths))]).astype(np.int32)
        sizes = np.zeros((len(paths), 2), dtype=np.int32)
        if len(paths) == 1:
            return sizes
        plausible = [i for i, path in enumerate(paths) if self._is_plausible(path)]
        if len(plausible) < len(paths):  # HTML pages and empty files are recognised without a decoder
            if plausible:
                sizes[plausible] = self._sizes([paths[i] for i in plausible], pillow[plausible])
            return sizes
        half = len(paths) // 2
        return np.concatenate([self._sizes(paths[:half], pillow[:half]), self._sizes(paths[half:], pillow[half:])])

    def _is_plausible(self, item: Item) -> bool:
        return is_plausible(bytes(item)) if not self._contents else is_plausible_content(bytes(item[:12]))


def decoded_sizes(
    files: ImageFiles,
    samples: NDArray[np.int64],
    pillow: NDArray[np.bool_],
    *,
    background: Color | None,
    threads: int,
    device: str,
) -> NDArray[np.int32]:
    """Return height and width (n, 2) of these samples, decoded as a loader does; (0, 0) where decoding fails.

    Pipes, folders and empty files are not passed to the decoder.
    """
    sizes = np.zeros((len(samples), 2), dtype=np.int32)
    good = [i for i, sample in enumerate(samples.tolist()) if files.refusal(sample) is None]
    contents = files.are_contents
    reader = SizeReader(decode=True, background=background, threads=threads, device=device, contents=contents)
    with closing(reader):
        sizes[good] = reader.sizes(files.items(samples[good]), pillow[good])
    return sizes
