"""The colour behind transparent images, as users write it."""

import re

Color = tuple[int, int, int]

NONE = "none"
BLACK: Color = (0, 0, 0)


def background_color(text: str) -> Color | None:
    """Return the red, green and blue (0 to 255) of a background, or None for "none": alpha is then dropped.

    Args:
        text: none, a CSS colour name, #rrggbb, or three numbers separated by commas.

    Raises:
        ValueError: the text is none of these.

    Example:
        >>> background_color("white"), background_color("#ff8000"), background_color("255,128,0")
        ((255, 255, 255), (255, 128, 0), (255, 128, 0))
    """
    from PIL import ImageColor

    written = text.strip().lower()
    if written == NONE:
        return None
    digits = ImageColor.colormap.get(written, written)
    if re.fullmatch(r"#[0-9a-f]{6}", str(digits)):
        red, green, blue = bytes.fromhex(str(digits)[1:])
        return red, green, blue
    numbers = [int(number) if number.strip().isdecimal() else 256 for number in written.split(",")]
    if len(numbers) == 3 and max(numbers) <= 255:
        return numbers[0], numbers[1], numbers[2]
    raise ValueError(
        f"background={text!r}: expected none, a colour name such as black or white, #rrggbb, or three numbers from 0 "
        "to 255 such as 255,128,0"
    )
