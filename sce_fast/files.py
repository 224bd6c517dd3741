"""Files that are whole or absent, whenever the process is killed; names that print on any terminal."""

import os
from pathlib import Path


def write_atomically(path: Path, content: str | bytes) -> None:
    """Writes a file under another name, flushes it to the disk and renames it."""
    temporary = path.with_name(f".{path.name}.writing")
    temporary.write_bytes(content.encode() if isinstance(content, str) else content)
    flush(temporary)
    os.replace(temporary, path)
    flush(path.parent)


def flush(path: Path) -> None:
    """Sees to it that a file or a folder's list of names is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def printable(path: str | Path) -> str:
    """A file name for messages: bytes that are not UTF-8 shown as escapes."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")
