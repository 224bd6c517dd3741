"""Which videos DALI decodes in the graph; PyAV decodes the others ahead of time."""

import numpy as np
from numpy.typing import NDArray

from sce_fast.data.video.colour import BT601, LAYOUTS, encoded_lines, full_ranges, matrices
from sce_fast.data.video.index import VideoIndex

# device → codecs that fn.decoders.video of DALI 2.4 takes; those of NVDEC could not be tried here
CODECS = {"cpu": ("mjpeg", "vp8", "vp9"), "gpu": ("av1", "h264", "hevc", "mpeg4", "vp8", "vp9")}
_SAME_AS_BT601 = (BT601, 6)


def routes(index: VideoIndex, device: str) -> NDArray[np.bool_]:
    """Return whether DALI decodes each video (n,) with the same frames and colours as decode_clips.

    DALI converts every video by BT.601, with the range that the bitstream declares, which VP8 cannot. FFmpeg's
    conversion in DALI's CPU decoder stretches U and V over frames with an odd number of rows or columns. Both are seen
    on a CPU; on a GPU they follow from DALI's source, and nothing of it has run yet.

    Args:
        device: "cpu" or "gpu", where the graph decodes.
    """
    formats = [
        name for name, (bits, shifts, planes) in LAYOUTS.items()
        if bits == 8 and planes == 3 and (device == "cpu" or shifts == (1, 1))
    ]  # fmt: skip
    taken = np.isin(index.codecs, CODECS[device]) & np.isin(index.pixel_formats, formats) & index.plain
    matrix = matrices(index.matrices, index.codecs, encoded_lines(index.sizes, index.rotations))
    undeclared = (index.codecs == "vp8") & full_ranges(index.ranges, index.pixel_formats)
    even = (index.sizes % 2 == 0).all(axis=1)
    return taken & np.isin(matrix, _SAME_AS_BT601) & ~undeclared & even
