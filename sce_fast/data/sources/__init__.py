"""Where files come from: class folders, flat folders, list files. Each source gives names and, if there are, labels."""

import os
from dataclasses import dataclass
from pathlib import Path

# What DALI's image decoder reads.
IMAGE_SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".jpe", ".png", ".bmp", ".tif", ".tiff", ".pnm", ".ppm", ".pgm", ".pbm", ".jp2", ".webp")
)


@dataclass(frozen=True)
class Listing:
    """Files in a fixed order. Names that are not UTF-8 carry their bytes as surrogates, as os.fsdecode gives them."""

    root: Path
    names: list[str]  # relative to root
    labels: list[int] | None
    classes: list[str]  # class of label i; empty without labels

    def paths(self) -> list[str]:
        return [os.path.join(self.root, name) for name in self.names]


def list_images(path: str | Path) -> Listing:
    """The images of a class folder, a flat folder or a list file, in sorted (list files: given) order.

    A folder that holds images itself is flat: all images below it, no labels. Otherwise each of its subfolders that
    holds images at any depth is a class. Hidden files and folders are passed over, links are followed.

    Raises:
        FileNotFoundError: the path does not exist.
        ValueError: no image is there, or a line of a list file is malformed.
    """
    from sce_fast.data.sources.folder import list_folder
    from sce_fast.data.sources.listfile import list_file

    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{printable(path)}: no such folder or list file")
    listing = list_folder(path) if path.is_dir() else list_file(path)
    if not listing.names:
        endings = " ".join(sorted(IMAGE_SUFFIXES))
        raise ValueError(f"{printable(path)}: no images found (looked for files ending in {endings}, at any depth)")
    return listing


def printable(path: str | Path) -> str:
    """A file name for messages: bytes that are not UTF-8 shown as escapes."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")
