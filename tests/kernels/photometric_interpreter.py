"""Test the pixel kernels in Triton's interpreter against csrc/cpu, and the loaders that use them against the CPU path.

pytest does not collect this file. test_triton.py runs it in a process with TRITON_INTERPRET=1.
"""

import os

import numpy as np
import pytest
import torch

from sce_fast.data.image.augment import AUGMENTATIONS, Augmentation
from sce_fast.data.image.fused import Finish, blur_radius, blur_weights, settings_of
from sce_fast.data.image.plan import JITTER_ORDERS, ColorOperation, ViewPlan
from sce_fast.data.image.views import RandomViews
from sce_fast.data.index import index_images
from sce_fast.data.loader import TrainingLoader
from sce_fast.kernels import photometric
from sce_fast.kernels.photometric import LARGEST_RADIUS, finish_views
from sce_fast.native import CPU

assert os.environ.get("TRITON_INTERPRET") == "1", "run by tests/kernels/test_triton.py"
NONE, CONTRAST, HUE, GRAYSCALE = (int(ColorOperation[name]) for name in ("NONE", "CONTRAST", "HUE", "GRAYSCALE"))
BYTES = dict(mean=(0.0,) * 3, std=(1 / 255,) * 3)  # so that views have the values of pixels


def still(count):
    """Return a plan that changes nothing; the kernel does not read its boxes."""
    return ViewPlan(
        np.zeros((count, 4), np.int32), np.full((count, 5), NONE, dtype=np.int32), np.zeros((count, 5), np.float32),
        np.zeros(count, np.float32), np.zeros(count, bool), np.zeros(count, bool),
    )  # fmt: skip


def random_plan(count, sigma=0.6, seed=0):
    """Return a plan in which every operation is likely; the contrast stands in every place.

    Args:
        sigma: the largest one. The interpreter takes a second for a few images with a wide window.
    """
    random, plan = np.random.default_rng(seed), still(count)
    plan.operations[:, :4] = JITTER_ORDERS[random.permutation(len(JITTER_ORDERS))[np.arange(count) % 24]]
    plan.operations[:, 4] = random.choice([NONE, GRAYSCALE], count)
    plan.operations[random.random((count, 5)) < 0.2] = NONE
    plan.factors[:] = random.uniform(0.2, 1.8, (count, 5))
    hue = plan.operations == HUE
    plan.factors[hue] = random.uniform(-0.5, 0.5, hue.sum())
    plan.blur_sigma[:] = np.where(random.random(count) < 0.6, random.uniform(0.1, sigma, count), 0)
    plan.solarize[:], plan.flip[:] = random.random((2, count)) < 0.5
    return plan


def random_pixels(*shape, seed=0):
    """Return pixels (…, 3) whose images differ in brightness, and so in the mean that contrast takes."""
    random = np.random.default_rng(seed)
    levels = random.integers(20, 257, shape[:-2])[..., None, None, None]
    return random.integers(0, levels, (*shape, 3), dtype=np.uint8)


def by_cpu(pixels, plan):
    """Return the images or clips of csrc/cpu, flipped."""
    images = CPU.module.augment(list(pixels), plan.operations, plan.factors, plan.blur_sigma, plan.solarize, 1)
    return np.stack([i[..., ::-1, :] if flips else i for i, flips in zip(images, plan.flip, strict=True)])


def by_kernel(pixels, plan, sigma=0.6, **settings):
    """Return the views with channels in the last place, as they lie in memory."""
    radius = blur_radius(Augmentation(blur=1.0, blur_sigma=(0.1, sigma)))
    weights = torch.from_numpy(blur_weights(plan.blur_sigma, radius)) if plan.blur_sigma.any() else None
    views = finish_views(
        torch.from_numpy(pixels), torch.from_numpy(settings_of(plan)), weights, **{**BYTES, **settings}
    )
    return views.movedim(1, -1)


def assert_same_bits(pixels, plan, sigma=0.6):
    views = by_kernel(pixels, plan, sigma).numpy()
    assert np.array_equal(views, by_cpu(pixels, plan)), "the views differ"


@pytest.mark.parametrize("operation", list(range(5)))
def test_each_colour_operation(operation):
    plan, slot = still(3), 4 if operation == GRAYSCALE else 1
    plan.operations[:, slot] = operation
    plan.factors[:, slot] = [0.37, -0.5, 0.5] if operation == HUE else [0.6, 1.7, 0.0]
    pixels = random_pixels(3, 7, 9)
    assert_same_bits(pixels, plan)
    assert not np.array_equal(by_cpu(pixels, plan), pixels)


def test_blur_solarize_and_flip_alone():
    plan = still(4)
    plan.blur_sigma[0], plan.solarize[1], plan.flip[2] = 0.6, True, True
    pixels = random_pixels(4, 5, 6)
    assert_same_bits(pixels, plan)
    views = by_kernel(pixels, plan).numpy()
    assert [np.array_equal(view, image) for view, image in zip(views, pixels, strict=True)] == [False] * 3 + [True]


def test_contrast_of_an_image_with_two_blocks_of_sums(monkeypatch):
    monkeypatch.setattr(photometric, "sums_block", lambda sums: 16)  # added in two turns
    plan = still(1)
    plan.operations[0, :2], plan.factors[0, :2] = [CONTRAST, 0], [0.7, 1.3]
    assert_same_bits(random_pixels(1, 59, 37), plan)


def test_everything_at_once():
    plan = random_plan(3, seed=5)
    plan.operations[0], plan.blur_sigma[0] = [2, 0, CONTRAST, HUE, NONE], 0.5
    assert_same_bits(random_pixels(3, 5, 11), plan)


def test_images_of_many_programs(monkeypatch):
    """Each kernel cuts an image into parts that do not end where the image does."""
    monkeypatch.setattr(photometric, "PIXELS_AT_A_TIME", 16)
    monkeypatch.setattr(photometric, "BLURRED_ROWS", 4)
    monkeypatch.setattr(photometric, "blur_block", lambda radius: 16)
    plan = random_plan(1)
    plan.blur_sigma[0], plan.flip[0] = 0.6, True
    assert_same_bits(random_pixels(1, 9, 7), plan)
    plan.blur_sigma[0] = 0
    assert_same_bits(random_pixels(1, 9, 7), plan)


@pytest.mark.slow
def test_every_order_of_the_jitter():
    assert_same_bits(random_pixels(24, 7, 10), random_plan(24, seed=1))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_many_sizes(seed):
    random = np.random.default_rng(seed)
    for _ in range(2):
        height, width = random.integers(1, 40, 2)
        sigma = random.uniform(0.2, LARGEST_RADIUS / 3)
        plan = random_plan(3, sigma, seed=int(random.integers(1000)))
        assert_same_bits(random_pixels(3, height, width, seed=seed), plan, sigma)


@pytest.mark.parametrize(
    ("shape", "sigma"),
    [((2, 1), 0.6), *(pytest.param((h, w), 2.0, marks=pytest.mark.slow) for h, w in [(1, 5), (7, 2)])],
)
def test_windows_wider_than_the_image(shape, sigma):
    plan = random_plan(2)
    plan.blur_sigma[:] = sigma, 0.6 * sigma
    assert_same_bits(random_pixels(2, *shape), plan, sigma)


def test_frames_share_the_settings_of_their_clip():
    pixels, plan = random_pixels(2, 2, 4, 6), random_plan(2, seed=3)
    plan.operations[:, 0], plan.blur_sigma[1] = CONTRAST, 0.5
    plan.operations[:, 1:4] = NONE
    assert_same_bits(pixels, plan)


def test_values_are_normalised_and_rounded_once():
    pixels, plan = random_pixels(2, 3, 4), random_plan(2, seed=2)
    plan.operations[:], plan.blur_sigma[:] = [NONE, NONE, 0, NONE, NONE], [0, 0.3]
    settings = dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    expected = (by_cpu(pixels, plan) / 255 - settings["mean"]) / settings["std"]
    exact = by_kernel(pixels, plan, **settings)
    np.testing.assert_allclose(exact.numpy(), expected, atol=1e-6)
    for dtype in (torch.bfloat16, torch.float16):
        views = by_kernel(pixels, plan, dtype=dtype, **settings)
        assert views.dtype == dtype
        assert torch.equal(views, exact.to(dtype))


def test_views_have_channels_last():
    plan = still(2)
    images = finish_views(torch.zeros(2, 4, 5, 3, dtype=torch.uint8), torch.from_numpy(settings_of(plan)), **BYTES)
    assert images.shape == (2, 3, 4, 5)
    assert images.is_contiguous(memory_format=torch.channels_last)
    clips = finish_views(torch.zeros(2, 2, 4, 5, 3, dtype=torch.uint8), torch.from_numpy(settings_of(plan)), **BYTES)
    assert clips.shape == (2, 3, 2, 4, 5)
    assert clips.is_contiguous(memory_format=torch.channels_last_3d)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"pixels": torch.zeros(2, 4, 5, 4, dtype=torch.uint8)},
            r"pixels has shape \(2, 4, 5, 4\), expected \(N, H, W, 3\)",
        ),
        ({"pixels": torch.zeros(2, 4, 5, 3)}, "pixels has dtype torch.float32 and strides .*, expected dense uint8"),
        ({"settings": torch.zeros(3, 13)}, r"settings has shape \(3, 13\), .* expected \(2, 13\) float32"),
        ({"settings": torch.zeros(2, 13, dtype=torch.float64)}, "settings has .* dtype torch.float64"),
        ({"weights": torch.zeros(2, 33)}, "weights has 33 columns, expected 3 to 31"),
        ({"weights": torch.zeros(2, 6)}, r"weights has shape \(2, 6\), .* expected \(2, 7\) float32"),
        ({"weights": torch.zeros(2, 5, device="meta")}, "weights is on meta, expected cpu"),
        ({"dtype": torch.float64}, "dtype=torch.float64: expected torch.float32, torch.bfloat16, torch.float16"),
    ],
)
def test_inputs_that_do_not_fit_are_named(change, message):
    inputs = {"pixels": torch.zeros(2, 4, 5, 3, dtype=torch.uint8), "settings": torch.zeros(2, 13)}
    with pytest.raises(ValueError, match=message):
        finish_views(**{**inputs, **BYTES, **change})


def test_a_batch_without_images():
    assert finish_views(torch.zeros(0, 4, 5, 3, dtype=torch.uint8), torch.zeros(0, 13), **BYTES).shape == (0, 3, 4, 5)


NARROW = {"blur_sigma": (0.1, 0.6)}
VIEWS = (
    Augmentation(size=8, **{**AUGMENTATIONS["alpha"], **NARROW, "blur": 0.5}),
    Augmentation(size=6, **{**AUGMENTATIONS["gamma"], **NARROW}),
)


def batches_of(index, views, count=1):
    loader = TrainingLoader(index, views, batch_size=2)
    return [view for _ in range(count) for view in next(loader).views]


def assert_same_pixels(views, expected):
    """Views may differ by the rounding of the normalisation; two pixel values are 0.017 apart."""
    for view, other in zip(views, expected, strict=True):
        assert view.shape == other.shape
        torch.testing.assert_close(view, other, atol=1e-5, rtol=0)


@pytest.mark.parametrize("more", [(), pytest.param(("alpha", "weak"), marks=pytest.mark.slow)])
def test_views_of_the_loader_are_those_of_the_cpu_path(photo_folder, more):
    index = index_images(photo_folder)
    views = VIEWS if not more else tuple(Augmentation(size=18, **AUGMENTATIONS[name]) for name in more)
    ours, others = (
        batches_of(index, RandomViews(index, views, seed=3, photometric=p), 2 if more else 1)
        for p in ("triton", "auto")
    )
    assert_same_pixels(ours, others)


@pytest.mark.slow
def test_clips_of_the_loader_are_those_of_the_cpu_path(tmp_path):
    pytest.importorskip("av")
    from helpers.videos import write_video
    from sce_fast.data.video.clips import ClipSampling
    from sce_fast.data.video.index import index_videos
    from sce_fast.data.video.views import RandomClips

    for i, codec in enumerate(["h264", "h264", "vp8", "vp8"]):
        write_video(tmp_path / f"{i}", codec, frames=20, size=(48, 64))
    index = index_videos(tmp_path)
    sampling = ClipSampling(frames=3, seconds=0.3, temporal_difference=0.5)
    by = {p: RandomClips(index, sampling, VIEWS, seed=3, photometric=p) for p in ("triton", "auto")}
    assert_same_pixels(*(batches_of(index, clips, 2) for clips in by.values()))


def test_pixels_are_kept_until_the_gpu_has_read_them(monkeypatch):
    """DALI may write into an output as soon as it is released."""
    done, waited = set(), []

    class Event:
        def record(self):
            self.number = len(waited_for)
            waited_for.append(self)

        def query(self):
            return self.number in done

        def synchronize(self):
            waited.append(self.number)
            done.add(self.number)

    waited_for = []
    monkeypatch.setattr(torch.cuda, "Event", Event)
    finish = Finish((Augmentation(size=4),), "cpu", "triton", torch.float32, settings=0, window=13)
    for i in range(3):
        finish._hold([torch.full((1,), i)])
    done |= {0, 2}
    finish._hold([torch.full((1,), 3)])
    assert [int(tensors[0]) for _, tensors in finish._held] == [1, 2, 3]  # in order, so that 2 waits for 1
    for i in range(4, 20):
        finish._hold([torch.full((1,), i)])
    assert len(finish._held) <= 8
    assert waited[:2] == [1, 3]
