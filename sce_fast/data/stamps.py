"""When the files of a data set were changed, and how long they are."""

import os
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sce_fast.data.faults import NOT_A_FILE, status_or_reason
from sce_fast.data.sources.names import TOGETHER, Names
from sce_fast.native import CPU
from sce_fast.util.terminal import progress_bar

THREADS = 16  # file servers answer slowly, and many questions at a time
FEW_FILES = 1_000_000  # take a second or two on a local disk


def file_stamps(root: Path, names: Names, *, folders: bool = False) -> tuple[NDArray[np.int64], dict[int, str]]:
    """Return modification time and length (n, 2) of each file, and sample → reason for files that cannot be opened.

    Args:
        root: folder of the files.
        names: of the files, relative to root or absolute.
        folders: accept folders as well.
    """
    stamps = np.empty((len(names), 2), dtype=np.int64)
    with progress_bar(len(names), "Looking for files", unit="file", silent=len(names) <= FEW_FILES) as bar:
        for start in range(0, len(names), TOGETHER):
            part = slice(start, start + TOGETHER)
            stamps[part] = _stamps(root, names, part)
            bar.update(len(stamps[part]))
    bad: dict[int, str] = {}
    for i in np.flatnonzero(stamps[:, 1] == 0).tolist():
        path = os.fsencode(os.path.join(root, names[i]))
        status = status_or_reason(path)
        if status == NOT_A_FILE and folders and os.path.isdir(path):
            status = os.stat(path)
        if isinstance(status, str):
            bad[i] = status
        else:
            stamps[i] = status.st_mtime_ns, status.st_size
    return stamps, bad


def content_stamps(root: Path, names: Names) -> NDArray[np.int64]:
    """Return modification time and length (n, 2) of each file, zeros for bad ones.

    A folder has the newest time of itself and of the files in it, and the sum of their lengths: files that are written
    anew in place do not change the folder.
    """
    stamps, bad = file_stamps(root, names)
    for i, reason in bad.items():
        folder = os.path.join(root, names[i])
        if reason == NOT_A_FILE and os.path.isdir(folder):
            with suppress(OSError):
                inside = file_stamps(Path(folder), Names.of(os.listdir(folder)))[0]
                stamps[i] = max(os.stat(folder).st_mtime_ns, inside[:, 0].max(initial=0)), inside[:, 1].sum()
    return stamps


def _stamps(root: Path, names: Names, part: slice) -> NDArray[np.int64]:
    """Return the stamps of some files, zeros for empty files and whatever is no file."""
    if CPU.module is not None:
        start = int(names.ends[part.start - 1]) if part.start else 0
        return CPU.module.file_stamps(os.fsencode(root), names.text, start, names.ends[part], THREADS)
    found = [status_or_reason(os.fsencode(os.path.join(root, name))) for name in names[part]]
    times = [(0, 0) if isinstance(status, str) else (status.st_mtime_ns, status.st_size) for status in found]
    return np.array(times, dtype=np.int64)
