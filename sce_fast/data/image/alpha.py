"""Images that Pillow decodes: those with transparency, as pixels over a background, and GIFs, which DALI does not read.

DALI's decoders drop alpha when they return RGB, so pixels that nobody is meant to see become visible. Asked for all
channels, DALI 2.4 gives alpha for only some formats (not for grey + alpha or palettes in PNG) and may crash on others.
So Pillow decodes the images that have alpha, and DALI all others but GIFs, of which Pillow takes the first frame.
"""

import enum
import io
import os
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from sce_fast.data.image.background import Color

GIF_START = b"GIF8"
# GIF, PNG, WebP (within RIFF), TIFF and BigTIFF in both byte orders, JPEG 2000.
_STARTS = (
    GIF_START, b"\x89PNG", b"RIFF", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51",
)  # fmt: skip
_STARTS_4 = tuple(start[:4] for start in _STARTS)


class Trait(enum.IntFlag):
    """Why Pillow may decode an image in place of DALI. The numbers are in caches."""

    ALPHA = 1  # an alpha channel, a transparent colour, or a palette with transparency
    GIF = 2


def traits_of(file: bytes | NDArray[np.uint8]) -> int:
    """Return the traits of an image from its path or the content of its file.

    Only the header is read. Files that Pillow cannot read, or reads wrongly, are left to DALI and have none.
    """
    if isinstance(file, bytes):
        try:
            with open(file, "rb") as opened:
                return _traits(opened)
        except OSError:
            return 0
    return _traits(io.BytesIO(file.tobytes())) if file[:4].tobytes().startswith(_STARTS_4) else 0


def _traits(file: BinaryIO) -> int:
    from PIL import ExifTags, Image

    start = file.read(12)
    if not start.startswith(_STARTS):
        return 0
    gif = int(Trait.GIF) if start.startswith(GIF_START) else 0
    try:
        with warnings.catch_warnings(action="ignore"):
            file.seek(0)
            image = Image.open(file)
            # Pillow 13 clips 16-bit grey to 8 bits, and returns some turned TIFFs with width and height exchanged.
            is_turned = image.format == "TIFF" and image.getexif().get(ExifTags.Base.Orientation, 1) != 1
            has_alpha = image.has_transparency_data and not image.mode.startswith("I") and not is_turned
            return gif | Trait.ALPHA if has_alpha else gif
    except Exception:  # Pillow raises errors of many types
        return gif


def gif_size(file: bytes | NDArray[np.uint8]) -> tuple[int, int]:
    """Return height and width of a GIF, as `composite` decodes it, from its path or content; (0, 0) if it is damaged.

    The first frame enlarges an image whose header announces less.
    """
    from PIL import Image

    source = os.fsdecode(file) if isinstance(file, bytes) else io.BytesIO(file.tobytes())
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(source) as image:
            return image.height, image.width
    except Exception:  # Pillow raises errors of many types
        return 0, 0


def composite(content: bytes, background: Color) -> NDArray[np.uint8]:
    """Decode the first frame of an image, turn it by its EXIF orientation and lay it over a background, as (H, W, 3).

    Each value is color · alpha + background · (1 − alpha), rounded.

    Raises:
        Exception: the image cannot be decoded.
    """
    from PIL import Image, ImageOps

    # From memory: Pillow would map a file, and SIGBUS ends the process if pages of a mapped file disappear.
    opened = Image.open(io.BytesIO(content))
    # The size of a GIF is that of its header, and no viewer turns it.
    image = (opened if opened.format == "GIF" else ImageOps.exif_transpose(opened)).convert("RGBA")
    canvas = Image.new("RGB", image.size, background)
    canvas.paste(image, mask=image)
    return np.array(canvas)


def compositor(background: Color, *, device: str, threads: int) -> Callable[[Any], Any]:
    """Return the operator of a DALI graph that turns files' contents into images (H, W, 3), as `composite`."""
    from nvidia.dali import fn

    over_background = partial(composite, background=background)

    def run(contents: list[Any]) -> list[NDArray[np.uint8]]:
        return list(_pool(threads).map(over_background, [np.asarray(content).tobytes() for content in contents]))

    def operator(content: Any) -> Any:
        done = fn.python_function(content, function=run, batch_processing=True)
        image = fn.reinterpret(done, layout="HWC")  # the output of a Python function has no layout
        return image if device == "cpu" else image.gpu()

    return operator


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    """Return the one pool of this size: after each bad file, a loader builds another pipeline."""
    return ThreadPoolExecutor(threads, thread_name_prefix="alpha")


os.register_at_fork(after_in_child=_pool.cache_clear)  # a child has the pool but not its threads
