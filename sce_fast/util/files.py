"""Atomic writes, and file names that print on any terminal."""

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file under another name, flush it to the disk and rename it: a kill at any time leaves no partial file.

    Raises:
        OSError: the file cannot be written; the old file remains.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def save_tensors(path: Path, tensors: "dict[str, Tensor]", metadata: dict[str, str]) -> None:
    """Write a safetensors file as write_atomically does.

    Raises:
        OSError: the file cannot be written; the old file remains.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        write_safetensors(temporary, tensors, metadata)


def write_safetensors(path: Path, tensors: "dict[str, Tensor]", metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file with the permissions of any new file here; the library would leave it to its owner.

    Raises:
        OSError: the file cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    path.touch()
    permissions = path.stat().st_mode & 0o777  # by the umask, or by the folder's default list of access rights
    try:
        save_file(tensors, path, metadata=metadata)
    except SafetensorError as error:  # its text is the system's message
        raise OSError(str(error)) from error
    path.chmod(permissions)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside the path; the file written there replaces the path once it is on the disk.

    A new folder may be written there, too. If the block raises an error, what it has written is removed.

    Raises:
        OSError: the file cannot be written; the old file remains.
    """
    temporary = path.with_name(f".{path.name}.writing")
    try:
        shutil.rmtree(temporary, ignore_errors=True)  # a folder that a killed process has left
        yield temporary
        flush(temporary)
        os.replace(temporary, path)
        flush(path.parent)
    except BaseException as error:
        with suppress(OSError):  # a partial file would only take up space, which may be what is lacking
            temporary.unlink()
        shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, OSError):
            raise OSError(f"{printable(path)} could not be written: {error}") from error
        raise


def require_new(path: str | Path | None) -> None:
    """Raise an error before any work is done if the file would be overwritten.

    Raises:
        ValueError: the file exists.
    """
    if path is not None and Path(path).exists():
        raise ValueError(f"out={printable(path)} exists already; name another file with --out")


def flush(path: Path) -> None:
    """Flush a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def counted(names: Mapping[str, Sequence[str]]) -> list[str]:
    """Return a line for each kind that has names: their number, the kind and the first five names."""
    return [
        f"{len(found)} {kind}: {', '.join(map(printable, found[:5]))}{', …' if len(found) > 5 else ''}"
        for kind, found in names.items()
        if found
    ]


def printable(path: str | Path) -> str:
    """Return a path for messages, with bytes that are not UTF-8 and control characters (newline, tab) escaped."""
    return os.fsencode(path).decode("utf-8", "backslashreplace").translate(_CONTROLS)


_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160))}
