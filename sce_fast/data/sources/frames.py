"""Folders of extracted frames: one numbered image file for each frame of a video."""

import os
import re
from collections.abc import Iterable

from sce_fast.data.sources.listing import is_image_name, is_video_name

# After a prefix, fewer digits are more likely those of a collection of pictures, such as Caltech-101's image_0001.jpg.
_NUMBERED = re.compile(r"(|.*\D(?=\d{5}))(\d+)\.(?:jpe?g|png)", re.IGNORECASE)


def is_frame_folder(names: Iterable[str]) -> bool:
    """Return whether files with these names are the frames of a video, such as 00000001.jpg or img_00001.jpg.

    Every image has a number as its name, or the same prefix and a number of at least five digits, and there is no video
    among the files.
    """
    names = list(names)
    numbered = [_NUMBERED.fullmatch(name) for name in names if is_image_name(name)]
    prefixes = {match and match[1] for match in numbered}
    return len(prefixes) == 1 and None not in prefixes and not any(map(is_video_name, names))


def frame_files(folder: bytes) -> list[bytes]:
    """Return the paths of the frames in a folder, in the order of their numbers.

    Raises:
        OSError: the folder cannot be read.
        ValueError: a number is missing or exists twice (the first one is 0 or 1), or there are several prefixes.
    """
    numbered = [(match, name) for name in os.listdir(folder) if (match := _NUMBERED.fullmatch(os.fsdecode(name)))]
    prefixes = sorted({match[1] for match, _ in numbered})
    if len(prefixes) > 1:
        raise ValueError(f"{os.fsdecode(folder)}: names of frames begin with {prefixes[0]!r} and with {prefixes[1]!r}")
    by_number = sorted((int(match[2]), name) for match, name in numbered)
    numbers = [number for number, _ in by_number]
    if numbers and numbers != list(range(min(numbers[0], 1), min(numbers[0], 1) + len(numbers))):
        raise ValueError(f"{os.fsdecode(folder)}: frames are missing, or two have the same number")
    return [os.path.join(folder, name) for _, name in by_number]
