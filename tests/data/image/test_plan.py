"""The plan is pure and reproducible, and has the published distribution."""

import dataclasses
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sce_fast.data.image.augment import AUGMENTATIONS, Augmentation, EvaluationView
from sce_fast.data.image.plan import (
    JITTER_ORDERS,
    ColorOperation,
    evaluation_boxes,
    plan_view,
    plan_views,
)
from sce_fast.data.order import epoch_order
from sce_fast.util.philox import Draw, uniform

EVERYTHING = Augmentation(**{**AUGMENTATIONS["strong"], "solarize": 0.5})
PLANNED = {
    "boxes": [6, 1, 37, 35],
    "operations": [3, 0, 1, 2, -1],
    "factors": [0.05624178424477577, 1.3825010061264038, 1.3432495594024658, 0.8011910915374756, 0.0],
    "blur_sigma": 0.0,
    "solarize": True,
    "flip": True,
}
CHECKSUMS = {
    "boxes": 2696044172,
    "operations": 2704628723,
    "factors": 367598699,
    "blur_sigma": 2114606574,
    "solarize": 382761662,
    "flip": 1771734440,
}


def plan(augmentation=EVERYTHING, samples=range(64), seed=1, epoch=0, view=0, size=(375, 500)):
    samples = np.array(samples)
    return plan_view(
        augmentation, np.tile(np.int32(size), (len(samples), 1)), seed=seed, epoch=epoch, samples=samples, view=view
    )


def as_arrays(view_plan):
    return {field.name: getattr(view_plan, field.name) for field in dataclasses.fields(view_plan)}


def test_the_numbers_never_change():
    """A change here would change the pixels of every resumed run and every published figure."""
    assert uniform(42, 1, np.array([0, 1]), Draw.CROP_AREA, view=1).tolist() == [
        0.9968655600381268,
        0.07067029424719329,
    ]
    assert epoch_order(42, 1, 10).tolist() == [5, 3, 9, 2, 6, 1, 0, 4, 8, 7]


def test_plans_never_change():
    """Recorded: one plan, and checksums of many, of which some need ten attempts and some fall back to the centre."""
    augmentations = tuple(Augmentation(**AUGMENTATIONS[name]) for name in ("weak", "beta"))
    augmentations += (dataclasses.replace(EVERYTHING, scale=(0.05, 0.2), ratio=(0.5, 1.5), brightness=1.5),)
    augmentations += (Augmentation(size=32, padding=4), Augmentation(size=32, shorter_side=(40, 60)))
    samples, sizes = np.arange(400), np.stack([np.arange(400) % 97 + 60, np.arange(400) * 7 % 501 + 60], axis=1)
    drawn = plan_views(augmentations, sizes.astype(np.int32), seed=42, epoch=1, samples=samples)
    assert {name: values[1, 1].tolist() for name, values in as_arrays(drawn).items()} == PLANNED
    assert {name: zlib.crc32(values) for name, values in as_arrays(drawn).items()} == CHECKSUMS


def test_what_one_operator_does_changes_nothing_for_the_others():
    """The plan may compute its parts in any order or leave some out; the others do not change."""
    full = as_arrays(plan())
    for part, settings in {
        "operations": {"jitter": 0.0, "grayscale": 0.0},
        "blur_sigma": {"blur": 0.0},
        "solarize": {"solarize": 0.0},
        "flip": {"flip": 0.0},
        "boxes": {"scale": (0.5, 0.9)},
    }.items():
        changed = as_arrays(plan(dataclasses.replace(EVERYTHING, **settings)))
        ignored = {part, "factors"} if part == "operations" else {part}
        assert not np.array_equal(changed[part], full[part])
        for name in full.keys() - ignored:
            assert np.array_equal(changed[name], full[name]), (part, name)


def test_a_sample_has_the_same_plan_in_any_batch():
    full, part = as_arrays(plan(samples=range(64))), as_arrays(plan(samples=[40, 3]))
    for name, values in full.items():
        assert np.array_equal(values[[40, 3]], part[name])
    assert not np.array_equal(as_arrays(plan(view=1))["boxes"], full["boxes"])


def test_views_that_are_planned_together_are_those_of_one_call_each():
    """Also where images need more than the attempts that are drawn for all."""
    samples, sizes = np.arange(300), np.random.default_rng(0).integers(1, 500, (300, 2)).astype(np.int32)
    augmentations = tuple(Augmentation(**AUGMENTATIONS[name]) for name in ("weak", "alpha", "beta"))
    augmentations += (dataclasses.replace(EVERYTHING, scale=(0.05, 0.2), ratio=(0.5, 1.5), brightness=1.5),)
    together = plan_views(augmentations, sizes, seed=3, epoch=2, samples=samples, first_view=1)
    for view, augmentation in enumerate(augmentations, start=1):
        for i in (0, 7, 299):
            own = slice(i, i + 1)
            alone = plan_view(augmentation, sizes[own], seed=3, epoch=2, samples=samples[own], view=view)
            for name, values in as_arrays(alone).items():
                assert np.array_equal(as_arrays(together[view - 1])[name][own], values), (view, name)


def test_a_crop_is_the_first_of_ten_that_fits():
    """By hand: the attempts one after the other, for wide images that many crops do not fit."""
    a, seed, epoch, view = Augmentation(scale=(0.5, 1.0)), 5, 1, 2
    samples = np.arange(200)
    boxes = plan(a, samples=samples, seed=seed, epoch=epoch, view=view, size=(200, 330)).boxes
    areas, ratios = (uniform(seed, epoch, samples, d, view, count=10) for d in (Draw.CROP_AREA, Draw.CROP_RATIO))
    used = np.zeros(10, dtype=int)
    for (top, left, bottom, right), area, ratio in zip(boxes, areas, ratios, strict=True):
        for attempt in range(10):
            pixels = 200 * 330 * (0.5 + 0.5 * area[attempt])
            shape = (3 / 4) ** (1 - ratio[attempt]) * (4 / 3) ** ratio[attempt]
            width, height = round((pixels * shape) ** 0.5), round((pixels / shape) ** 0.5)
            if width <= 330 and height <= 200:
                assert (bottom - top, right - left) == (height, width)
                used[attempt] += 1
                break
    assert used[4:].sum() > 5


@given(height=st.integers(1, 900), width=st.integers(1, 900), seed=st.integers(0, 2**32 - 1))
def test_boxes_lie_in_the_image(height, width, seed):
    boxes = plan(samples=range(20), seed=seed, size=(height, width)).boxes
    top, left, bottom, right = boxes.T
    assert (top >= 0).all()
    assert (top < bottom).all()
    assert (bottom <= height).all()
    assert (left >= 0).all()
    assert (left < right).all()
    assert (right <= width).all()


def test_crops_have_the_published_distribution():
    boxes = plan(samples=range(4000), size=(500, 500)).boxes.astype(float)
    height, width = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    area, ratio = height * width / 500**2, np.log(width / height)
    assert 0.195 < area.min() < 0.21
    assert ratio.min() == pytest.approx(np.log(3 / 4), abs=0.01)
    assert ratio.max() == pytest.approx(np.log(4 / 3), abs=0.01)
    small = area < 0.7  # where every attempt fits, both are uniform
    assert area[small].mean() == pytest.approx(0.45, abs=0.01)
    assert ratio[small].mean() == pytest.approx(0, abs=0.01)
    free = 500 - height[small]
    assert (boxes[small, 0] / free).mean() == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize(("size", "expected"), [((10, 1000), (10, 13)), ((1000, 10), (13, 10)), ((12, 900), (12, 16))])
def test_extreme_shapes_fall_back_to_the_centre(size, expected):
    """torchvision's rule: the whole shorter side, and the centre of the longer side at the nearest allowed ratio."""
    boxes = plan(Augmentation(scale=(0.9, 1.0)), samples=range(50), size=size).boxes
    height, width = expected
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    assert (boxes == [top, left, top + height, left + width]).all()


def test_jitter_has_the_published_distribution():
    a = Augmentation(**AUGMENTATIONS["strong"])
    drawn = plan(a, samples=range(8000))
    jittered = drawn.operations[:, 0] != ColorOperation.NONE
    assert jittered.mean() == pytest.approx(0.8, abs=0.02)
    orders, counts = np.unique(drawn.operations[jittered, :4], axis=0, return_counts=True)
    assert len(orders) == len(JITTER_ORDERS) == 24
    assert counts.min() > 0.7 * counts.mean()
    for operation, center, width in ((0, 1, 0.4), (1, 1, 0.4), (2, 1, 0.4), (3, 0, 0.1)):
        factors = drawn.factors[:, :4][drawn.operations[:, :4] == operation]
        assert np.abs(factors - center).max() <= width + 1e-6
        assert factors.mean() == pytest.approx(center, abs=0.02)
        assert factors.std() == pytest.approx(width / 3**0.5, rel=0.03)
    assert (drawn.operations[:, 4] == ColorOperation.GRAYSCALE).mean() == pytest.approx(0.2, abs=0.02)
    assert (drawn.blur_sigma > 0).mean() == pytest.approx(0.5, abs=0.02)
    assert drawn.blur_sigma[drawn.blur_sigma > 0].min() >= 0.1
    assert drawn.blur_sigma.max() <= 2.0
    assert drawn.flip.mean() == pytest.approx(0.5, abs=0.02)
    assert not drawn.solarize.any()


def test_the_published_augmentations():
    """The papers' table: jitter strengths, grayscale, blur and solarize of each augmentation."""
    table = {
        "weak": (0, 0, 0, 0, 0),
        "strong": (0.8, 0.4, 0.2, 0.5, 0),
        "alpha": (0.8, 0.2, 0.2, 1.0, 0),
        "beta": (0.8, 0.2, 0.2, 0.1, 0.2),
        "gamma": (0.8, 0.2, 0.2, 0.5, 0.2),
    }
    assert table.keys() == AUGMENTATIONS.keys()
    for name, expected in table.items():
        a = Augmentation(**AUGMENTATIONS[name])
        assert (a.jitter, a.saturation, a.grayscale, a.blur, a.solarize) == expected
        assert (a.scale, a.flip, a.blur_sigma) == ((0.2, 1.0), 0.5, (0.1, 2.0))
        if a.jitter:
            assert (a.brightness, a.contrast, a.hue) == (0.4, 0.4, 0.1)


def test_evaluation_boxes_are_torchvisions():
    sizes, boxes = evaluation_boxes(
        EvaluationView(resize=256, crop=224), np.array([[375, 500], [500, 333], [256, 256]])
    )
    assert sizes.tolist() == [[256, 341], [384, 256], [256, 256]]
    assert boxes.tolist() == [[16, 58, 240, 282], [80, 16, 304, 240], [16, 16, 240, 240]]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": 0}, "size=0"),
        ({"flip": 1.5}, "flip=1.5: expected a probability"),
        ({"scale": (0.0, 1.0)}, "scale="),
        ({"scale": (0.5, 0.2)}, "scale="),
        ({"hue": 0.6}, "hue=0.6"),
        ({"blur_sigma": (0.0, 1.0)}, "blur_sigma="),
    ],
)
def test_bad_augmentations_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        Augmentation(**settings)
    with pytest.raises(ValueError, match="crop=300, resize=256"):
        EvaluationView(resize=256, crop=300)
