"""Random crops of images whose shorter side is scaled to a random length, as labelled videos are cropped."""

import numpy as np
import pytest

from sce_fast.data.image.augment import Augmentation
from sce_fast.data.image.plan import plan_view


def boxes(size, shorter_side, height, width, samples=4000):
    sizes = np.tile(np.array([[height, width]], dtype=np.int32), (samples, 1))
    augmentation = Augmentation(size=size, shorter_side=shorter_side)
    return plan_view(augmentation, sizes, seed=1, epoch=2, samples=np.arange(samples), view=0).boxes


def test_a_crop_of_one_length_lies_anywhere():
    """224 of 256 pixels of the shorter side, which has 512 here: 448 pixels, with 64 and 576 to spare."""
    found = boxes(224, (256, 256), 512, 1024)
    assert np.array_equal(found[:, 2:] - found[:, :2], np.full((4000, 2), 448))
    tops, lefts = found[:, 0], found[:, 1]
    assert np.unique(tops).tolist() == list(range(65))
    assert (lefts.min(), lefts.max()) == (0, 576)
    assert lefts.mean() == pytest.approx(288, abs=10)
    assert abs(np.corrcoef(tops, lefts)[0, 1]) < 0.05


def test_every_length_of_the_range_is_drawn_alike():
    """An image of 640 lines is cropped to 640 · 28 / length lines: 560 for 32 to 448 for 40."""
    found = boxes(28, (32, 40), 640, 900)
    sides, counts = np.unique(found[:, 2] - found[:, 0], return_counts=True)
    assert sides.tolist() == sorted(round(640 * 28 / length) for length in range(32, 41))
    assert counts.min() > 0.8 * 4000 / 9
    assert np.array_equal(found[:, 2] - found[:, 0], found[:, 3] - found[:, 1])


@pytest.mark.parametrize(("height", "width"), [(32, 48), (31, 31), (7, 90)])
def test_crops_lie_inside_small_images(height, width):
    found = boxes(28, (28, 40), height, width)
    assert found.min() >= 0
    assert (found[:, 2:] <= [height, width]).all()
    assert (found[:, :2] < found[:, 2:]).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"shorter_side": (200, 320)}, r"shorter_side=\(200, 320\): expected size=224 <= shortest <= longest"),
        ({"shorter_side": (320, 256)}, r"shorter_side=\(320, 256\): expected size=224 <= shortest <= longest"),
        ({"shorter_side": (256, 320), "padding": 4}, r"shorter_side=\(256, 320\): expected None with padding=4"),
    ],
)
def test_wrong_ranges_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        Augmentation(**settings)
