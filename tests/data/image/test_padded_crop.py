"""Random crops of padded images, as CIFAR's augmentation takes them."""

import os

import numpy as np
import pytest

from helpers.images import write_png
from sce_fast.data.image.augment import Augmentation
from sce_fast.data.image.plan import plan_view
from sce_fast.data.image.views import RandomViews
from sce_fast.data.index import index_images
from sce_fast.data.loader import TrainingLoader

PLAIN = {"mean": (0, 0, 0), "std": (1 / 255,) * 3}


def boxes(size, padding, height, width, samples=4000):
    sizes = np.tile(np.array([[height, width]], dtype=np.int32), (samples, 1))
    augmentation = Augmentation(size=size, padding=padding)
    return plan_view(augmentation, sizes, seed=1, epoch=2, samples=np.arange(samples), view=0).boxes


@pytest.mark.parametrize(
    ("height", "width", "tops", "lefts"),
    [
        (32, 32, (-4, 4), (-4, 4)),
        (40, 30, (-4, 12), (-4, 2)),
        (20, 24, (-8, -4), (-4, -4)),  # smaller than the crop even with its border: the whole image is inside
    ],
)
def test_corners_are_uniform_over_all_places_that_fit(height, width, tops, lefts):
    found = boxes(32, 4, height, width)
    assert np.array_equal(found[:, 2:] - found[:, :2], np.full((4000, 2), 32))
    for corner, (low, high) in zip(found[:, :2].T, (tops, lefts), strict=True):
        values, counts = np.unique(corner, return_counts=True)
        assert values.tolist() == list(range(low, high + 1))
        assert counts.min() > 0.7 * 4000 / len(values)


def test_pixels_are_those_of_the_image_in_a_black_frame(tmp_path):
    random = np.random.default_rng(0)
    for i, shape in enumerate(((32, 32), (48, 37), (32, 32), (10, 50))):
        write_png(tmp_path / f"{i}.png", random.integers(0, 256, (*shape, 3), dtype=np.uint8))
    index = index_images(tmp_path)
    augmentation = Augmentation(size=32, padding=4, **PLAIN)
    views = RandomViews(index, (augmentation,), seed=3)
    batch = next(TrainingLoader(index, views, batch_size=4))
    plan = plan_view(augmentation, index.sizes[batch.samples], seed=3, epoch=0, samples=batch.samples, view=0)
    assert plan.flip.any()
    assert not plan.flip.all()
    for n, sample in enumerate(batch.samples):
        framed = np.pad(pixels(os.fsdecode(index.path(sample))), ((64, 64), (64, 64), (0, 0)))
        top, left, bottom, right = plan.boxes[n] + 64
        expected = framed[top:bottom, left:right]
        expected = expected[:, ::-1] if plan.flip[n] else expected
        assert np.abs(batch.views[0][n].permute(1, 2, 0).numpy() - expected).max() < 1e-3


def pixels(path):
    from PIL import Image

    return np.array(Image.open(path))


def test_padding_is_checked():
    with pytest.raises(ValueError, match="padding=-1: expected at least 0 pixels, or None"):
        Augmentation(padding=-1)
