"""Write image files from arrays of pixels."""

import os
from pathlib import Path

import numpy as np
from PIL import Image


def write_png(path: Path | str, array: np.ndarray) -> None:
    """Write pixels (H, W) or (H, W, 3) as PNG and create the folder."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as file:
        Image.fromarray(array).save(file, format="png")
