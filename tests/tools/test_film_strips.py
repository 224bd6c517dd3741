"""Film strips: their size, the order and the colours of their frames."""

import numpy as np
import pytest
import torch
from PIL import Image

from sce_fast.tools.film_strips import SIDE, film_strips
from sce_fast.tools.pictures import DPI, Tile, draw_rows

MEAN, STD = (0.45, 0.5, 0.4), (0.225, 0.2, 0.25)


def test_frames_stand_in_order_of_time_with_white_between_them():
    colors = torch.rand(2, 3, 5, 12, 16)
    mean, std = (torch.tensor(values).view(3, 1, 1, 1) for values in (MEAN, STD))
    strips = film_strips((colors - mean) / std, MEAN, STD)
    assert strips.shape == (2, 12, 5 * 16 + 4, 3)
    for n in range(2):
        for f in range(5):
            frame = strips[n, :, 17 * f : 17 * f + 16]
            torch.testing.assert_close(frame, colors[n, :, f].permute(1, 2, 0))
    assert (strips[:, :, 16::17] == 1).all()


def test_values_out_of_range_are_cut():
    strips = film_strips(torch.full((1, 3, 2, 4, 4), 9.0), MEAN, STD)
    assert (strips == 1).all()
    assert not film_strips(torch.full((1, 3, 1, 4, 4), -9.0), MEAN, STD).any()


@pytest.mark.parametrize("text", ["", "0.93 left"])
def test_rows_of_strips_have_the_shape_of_the_strips(tmp_path, text):
    clips = torch.linspace(-2, 2, 8).view(1, 1, 8, 1, 1).expand(1, 3, 8, 32, 32)
    strip = film_strips(clips, MEAN, STD)[0]
    rows = [[Tile(strip, text), Tile(strip, text), Tile(strip, text)]] * 4
    path = draw_rows(rows, tmp_path / "strips.png", names=list("abcd"), first_apart=True, side=SIDE)
    with Image.open(path) as picture:
        pixels = np.array(picture.convert("L")).astype(float)
    height, width = pixels.shape
    assert width == pytest.approx(3 * SIDE * DPI * strip.shape[1] / strip.shape[0], rel=0.1)
    assert 4 * SIDE * DPI <= height <= 4 * SIDE * DPI * 1.9
    # The first row of the picture, left to right: each frame of each strip is brighter than the one before.
    row = pixels[round(0.2 * SIDE * DPI)]
    levels = row[row < 250]
    steps = np.diff(levels[np.flatnonzero(np.abs(np.diff(levels, prepend=-1)) > 5)])
    assert (steps < -100).sum() == 2  # from the last frame of a strip to the first of the next
