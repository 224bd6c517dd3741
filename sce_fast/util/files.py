"""Files that are whole or absent, whenever the process is killed; names that print on any terminal."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def write_atomically(path: Path, content: str | bytes) -> None:
    """Writes a file under another name, flushes it to the disk and renames it.

    Raises:
        OSError: it cannot be written; what was there before is untouched.
    """
    with _replacing(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def save_tensors(path: Path, tensors: "dict[str, Tensor]", metadata: dict[str, str]) -> None:
    """Writes a safetensors file under another name, flushes it to the disk and renames it.

    Raises:
        OSError: it cannot be written; what was there before is untouched.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    with _replacing(path) as temporary:
        try:
            save_file(tensors, temporary, metadata=metadata)
        except SafetensorError as error:  # which says what the system said
            raise OSError(str(error)) from error


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """Another name beside it; what has been written there takes the path's place once it is on the disk."""
    temporary = path.with_name(f".{path.name}.writing")
    try:
        yield temporary
        flush(temporary)
        os.replace(temporary, path)
        flush(path.parent)
    except OSError as error:
        with suppress(OSError):  # half a file would only take the room that is wanting
            temporary.unlink()
        raise OSError(f"{printable(path)} could not be written: {error}") from error


def require_new(path: Path | None) -> None:
    """Makes sure that nothing will be overwritten, before any work for it is done.

    Raises:
        ValueError: the file exists.
    """
    if path is not None and path.exists():
        raise ValueError(f"out={printable(path)} exists already; name another file with --out")


def flush(path: Path) -> None:
    """Sees to it that a file or a folder's list of names is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def counted(names: Mapping[str, Sequence[str]]) -> list[str]:
    """A line for each kind of difference that has names: how many, which kind, and the first five of them."""
    return [
        f"{len(found)} {kind}: {', '.join(map(printable, found[:5]))}{', …' if len(found) > 5 else ''}"
        for kind, found in names.items()
        if found
    ]


def printable(path: str | Path) -> str:
    """A file name for messages: bytes that are not UTF-8 and control characters (a line's end, a tab) as escapes."""
    return os.fsencode(path).decode("utf-8", "backslashreplace").translate(_CONTROLS)


_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160))}
