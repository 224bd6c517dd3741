"""Image formats by their first bytes: why a decoder refused a file."""

import io
import os
import warnings
from contextlib import suppress
from typing import BinaryIO

from sce_fast.data.faults import DAMAGED, UNREADABLE, UNSUPPORTED, status_or_reason

NOT_AN_IMAGE = "not an image"

# First bytes of the formats of IMAGE_SUFFIXES, and of other formats that are found under these suffixes.
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # and BigTIFF, in both byte orders
_SUPPORTED = (
    b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8", b"BM", *_TIFF, b"P1", b"P2", b"P3", b"P4", b"P5", b"P6",
    b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51",
)  # fmt: skip
_UNSUPPORTED = (b"8BPS", b"\0\0\1\0", b"\x76\x2f\x31\x01", b"\xff\x0a", b"\0\0\0\x0cJXL ")
_STRIP_OFFSETS, _STRIP_BYTE_COUNTS = 273, 279  # tags of a TIFF


def decode_failure_reason(path: bytes) -> str:
    """Return why the decoder refused a file."""
    reason = _reason_at_first_sight(path)
    if reason == DAMAGED:
        with suppress(OSError), open(path, "rb") as file:
            return UNSUPPORTED if _is_whole_tiff(file, os.fstat(file.fileno()).st_size) else reason
    return reason


def is_plausible(path: bytes) -> bool:
    """Return whether a file begins like an image that DALI or Pillow reads."""
    return _reason_at_first_sight(path) == DAMAGED


def content_failure_reason(content: bytes) -> str:
    """Return why the decoder refused the content of a file."""
    reason = _reason_of(content[:12])
    return UNSUPPORTED if reason == DAMAGED and _is_whole_tiff(io.BytesIO(content), len(content)) else reason


def is_plausible_content(content: bytes) -> bool:
    """Return whether the content of a file begins like an image that DALI or Pillow reads."""
    return _reason_of(content[:12]) == DAMAGED


def _reason_at_first_sight(path: bytes) -> str:
    """Return why a file cannot be decoded, from its status and first bytes; DAMAGED if they show no reason."""
    status = status_or_reason(path)
    if isinstance(status, str):
        return status
    try:
        with open(path, "rb") as file:
            return _reason_of(file.read(12))
    except OSError:
        return UNREADABLE


def _reason_of(start: bytes) -> str:
    """Return why a file that starts so cannot be decoded; DAMAGED if that shows no reason."""
    if start.startswith(_UNSUPPORTED) or start[4:8] == b"ftyp":  # the first box of a HEIC or AVIF file
        return UNSUPPORTED
    if start.startswith(b"RIFF"):
        return DAMAGED if start[8:12] == b"WEBP" else NOT_AN_IMAGE
    return DAMAGED if start.startswith(_SUPPORTED) else NOT_AN_IMAGE


def _is_whole_tiff(file: BinaryIO, length: int) -> bool:
    """Return whether a file of this length is a TIFF without missing pixels.

    If DALI refuses it, its kind of pixels is unsupported. DALI 2.4 refuses integers of 32 bits, signed integers, and
    files that leave out BitsPerSample, as bilevel ones may.
    """
    from PIL import Image, TiffImagePlugin, UnidentifiedImageError

    try:
        with warnings.catch_warnings(action="ignore"):
            if not file.read(4).startswith(_TIFF):
                return False
            file.seek(0)
            try:
                Image.open(file).load()
                return True
            except UnidentifiedImageError:  # Pillow does not know these pixels either, but it can read their places
                file.seek(0)
                start = file.read(8)
                directory = TiffImagePlugin.ImageFileDirectory_v2(start + (file.read(8) if start[2] == 43 else b""))
                file.seek(directory.next)
                directory.load(file)
                strips = zip(directory[_STRIP_OFFSETS], directory[_STRIP_BYTE_COUNTS], strict=True)
                return max(start + count for start, count in strips) <= length
    except Exception:  # Pillow raises errors of many types
        return False
