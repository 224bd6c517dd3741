"""Image formats by their first bytes: why a decoder refused a file."""

from sce_fast.data.faults import DAMAGED, UNREADABLE, UNSUPPORTED, status_or_reason

NOT_AN_IMAGE = "not an image"

# First bytes of the formats of IMAGE_SUFFIXES, and of other formats that are found under these suffixes.
_SUPPORTED = (
    b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"BM", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"P1", b"P2", b"P3", b"P4",
    b"P5", b"P6", b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51",
)  # fmt: skip
_UNSUPPORTED = (b"GIF8", b"8BPS", b"\0\0\1\0", b"\x76\x2f\x31\x01", b"\xff\x0a", b"\0\0\0\x0cJXL ")


def decode_failure_reason(path: bytes) -> str:
    """Return why the decoder refused a file, from the file's status and first bytes."""
    status = status_or_reason(path)
    if isinstance(status, str):
        return status
    try:
        with open(path, "rb") as file:
            start = file.read(12)
    except OSError:
        return UNREADABLE
    if start.startswith(_UNSUPPORTED) or start[4:8] == b"ftyp":  # the first box of a HEIC or AVIF file
        return UNSUPPORTED
    if start.startswith(b"RIFF"):
        return DAMAGED if start[8:12] == b"WEBP" else NOT_AN_IMAGE
    return DAMAGED if start.startswith(_SUPPORTED) else NOT_AN_IMAGE
