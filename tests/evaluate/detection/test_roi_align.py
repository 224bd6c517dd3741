"""RoIAlign against values of torchvision's own code, and against bilinear samples taken one by one."""

import math

import pytest
import torch

from sce_fast.evaluate.detection.roi_align import plain_roi_align, roi_align

BOXES = torch.tensor(
    [[3, 5, 60, 70], [0, 0, 144, 96], [0, 0, 10, 96], [100, 20, 101, 21], [30, 30, 90, 94]], dtype=torch.float64
)
ROWS = torch.tensor([0, 0, 0, 1, 1])
# torchvision 0.26, ops/roi_align.py, _roi_align in float64: maps() and BOXES, scale 1/16, 3 × 3 bins, sampling ratio 0,
# aligned. The first channel of each box, row by row.
RECORDED = [
    [0.4945929, 0.0572413, 0.0445933, 0.2484252, -0.0313361, 0.1842515, 0.3868152, 0.0518658, -0.3647647],
    [0.1707547, 0.0572918, -0.2875761, 0.1158095, -0.0839871, -0.4161533, 0.0773167, 0.1894437, -0.1984150],
    [0.4776818, 0.4776818, 0.4792247, 0.3228627, 0.3228627, 0.3190202, 0.4182421, 0.4182421, 0.4045410],
    [-0.0124460, 0.0031647, 0.0187753, -0.0167651, -0.0012105, 0.0143442, -0.0210842, -0.0055856, 0.0099130],
    [0.3785306, 0.0616845, -0.1073937, 0.1737114, 0.0013615, 0.0137319, 0.2197030, -0.3384051, 0.4711584],
]  # fmt: skip


def maps():
    numbers = torch.arange(2 * 2 * 6 * 9, dtype=torch.float64)
    return torch.sin(numbers * numbers * 0.37 + numbers).view(2, 2, 6, 9)


def one_by_one(image, box, bins, stride):
    """Return the bins of one box of one channel from samples of the definition."""

    def at(y, x):
        if not (-1 <= y <= image.shape[0] and -1 <= x <= image.shape[1]):
            return 0.0
        y, x = min(max(y, 0.0), image.shape[0] - 1.0), min(max(x, 0.0), image.shape[1] - 1.0)
        low, left = int(y), int(x)
        high, right = min(low + 1, image.shape[0] - 1), min(left + 1, image.shape[1] - 1)
        above = image[low, left] * (1 - x + left) + image[low, right] * (x - left)
        below = image[high, left] * (1 - x + left) + image[high, right] * (x - left)
        return float(above * (1 - y + low) + below * (y - low))

    left, top, right, bottom = (side / stride - 0.5 for side in box)
    height, width = (bottom - top) / bins, (right - left) / bins
    rows, columns = math.ceil(height), math.ceil(width)
    return [
        sum(
            at(top + (p + (i + 0.5) / rows) * height, left + (q + (j + 0.5) / columns) * width)
            for i in range(rows)
            for j in range(columns)
        )
        / max(rows * columns, 1)
        for p in range(bins)
        for q in range(bins)
    ]


def test_ours_equals_torchvisions_recorded_values():
    found = plain_roi_align(maps(), BOXES, ROWS, stride=16, bins=3)
    assert found.shape == (5, 2, 3, 3)
    assert found[:, 0].flatten(1).tolist() == [pytest.approx(row, abs=1e-7) for row in RECORDED]


def test_ours_equals_samples_taken_one_by_one_inside_and_outside_the_map():
    outside = torch.tensor([[-40.0, -8.0, 10.0, 200.0], [200.0, 0.0, 300.0, 50.0], [20.0, 20.0, 20.0, 60.0]])
    boxes, rows = torch.cat([BOXES, outside.double()]), torch.cat([ROWS, torch.tensor([1, 1, 1])])
    found = plain_roi_align(maps(), boxes, rows, stride=16, bins=3)
    for box, row, values in zip(boxes.tolist(), rows.tolist(), found[:, 1], strict=True):
        assert values.flatten().tolist() == pytest.approx(one_by_one(maps()[row, 1], box, 3, 16), abs=1e-12)
    assert (found[-2:] == 0).all()  # beside the map, and without area
    assert plain_roi_align(maps(), boxes[:0], rows[:0], stride=16, bins=3).shape == (0, 2, 3, 3)


def test_gradients_and_the_choice_of_the_backend():
    image = maps().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: plain_roi_align(x, BOXES[:4], ROWS[:4], stride=16, bins=2), image)
    chosen = roi_align(maps(), BOXES, ROWS, stride=16, bins=3)  # torchvision's where it imports
    torch.testing.assert_close(chosen, plain_roi_align(maps(), BOXES, ROWS, stride=16, bins=3), rtol=0, atol=1e-6)
