"""The demo's images: real handwritten digits, each at a random position and size on a larger canvas."""

import shutil
from pathlib import Path

import numpy as np

CANVAS = 40
SIZES = (20, 32)
TEST_SHARE = 0.2
SEED = 7


def write_digits(folder: Path) -> tuple[Path, Path]:
    """Write the class folders FOLDER/train and FOLDER/test of PNG images, unless they exist, and return both.

    The 1,797 digits come with scikit-learn (UCI, 8 × 8 pixels, 43 writers). At random positions they cannot be told
    apart by comparing pixels.
    """
    from PIL import Image
    from sklearn.datasets import load_digits

    train, test = folder / "train", folder / "test"
    if train.is_dir() and test.is_dir():
        return train, test
    digits = load_digits()
    random = np.random.Generator(np.random.Philox(SEED))
    held_out = random.permutation(len(digits.images)) < round(TEST_SHARE * len(digits.images))
    writing = folder.with_name(folder.name + ".writing")
    shutil.rmtree(writing, ignore_errors=True)
    for i, (digit, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        size = int(random.integers(SIZES[0], SIZES[1] + 1))
        left, top = (int(random.integers(0, CANVAS - size + 1)) for _ in range(2))
        image = Image.fromarray((digit * (255 / 16)).astype(np.uint8)).resize((size, size), Image.Resampling.BICUBIC)
        canvas = Image.new("L", (CANVAS, CANVAS))
        canvas.paste(image, (left, top))
        path = writing / ("test" if held_out[i] else "train") / str(label) / f"{i:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        canvas.save(path)
    writing.rename(folder)
    return train, test
