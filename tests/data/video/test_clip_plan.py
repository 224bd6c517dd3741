"""The plan of clips is pure and reproducible: neither batches nor other settings change a sample's clip."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.timelines import timelines
from sce_fast.data.image.augment import AUGMENTATIONS, Augmentation
from sce_fast.data.image.plan import plan_view
from sce_fast.data.video.clips import ClipSampling
from sce_fast.data.video.plan import ClipPlan, plan_clips

AUGMENTATIONS_OF_VIEWS = tuple(Augmentation(**AUGMENTATIONS[name]) for name in ("alpha", "beta", "gamma"))
RANDOM = np.random.default_rng(0)
# Every third video has a variable rate; some are shorter than a clip.
VIDEOS = timelines(
    *(
        (int(count), 40) if i % 3 else np.cumsum(RANDOM.integers(10, 90, count + 1)).tolist()
        for i, count in enumerate(RANDOM.integers(3, 300, 50))
    )
)
SIZES = RANDOM.integers(100, 400, (50, 2)).astype(np.int32)
DIFFERENCES = ClipSampling(temporal_difference=0.3)


def plans(sampling=DIFFERENCES, samples=range(50), views=2, seed=1, epoch=0) -> tuple[ClipPlan, ...]:
    samples = np.array(samples)
    augmentations = AUGMENTATIONS_OF_VIEWS[:views]
    return plan_clips(sampling, augmentations, VIDEOS, SIZES[samples], seed=seed, epoch=epoch, samples=samples)


def columns(plan: ClipPlan) -> dict[str, np.ndarray]:
    own = {name: getattr(plan, name) for name in ("frames", "neighbours", "difference")}
    return own | {f"view.{field.name}": getattr(plan.view, field.name) for field in dataclasses.fields(plan.view)}


def assert_equal(plan, other, ignored=()):
    a, b = columns(plan), columns(other)
    for name in a.keys() - set(ignored):
        assert np.array_equal(a[name], b[name]), name


def test_the_numbers_never_change():
    """A change here would change the pixels of every resumed run and every published figure."""
    lines = timelines((250, 40))
    sampling = ClipSampling(frames=4, temporal_difference=0.5, speeds=(1.0, 2.0), duration_jitter=0.1)
    known = []
    for settings in ({}, {"sampler": "cvrl", "cvrl_power": 2.0}, {"seconds": None, "stride": 5}):
        chosen = dataclasses.replace(sampling, **settings)
        planned = plan_clips(
            chosen, AUGMENTATIONS_OF_VIEWS[:2], lines, np.int32([[240, 320]]), seed=42, epoch=1, samples=np.array([0])
        )
        known.append([[plan.frames[0].tolist(), plan.neighbours[0].tolist()] for plan in planned])
    assert known == [
        [[[54, 76, 99, 121], [55, 77, 100, 122]], [[45, 90, 135, 179], [46, 91, 136, 180]]],
        [[[80, 102, 124, 146], [81, 103, 125, 147]], [[44, 66, 88, 110], [45, 67, 89, 111]]],
        [[[69, 74, 79, 84], [70, 75, 80, 85]], [[85, 95, 106, 116], [86, 96, 107, 117]]],
    ]


@given(
    samples=st.lists(st.integers(0, 49), min_size=1, max_size=20),
    views=st.integers(1, 3),
    sampler=st.sampled_from(["random", "cvrl"]),
    by_stride=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_a_sample_has_the_same_plan_in_any_batch(samples, views, sampler, by_stride, seed):
    """In another order, repeated, alone, with more views."""
    sampling = ClipSampling(
        seconds=None if by_stride else 2.56, stride=6 if by_stride else None, sampler=sampler, speeds=(0.5, 1.0),
        duration_jitter=0.2, temporal_difference=0.5,
    )  # fmt: skip
    full = plans(sampling, views=3, seed=seed)
    for plan, other in zip(full, plans(sampling, samples, views, seed), strict=False):
        part = columns(other)
        for name, values in columns(plan).items():
            assert np.array_equal(values[samples], part[name]), name


def test_plans_depend_on_seed_epoch_sample_and_view():
    first, second = plans()
    assert not np.array_equal(first.frames, second.frames)
    assert not np.array_equal(first.view.boxes, second.view.boxes)
    assert not np.array_equal(first.difference, second.difference)
    for other in (plans(seed=2)[0], plans(epoch=1)[0]):
        assert not np.array_equal(first.frames, other.frames)
        assert not np.array_equal(first.difference, other.difference)
    twins = timelines((250, 40), (250, 40))
    (plan,) = plan_clips(
        DIFFERENCES, AUGMENTATIONS_OF_VIEWS[:1], twins, SIZES[:2], seed=1, epoch=0, samples=np.arange(2)
    )
    assert not np.array_equal(plan.frames[0], plan.frames[1])


def test_a_clip_is_augmented_like_an_image():
    for view, plan in enumerate(plans()):
        expected = plan_view(AUGMENTATIONS_OF_VIEWS[view], SIZES, seed=1, epoch=0, samples=np.arange(50), view=view)
        for field in dataclasses.fields(expected):
            assert np.array_equal(getattr(plan.view, field.name), getattr(expected, field.name))


@pytest.mark.parametrize(
    ("settings", "changed"),
    [
        ({"temporal_difference": 0.0}, {"frames", "neighbours", "difference"}),
        ({"speeds": (1.0, 3.0)}, {"frames", "neighbours"}),
        ({"duration_jitter": 0.3}, {"frames", "neighbours"}),
        ({"sampler": "cvrl"}, {"frames", "neighbours"}),
    ],
)
def test_what_one_setting_draws_changes_nothing_for_the_others(settings, changed):
    for plan, other in zip(plans(), plans(dataclasses.replace(DIFFERENCES, **settings)), strict=True):
        assert_equal(plan, other, ignored=changed)
        for name in changed:
            assert not np.array_equal(columns(plan)[name], columns(other)[name])


def test_differences_are_drawn_for_each_clip_with_their_probability():
    samples = np.arange(8000)
    lines = VIDEOS.subset(samples % 50)
    both = plan_clips(
        DIFFERENCES, AUGMENTATIONS_OF_VIEWS[:2], lines, SIZES[samples % 50], seed=0, epoch=0, samples=samples
    )
    drawn = np.stack([plan.difference for plan in both])
    assert drawn.mean(axis=1) == pytest.approx([0.3, 0.3], abs=0.015)
    assert abs(np.corrcoef(drawn)[0, 1]) < 0.03


def test_neighbours_by_hand():
    """The next frame of the video; the last frame of the clip repeats the difference before it."""

    def frames_and_neighbours(count, **settings):
        sampling = ClipSampling(**{"temporal_difference": 1.0, "frames": 4, **settings})
        (plan,) = plan_clips(
            sampling, (Augmentation(),), timelines((count, 40)), SIZES[:1], seed=0, epoch=0, samples=np.array([0])
        )
        assert plan.difference.tolist() == [sampling.temporal_difference == 1]
        return plan.frames[0].tolist(), plan.neighbours[0].tolist()

    # 64 native frames, 2.56 s at 25 frames/s: a clip without room
    assert frames_and_neighbours(64) == ([0, 21, 42, 62], [1, 22, 43, 63])
    assert frames_and_neighbours(64, temporal_difference=0.0) == ([0, 21, 42, 63], [0, 21, 42, 63])
    assert frames_and_neighbours(64, seconds=None, stride=21) == ([0, 21, 42, 62], [1, 22, 43, 63])
    assert frames_and_neighbours(4) == ([0, 1, 2, 2], [1, 2, 3, 3])
    assert frames_and_neighbours(3, frames=6) == ([0, 0, 0, 1, 1, 1], [1, 1, 1, 2, 2, 2])
    assert frames_and_neighbours(2) == ([0, 0, 0, 0], [1, 1, 1, 1])
    assert frames_and_neighbours(1) == ([0, 0, 0, 0], [0, 0, 0, 0])  # there is nothing to subtract but itself


def test_without_differences_a_clip_has_no_neighbours():
    for plan in plans():
        assert plan.difference.any()
        kept = ~plan.difference
        assert np.array_equal(plan.frames[kept], plan.neighbours[kept])
        long = plan.difference & (VIDEOS.frames > 80)
        assert (plan.neighbours[long] == plan.frames[long] + 1).all()


def test_sizes_of_other_samples_are_refused():
    with pytest.raises(ValueError, match="sizes has 50 rows: expected one for each of the 2 samples"):
        plan_clips(DIFFERENCES, (Augmentation(),), VIDEOS, SIZES, seed=0, epoch=0, samples=np.array([3, 4]))
