"""Images with transparency: which files have it, and their pixels over a background.

DALI's decoders drop alpha when they return RGB, so pixels that nobody is meant to see become visible. Asked for all
channels, DALI 2.4 gives alpha for only some formats (not for grey + alpha or palettes in PNG) and may crash on others.
So Pillow decodes the images that have alpha, and DALI all others.
"""

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

# PNG, WebP (within RIFF), TIFF and BigTIFF in both byte orders, JPEG 2000.
_MAY_HAVE_ALPHA = (b"\x89PNG", b"RIFF", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51")

_MAY_HAVE_ALPHA_4 = tuple(start[:4] for start in _MAY_HAVE_ALPHA)


def has_alpha(path: bytes) -> bool:
    """Return whether an image has an alpha channel, a transparent colour or a palette with transparency.

    Only the header is read. Files that Pillow cannot read, or reads wrongly, are left to DALI and count as having none.
    """
    try:
        with open(path, "rb") as file:
            return _has_alpha(file)
    except OSError:
        return False


def content_has_alpha(content: NDArray[np.uint8]) -> bool:
    """Return what has_alpha returns of a file with this content."""
    return content[:4].tobytes().startswith(_MAY_HAVE_ALPHA_4) and _has_alpha(io.BytesIO(content.tobytes()))


def _has_alpha(file: BinaryIO) -> bool:
    from PIL import ExifTags, Image

    try:
        with warnings.catch_warnings(action="ignore"):
            if not file.read(12).startswith(_MAY_HAVE_ALPHA):
                return False
            file.seek(0)
            image = Image.open(file)
            # Pillow 13 clips 16-bit grey to 8 bits, and returns some turned TIFFs with width and height exchanged.
            is_turned = image.format == "TIFF" and image.getexif().get(ExifTags.Base.Orientation, 1) != 1
            return image.has_transparency_data and not image.mode.startswith("I") and not is_turned
    except Exception:  # Pillow raises errors of many types
        return False


def composite(content: bytes, background: Color) -> NDArray[np.uint8]:
    """Decode the first frame of an image, turn it by its EXIF orientation and lay it over a background, as (H, W, 3).

    Each value is color · alpha + background · (1 − alpha), rounded.

    Raises:
        Exception: the image cannot be decoded.
    """
    from PIL import Image, ImageOps

    # From memory: Pillow would map a file, and SIGBUS ends the process if pages of a mapped file disappear.
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(content))).convert("RGBA")
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
