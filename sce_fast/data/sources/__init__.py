"""Sources of images and videos: class folders, flat folders, list files, tar shards, Parquet tables, CIFAR, STL-10."""

import os
from collections.abc import Callable, Set
from pathlib import Path

from sce_fast.data.sources.folder import list_folder
from sce_fast.data.sources.frames import frame_files, is_frame_folder
from sce_fast.data.sources.listfile import lines_of, list_file
from sce_fast.data.sources.listing import IMAGE_SUFFIXES, VIDEO_SUFFIXES, Listing, Part, is_image_name, is_video_name
from sce_fast.data.sources.names import Names
from sce_fast.data.sources.shards import Shards, find_shards, packed_splits
from sce_fast.data.sources.splits import SplitPart, read_split
from sce_fast.data.sources.videolist import list_video_file
from sce_fast.util.files import printable

__all__ = [
    "Listing",
    "Names",
    "Part",
    "Shards",
    "SplitPart",
    "find_shards",
    "frame_files",
    "kinds_found",
    "list_images",
    "list_videos",
    "packed_splits",
    "read_split",
]


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
    path = _existing(path)
    if not path.is_dir() and is_image_name(path.name):
        raise ValueError(f"{printable(path)} is one image; expected a folder of images or a list file")
    listing = list_folder(path, is_image_name) if path.is_dir() else list_file(path)
    return _not_empty(listing, path, "images", IMAGE_SUFFIXES)


def list_videos(path: str | Path) -> Listing:
    """Return the videos of a class folder, a flat folder, a list file or a table of Kinetics.

    Folders are read as list_images reads them. A folder whose images all have numbers as names (00000001.jpg), or one
    prefix and at least five digits (img_00001.jpg), holds the extracted frames of one video, and its name stands for
    the video; other images are counted as ignored. For list files and tables see list_video_file.

    Raises:
        FileNotFoundError: the path does not exist.
        ValueError: there are no videos, the path is a video itself, or a line of a list file is malformed.
    """
    path = _existing(path)
    if not path.is_dir():
        if is_video_name(path.name):
            raise ValueError(f"{printable(path)} is one video; expected a folder of videos or a list file")
        return _not_empty(list_video_file(path), path, "videos", VIDEO_SUFFIXES)
    if is_frame_folder(entry.name for entry in path.iterdir() if not entry.name.startswith(".")):
        raise ValueError(
            f"{printable(path)} holds the frames of one video, or only images; expected a folder of videos, a folder "
            "of such folders or a list file"
        )
    return _not_empty(list_folder(path, is_video_name, frame_folders=True), path, "videos", VIDEO_SUFFIXES)


def kinds_found(path: str | Path) -> tuple[str, ...]:
    """Return which of "images" and "videos" a folder or list file holds.

    In a folder, the endings of the names decide, and extracted frames count as images. A list file holds videos if it
    names a video or a folder (of extracted frames), and images otherwise. Shards hold images.

    Raises:
        FileNotFoundError: the path does not exist.
        ValueError: a line of a list file is malformed.
    """
    if find_shards(Path(path)) is not None:
        return ("images",)
    path = _existing(path)
    if path.is_dir():
        tests: dict[str, Callable[[str], bool]] = {"images": is_image_name, "videos": is_video_name}
        return tuple(kind for kind, is_wanted in tests.items() if list_folder(path, is_wanted).names)
    if all(is_image_name(line.partition("\t")[0].strip()) for _, line in lines_of(path, "images or videos")):
        return ("images",)
    listing = list_video_file(path)
    pairs = zip(listing.names, listing.paths(), strict=True)
    return ("videos" if any(is_video_name(name) or os.path.isdir(path) for name, path in pairs) else "images",)


def _existing(path: str | Path) -> Path:
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{printable(path)}: no such folder or list file")
    return path


def _not_empty(listing: Listing, path: Path, kind: str, suffixes: Set[str]) -> Listing:
    if not listing.names:
        endings = " ".join(sorted(suffixes))
        lines = [f"{printable(path)}: no {kind} found (looked for files ending in {endings}, at any depth)"]
        lines += [f"{printable(name)}: {reason}" for name, reason in listing.unreadable.items()]
        raise ValueError("; ".join(filter(None, [*lines, listing.describe_ignored()])))
    return listing
