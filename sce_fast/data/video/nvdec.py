"""What the video decoder of a GPU takes: codecs and sizes in 8 bits and 4:2:0, as the driver reports them."""

import ctypes
from functools import cache
from typing import NamedTuple

LIBRARY = "libnvcuvid.so.1"
# codec → number of its cudaVideoCodec. MPEG-4 is left out: packets that repeat a picture hold none, as DALI expects.
CODECS = {"h264": 4, "hevc": 8, "vp8": 9, "vp9": 10, "av1": 11}
_YUV420 = 1  # cudaVideoChromaFormat_420


class Limits(NamedTuple):
    """Sizes in pixels, as encoded, that a decoder takes."""

    smallest: tuple[int, int]  # height and width
    largest: tuple[int, int]
    blocks: int  # largest number of macroblocks of 256 pixels


class _Capabilities(ctypes.Structure):
    """CUVIDDECODECAPS of NVIDIA's cuviddec.h."""

    _fields_ = [
        ("codec", ctypes.c_int),
        ("chroma", ctypes.c_int),
        ("bits_above_8", ctypes.c_uint),
        ("_reserved1", ctypes.c_uint * 3),
        ("supported", ctypes.c_ubyte),
        ("decoders", ctypes.c_ubyte),
        ("output_formats", ctypes.c_ushort),
        ("max_width", ctypes.c_uint),
        ("max_height", ctypes.c_uint),
        ("max_blocks", ctypes.c_uint),
        ("min_width", ctypes.c_ushort),
        ("min_height", ctypes.c_ushort),
        ("_histogram", ctypes.c_ubyte * 2),
        ("_histogram_bins", ctypes.c_ushort),
        ("_reserved3", ctypes.c_uint * 10),
    ]


def nvdec_limits() -> dict[str, Limits]:
    """Return the codecs that the current GPU decodes, with their limits; none without a GPU or the driver's decoder.

    A container sees the decoder only if NVIDIA_DRIVER_CAPABILITIES includes `video`.

    Example:
        >>> nvdec_limits()["h264"].largest
        (4096, 4096)
    """
    import torch

    return dict(_limits_of(torch.cuda.current_device())) if torch.cuda.is_available() else {}


@cache
def _limits_of(device: int) -> dict[str, Limits]:
    import torch

    torch.cuda.synchronize(device)  # makes the context in which the driver answers
    try:
        library = ctypes.CDLL(LIBRARY)
    except OSError:
        return {}
    found = {codec: _ask(library, number) for codec, number in CODECS.items()}
    return {codec: limits for codec, limits in found.items() if limits is not None}


def _ask(library: ctypes.CDLL, codec: int) -> Limits | None:
    answer = _Capabilities(codec=codec, chroma=_YUV420)
    if library.cuvidGetDecoderCaps(ctypes.byref(answer)) != 0 or not answer.supported:
        return None
    smallest, largest = (answer.min_height, answer.min_width), (answer.max_height, answer.max_width)
    return Limits(smallest, largest, answer.max_blocks)
