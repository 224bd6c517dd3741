"""Files that are no use: why, how many a run bears, and how they are told of."""

import os
import stat
from collections import Counter
from collections.abc import Mapping

from sce_fast.util.files import printable

MISSING = "missing"
NO_FILE = "not a file"
UNREADABLE = "unreadable"
EMPTY = "empty"
NO_IMAGE = "not an image"
UNSUPPORTED = "unsupported format"
DAMAGED = "truncated or damaged"
CHANGED = "changed size"

MAX_BAD_SHARE = 0.1  # of the files, before a run stops: so many say that something else is wrong
SHOWN = 20

# How the formats of IMAGE_SUFFIXES begin, and some others that are found under their names.
_SUPPORTED = (
    b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"BM", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"P1", b"P2", b"P3", b"P4",
    b"P5", b"P6", b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51",
)  # fmt: skip
_UNSUPPORTED = (b"GIF8", b"8BPS", b"\0\0\1\0", b"\x76\x2f\x31\x01", b"\xff\x0a", b"\0\0\0\x0cJXL ")


def regular_file(path: bytes) -> os.stat_result | str:
    """The status of a file that can be handed to a decoder, or the reason why not: a named pipe would be waited for."""
    try:
        status = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return MISSING
    except (OSError, ValueError):  # a folder that may not be entered, a name that no file can have
        return UNREADABLE
    if not stat.S_ISREG(status.st_mode):
        return NO_FILE
    return status if status.st_size else EMPTY


def fault_of_undecoded(path: bytes) -> str:
    """The reason for a file that the decoder has refused, from its status and its first bytes."""
    status = regular_file(path)
    if isinstance(status, str):
        return status
    try:
        with open(path, "rb") as file:
            start = file.read(12)
    except OSError:
        return UNREADABLE
    if start.startswith(_UNSUPPORTED) or start[4:8] == b"ftyp":  # the box that opens a HEIC or AVIF file
        return UNSUPPORTED
    if start.startswith(b"RIFF"):
        return DAMAGED if start[8:12] == b"WEBP" else NO_IMAGE
    return DAMAGED if start.startswith(_SUPPORTED) else NO_IMAGE


def require_few(bad: Mapping[str, str], total: int) -> None:
    """Makes sure that a run can go on without these files.

    Args:
        bad: path → reason; of several ranks, all they have found together.
        total: files of the data set.

    Raises:
        RuntimeError: they are more than MAX_BAD_SHARE of it; they are counted and named.
    """
    if len(bad) > MAX_BAD_SHARE * total:
        raise RuntimeError(f"more than {MAX_BAD_SHARE:.0%} bad files: {describe(bad, total)}")


def describe(bad: Mapping[str, str], total: int) -> str:
    """Paths with their reasons → a few lines: how many of each reason, and the first names.

    Example:
        >>> print(describe({"a.jpg": "empty", "b.jpg": "missing"}, 1000))
        2 of 1000 files cannot be used (1 empty, 1 missing):
          a.jpg: empty
          b.jpg: missing
    """
    counts = ", ".join(f"{count} {reason}" for reason, count in Counter(bad.values()).most_common())
    lines = [f"  {printable(path)}: {reason}" for path, reason in list(bad.items())[:SHOWN]]
    if len(bad) > SHOWN:
        lines.append(f"  and {len(bad) - SHOWN} more; sce-fast scan names all")
    return "\n".join([f"{len(bad)} of {total} files cannot be used ({counts}):", *lines])


def as_text(bad: Mapping[str, str]) -> str:
    """A line for each bad file: its path, a tab, the reason."""
    return "".join(f"{printable(path)}\t{reason}\n" for path, reason in bad.items())
