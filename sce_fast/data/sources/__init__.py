"""Where images come from: class folders, flat folders, list files."""

from pathlib import Path

from sce_fast.data.sources.folder import list_folder
from sce_fast.data.sources.listfile import list_file
from sce_fast.data.sources.listing import IMAGE_SUFFIXES, Listing, is_image_name
from sce_fast.util.files import printable

__all__ = ["Listing", "list_images"]


def list_images(path: str | Path) -> Listing:
    """The images of a class folder, a flat folder or a list file, in sorted (list files: given) order.

    A folder that holds images itself is flat: all images below it, no labels. Otherwise each of its subfolders that
    holds images at any depth is a class. Hidden files and folders are passed over, links are followed.

    Raises:
        FileNotFoundError: the path does not exist.
        ValueError: no image is there, the path is an image itself, or a line of a list file is malformed.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{printable(path)}: no such folder or list file")
    if not path.is_dir() and is_image_name(path.name):
        raise ValueError(f"{printable(path)} is one image; expected a folder of images or a list file")
    listing = list_folder(path) if path.is_dir() else list_file(path)
    if not listing.names:
        endings = " ".join(sorted(IMAGE_SUFFIXES))
        raise ValueError(f"{printable(path)}: no images found (looked for files ending in {endings}, at any depth)")
    return listing
