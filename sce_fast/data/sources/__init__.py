"""Sources of images: class folders, flat folders and list files."""

from pathlib import Path

from sce_fast.data.sources.folder import list_folder
from sce_fast.data.sources.listfile import list_file
from sce_fast.data.sources.listing import IMAGE_SUFFIXES, Listing, is_image_name
from sce_fast.util.files import printable

__all__ = ["Listing", "list_images"]


def list_images(path: str | Path) -> Listing:
    """Return the images of a class folder, a flat folder or a list file.

    A folder that directly contains images is flat: it lists all images below it, without labels. Otherwise each
    subfolder with images at any depth is a class. Images of folders are sorted; those of a list file keep their order.
    Hidden files and folders are skipped, links are followed. Files with other endings are counted, and folders that
    cannot be read are named.

    Raises:
        FileNotFoundError: the path does not exist.
        ValueError: there are no images, the path is an image itself, or a line of a list file is malformed.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{printable(path)}: no such folder or list file")
    if not path.is_dir() and is_image_name(path.name):
        raise ValueError(f"{printable(path)} is one image; expected a folder of images or a list file")
    listing = list_folder(path) if path.is_dir() else list_file(path)
    if not listing.names:
        endings = " ".join(sorted(IMAGE_SUFFIXES))
        lines = [f"{printable(path)}: no images found (looked for files ending in {endings}, at any depth)"]
        lines += [f"{printable(name)}: {reason}" for name, reason in listing.unreadable.items()]
        raise ValueError("; ".join(filter(None, [*lines, listing.describe_ignored()])))
    return listing
