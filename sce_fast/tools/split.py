"""The split command: a part of a published split of videos as a list file, which every other command reads."""

import os
from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from sce_fast.data.sources import SplitPart, read_split
from sce_fast.tools.arguments import OptionalFile
from sce_fast.util.files import printable, require_new, write_atomically
from sce_fast.util.terminal import say

Folder = Annotated[Path, arg(metavar="SPLIT")]
Videos = Annotated[Path, arg(metavar="VIDEOS")]


def write_split(
    split: Folder, videos: Videos, /, *, part: SplitPart, number: int = 1, out: OptionalFile = None
) -> Path:
    """Write one part of a published split as a list file of paths and classes, and return the file.

    Other commands take the list as --data, --train or --test. Files that the split names and the disk lacks are left
    out, counted and named; a file that ends in .missing.txt, beside the list, holds all their names.

    Args:
        split: Folder of the published split: UCF101's trainlist, testlist and classInd, HMDB51's
            CLASS_test_splitN.txt, Something-Something's JSON files, or the CSV tables of Kinetics; or one such table.
        videos: Folder of the videos.
        part: Part to write. The test part of Kinetics and Something-Something is their validation set.
        number: Number of the split, of UCF101 and HMDB51: 1, 2 or 3.
        out: New file. Default: SPLIT_PART_NUMBER.txt in the current folder.

    Raises:
        FileNotFoundError: a folder or a list does not exist, or none of the videos does.
        ValueError: out exists, the folder holds no known split, or a list is malformed.
    """
    split, videos = Path(split), Path(videos)
    out = Path(f"{split.resolve().stem}_{part}_{number}.txt") if out is None else Path(out)
    list_of_missing = out.with_suffix(".missing.txt")
    require_new(out)
    listing = read_split(split, videos, part, number)
    assert listing.labels is not None
    root = videos.resolve()  # absolute paths: the list may lie anywhere, and a line must not begin with #
    rows = zip(listing.names, listing.labels, strict=True)
    lines = [os.fsencode(f"{root / name}\t{listing.classes[label]}\n") for name, label in rows]
    if listing.missing:
        say(f"Warning: {listing.describe_missing()}\n{printable(list_of_missing)} lists all of them.")
        write_atomically(list_of_missing, b"".join(os.fsencode(f"{name}\n") for name in listing.missing))
    write_atomically(out, b"".join(lines))
    return out
