"""Which videos DALI decodes in the graph; PyAV decodes the others ahead of time."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from sce_fast.data.video.colour import BT601, LAYOUTS
from sce_fast.data.video.index import VideoIndex
from sce_fast.data.video.nvdec import Limits, nvdec_limits

CPU_CODECS = ("mjpeg", "vp8", "vp9")  # that fn.decoders.video of DALI 2.4 decodes on a CPU
_SAME_AS_BT601 = (BT601, 6)
# DALI decodes a file from its beginning, FFmpeg from the key frame before a clip.
MOST_FRAMES = 1024
# DALI holds whole frames on a GPU: those of all clips of a batch, and 8 more of each video. PyAV sends only the crops.
MOST_PIXELS = 1920 * 1088
_TIMES = 2**31  # DALI's decoder for GPUs holds times in 32 bits
_FULL_BY_NVDEC = ("h264", "hevc")  # codecs whose declared full range NVDEC's parser reports
_CODING_UNITS = (8, 16)  # pixels to a multiple of which codecs round sizes up


def routes(index: VideoIndex, device: str, limits: Mapping[str, Limits] | None = None) -> NDArray[np.bool_]:
    """Return whether DALI decodes each video (n,) with the same frames and colours as decode_clips.

    DALI converts every video by BT.601, with the declared range, which VP8 cannot declare; the graph then corrects
    colours of another matrix (see colour.correction), but not on a CPU, where PyAV decodes such videos. FFmpeg's
    conversion in DALI's CPU decoder stretches U and V over frames with an odd number of rows or columns.

    DALI's decoder has no index of the frames: it decodes from the beginning. On a GPU it also counts one picture for
    each packet, and takes a video whose size NVDEC lacks for an error of the whole batch. These rules follow from the
    sources of DALI 2.4 and have not run on a GPU.

    Args:
        device: "cpu" or "gpu", where the graph decodes.
        limits: of the GPU's decoder; by default those of the current GPU.
    """
    full = np.array([colour.full for colour in index.colours], dtype=np.bool_)
    even = (index.sizes % 2 == 0).all(axis=1)
    shifts = None if device == "cpu" else (1, 1)
    lines = index.timelines
    taken = index.plain & even & _has_planes(index, shifts) & ~(full & (index.codecs == "vp8"))
    taken &= lines.offset + lines.frames <= MOST_FRAMES
    if device == "cpu":
        return taken & np.isin(index.codecs, CPU_CODECS) & ~recoloured(index)
    taken &= _within(nvdec_limits() if limits is None else limits, index) & index.one_picture
    taken &= ~full | np.isin(index.codecs, _FULL_BY_NVDEC)
    taken &= lines.first + lines.duration < _TIMES
    taken &= index.sizes.astype(np.int64).prod(axis=1) <= MOST_PIXELS
    return taken & ~_misleads(index, taken)


def recoloured(index: VideoIndex) -> NDArray[np.bool_]:
    """Return whether the graph must correct the colours of each video (n,), because its matrix is not BT.601."""
    return ~np.isin([colour.matrix for colour in index.colours], _SAME_AS_BT601)


def _has_planes(index: VideoIndex, shifts: tuple[int, int] | None) -> NDArray[np.bool_]:
    """Return whether videos have Y, U and V in 8 bits, and U and V of these shifts; None allows all."""
    layouts = LAYOUTS.items()
    formats = [name for name, (bits, own, planes) in layouts if bits == 8 and planes == 3 and shifts in (None, own)]
    return np.isin(index.pixel_formats, formats)


def _within(limits: Mapping[str, Limits], index: VideoIndex) -> NDArray[np.bool_]:
    """Return whether NVDEC takes the codec and the size of each video."""
    taken = np.zeros(len(index), dtype=np.bool_)
    coded = -(-index.sizes // 16) * 16
    for codec, (smallest, largest, blocks) in limits.items():
        fits = (index.sizes >= smallest).all(axis=1) & (coded <= largest).all(axis=1)
        taken |= (index.codecs == codec) & fits & (coded.astype(np.int64).prod(axis=1) <= 256 * blocks)
    return taken


def _misleads(index: VideoIndex, taken: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return which videos would spoil the colours of others of these.

    DALI keeps NVDEC's decoders by the size of the picture, but looks for one by the size that is coded, a multiple of 8
    or 16. A video of 360 lines may thus get the decoder of one with 368, and U and V are read at the wrong place.
    """
    sizes = [(codec, *size) for codec, size in zip(index.codecs.tolist(), index.sizes.tolist(), strict=True)]
    coded = set()
    for codec, height, width in {size for size, is_taken in zip(sizes, taken.tolist(), strict=True) if is_taken}:
        for unit in _CODING_UNITS:
            lines, columns = (-(-length // unit) * unit for length in (height, width))
            if lines != height:
                coded.add((codec, lines, columns))
    return np.array([size in coded for size in sizes], dtype=np.bool_)
