"""Bad files: the reasons, the share that a run accepts, and the messages that name them."""

import errno
import os
import stat
from collections import Counter
from collections.abc import Mapping

from sce_fast.util.files import printable

MISSING = "missing"
NOT_A_FILE = "not a file"
UNREADABLE = "unreadable"
UNREADABLE_FOLDER = "unreadable folder"
LINK_LOOP = "a link to itself"
EMPTY = "empty"
UNSUPPORTED = "unsupported format"
DAMAGED = "truncated or damaged"
CHANGED = "changed size"
CHANGED_SHARD = "in a file that has changed"
CUT_SHARD = "truncated; its last samples are missing"
DAMAGED_PAGES = "damaged in parts"
NOT_A_VIDEO = "not a video"
NO_VIDEO_STREAM = "no video stream"
NO_FRAMES = "no frames"
EMPTY_PART = "no frames between start and end"
FRAMES_MISSING = "numbers of frames are missing or not unique"
SEVERAL_SIZES = "frames of several sizes"

MAX_BAD_SHARE = 0.1  # with more bad files something else must be wrong, so the run stops
NAMES_SHOWN = 20


class BadFilesError(RuntimeError):
    """Raised when files of an evaluation cannot be decoded; the message names them."""


def status_or_reason(path: bytes) -> os.stat_result | str:
    """Return the status of a file that a decoder may open, or the reason why it may not open the file.

    A decoder would wait forever for a named pipe.
    """
    try:
        status = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return MISSING
    except (OSError, ValueError) as error:  # a folder without permission, or a name that no file can have
        return LINK_LOOP if is_link_loop(error) else UNREADABLE
    if not stat.S_ISREG(status.st_mode):
        return NOT_A_FILE
    return status if status.st_size else EMPTY


def is_link_loop(error: Exception) -> bool:
    """Return whether the system gave up following links."""
    return isinstance(error, OSError) and error.errno == errno.ELOOP


def require_few_bad(bad: Mapping[str, str], total: int) -> None:
    """Raise an error if too many files are bad.

    Args:
        bad: path → reason, from all ranks together.
        total: number of files in the data set.

    Raises:
        RuntimeError: more than MAX_BAD_SHARE of the files are bad; the message counts and names them.
    """
    if len(bad) > MAX_BAD_SHARE * total:
        raise RuntimeError(f"more than {MAX_BAD_SHARE:.0%} bad files: {describe_bad_files(bad, total)}")


def describe_bad_files(bad: Mapping[str, str], total: int) -> str:
    """Return a few lines that count bad files by reason and list the first NAMES_SHOWN of them.

    Example:
        >>> print(describe_bad_files({"a.jpg": "empty", "b.jpg": "missing"}, 1000))
        2 of 1000 files cannot be used (1 empty, 1 missing):
          a.jpg: empty
          b.jpg: missing
    """
    counts = ", ".join(f"{count} {reason}" for reason, count in Counter(bad.values()).most_common())
    lines = [f"  {printable(path)}: {reason}" for path, reason in list(bad.items())[:NAMES_SHOWN]]
    if len(bad) > NAMES_SHOWN:
        lines.append(f"  and {len(bad) - NAMES_SHOWN} more; sce-fast scan lists all of them")
    return "\n".join([f"{len(bad)} of {total} files cannot be used ({counts}):", *lines])


def evaluation_refusal(bad: Mapping[str, str], total: int, kind: str) -> str:
    """Return the message of an evaluation that bad files stop; `kind` is "images" or "videos"."""
    return (
        f"{describe_bad_files(bad, total)}\nEvaluations never skip {kind}: repair or remove these files; "
        "sce-fast scan decodes every file and lists all bad ones"
    )


def bad_files_tsv(bad: Mapping[str, str]) -> str:
    """Return one line for each bad file: path, tab, reason."""
    return "".join(f"{printable(path)}\t{reason}\n" for path, reason in bad.items())
