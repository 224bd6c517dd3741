"""Which code changes the values of views, the window of the blur, and the dtype of views."""

import math

import numpy as np
import pytest
import torch

from helpers.steps import batch, config_of_steps
from sce_fast.config import TrainConfig, ViewsConfig
from sce_fast.data.image import fused
from sce_fast.data.image.augment import Augmentation
from sce_fast.data.image.fused import blur_radius, blur_weights, implementation
from sce_fast.data.image.views import RandomViews
from sce_fast.data.index import index_images
from sce_fast.data.loader import TrainingLoader
from sce_fast.native import CPU
from sce_fast.train import data
from sce_fast.train.step import TrainingStep

STRONG = Augmentation(size=12, jitter=0.8, contrast=0.4, blur=0.5)
WIDE = Augmentation(blur=0.1, blur_sigma=(0.1, 5.1))


@pytest.fixture
def gpu(monkeypatch):
    """A machine with an H100 and Triton."""
    monkeypatch.setattr(fused, "INSTALLED", True)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "H100")


def test_a_gpu_takes_our_kernel_and_a_cpu_the_one_in_the_graph(gpu):
    assert implementation("auto", "gpu", (STRONG,)) == "triton"
    assert implementation("triton", "gpu", (STRONG,)) == "triton"
    assert implementation("dali", "gpu", (STRONG,)) == "dali"
    assert implementation("auto", "cpu", (STRONG,)) == "cpp"
    assert implementation("dali", "cpu", (STRONG,)) == "dali"


@pytest.mark.parametrize(
    ("change", "views", "reason"),
    [
        ({"fused.INSTALLED": False}, (STRONG,), r"triton is not installed \(pip install triton;"),
        ({}, (STRONG, WIDE), r"a blur_sigma reaches 5.1 pixels, and the Triton kernel blurs up to 5"),
        ({"torch.version.hip": "6.2"}, (STRONG,), "the Triton kernel needs an NVIDIA GPU"),
        (
            {"torch.cuda.get_device_capability": lambda: (7, 5)},
            (STRONG,),
            r"H100 has compute capability 7.5, and the Triton kernel needs 8.0",
        ),
    ],
)
def test_a_gpu_without_our_kernel_takes_dali_and_says_why(gpu, monkeypatch, change, views, reason):
    for name, value in change.items():
        place = f"sce_fast.data.image.{name}" if name.startswith("fused") else name
        monkeypatch.setattr(place, value)
    with pytest.warns(UserWarning, match=f"DALI's operators augment colours on the GPU, because {reason}"):
        assert implementation("auto", "gpu", views) == "dali"
    with pytest.raises(ValueError, match=f"photometric='triton': expected auto or dali, because {reason}"):
        implementation("triton", "gpu", views)


def test_a_cpu_has_the_kernel_in_the_interpreter_only(photo_folder, monkeypatch):
    monkeypatch.setattr(fused, "INSTALLED", True)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    index = index_images(photo_folder)
    with pytest.raises(ValueError, match=r"photometric='triton'.*runs on a CPU with TRITON_INTERPRET=1 only"):
        RandomViews(index, (STRONG,), seed=0, photometric="triton")
    with pytest.raises(ValueError, match=r"dtype=torch.float64: expected torch.float32, torch.bfloat16, torch.float16"):
        RandomViews(index, (STRONG,), seed=0, dtype=torch.float64)


@pytest.mark.parametrize("radius", [6, 15])
def test_windows_are_those_of_the_formula(radius):
    sigmas = np.float32([0, 0.1, 0.33, 1 / 3, 1, 1.7, 2])
    for sigma, window in zip(sigmas, blur_weights(sigmas, radius), strict=True):
        own = math.ceil(np.float32(3) * sigma)
        if sigma == 0:
            assert not window.any()
            continue
        weights = [math.exp(-0.5 * i * i / float(sigma) ** 2) for i in range(-own, own + 1)]
        expected = np.pad(np.float32([w / sum(weights) for w in weights]), radius - own)
        np.testing.assert_allclose(window, expected, rtol=1e-6, atol=0)
        assert window[radius - own - 1 : radius - own].sum() == 0


def test_radius_of_the_widest_window():
    assert blur_radius(Augmentation(blur_sigma=(0.1, 2.0))) == 0  # never
    assert blur_radius(Augmentation(blur=0.1, blur_sigma=(0.1, 2.0))) == 6
    assert blur_radius(Augmentation(blur=0.1, blur_sigma=(0.1, 5.0))) == 15


@pytest.mark.filterwarnings("ignore:the CPU kernels are not built")
def test_views_in_another_dtype_are_rounded_once(photo_folder):
    index = index_images(photo_folder)

    def views(**settings):
        return next(TrainingLoader(index, RandomViews(index, (STRONG,), seed=1, **settings), batch_size=2)).views[0]

    exact = views()
    for dtype in (torch.bfloat16, torch.float16):
        assert torch.equal(views(dtype=dtype), exact.to(dtype))


@pytest.mark.slow
def test_dali_operators_are_used_on_a_cpu_if_wanted(photo_folder, monkeypatch):
    """Without the warning that the C++ kernel is missing."""
    index, expected = index_images(photo_folder), None
    for photometric in ("auto", "dali"):
        loader = TrainingLoader(index, RandomViews(index, (STRONG,), seed=1, photometric=photometric), batch_size=2)
        views = next(loader).views[0]
        expected = views if expected is None else expected
        monkeypatch.setattr(CPU, "module", None)
    levels = 255 * (views - expected).abs() * torch.tensor(STRONG.std)[:, None, None]
    assert (levels <= 1.01).float().mean() > 0.99  # a value at the solarize threshold may fall on either side


@pytest.mark.parametrize(
    ("precision", "wanted", "on_cpu", "on_gpu"),
    [
        ("float32", "auto", torch.float32, torch.float32),
        ("bfloat16", "auto", torch.float32, torch.bfloat16),
        ("float16", "auto", torch.float32, torch.float16),
        ("float64", "auto", torch.float32, torch.float32),
        ("bfloat16", "float32", torch.float32, torch.float32),
        ("float32", "float16", torch.float16, torch.float16),
    ],
)
def test_dtype_of_a_run(gpu, photo_folder, tmp_path, precision, wanted, on_cpu, on_gpu):
    views = ViewsConfig(names=("weak", "weak"), sizes=(8,), dtype=wanted)
    config = TrainConfig(data=photo_folder, out=tmp_path, precision=precision, views=views)
    index = index_images(photo_folder)
    for device, dtype in (("cpu", on_cpu), ("gpu", on_gpu)):
        assert data.random_views(config, index, threads=1, device=device)._finish._dtype == dtype


@pytest.mark.parametrize("precision", ["bfloat16", "float32"])
def test_views_that_are_rounded_before_give_the_step_that_autocast_gives(precision):
    """In float32 they are rounded, too, but the networks still compute in float32."""
    config = config_of_steps(precision=precision, batch_size=2)
    losses = []
    for dtype in (torch.float32, torch.bfloat16):
        views = [view.to(torch.bfloat16).to(dtype) for view in batch(config, 0)]
        torch.manual_seed(0)
        step = TrainingStep(config, torch.device("cpu"))
        losses.append(step([views], number=0, learning_rate=0.1, momentum=0.99)["loss"])
    assert torch.equal(*losses)


# ---------------------------------------------------------------------------------------------- on a GPU


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_views_of_a_gpu_are_those_of_dalis_pixels_when_they_were_ready(photo_folder):
    """The loader runs ahead of the GPU: its outputs must not be overwritten before the kernel has read them."""
    index, views = index_images(photo_folder), (STRONG, STRONG)

    def batches(wait):
        loader = TrainingLoader(index, RandomViews(index, views, seed=1, device="gpu"), batch_size=8)
        torch.cuda._sleep(0 if wait else 10**9)
        found = []
        for _ in range(24):
            found.append(next(loader).views)
            if wait:
                torch.cuda.synchronize()
        return found

    for ahead, in_turn in zip(batches(wait=False), batches(wait=True), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ahead, in_turn, strict=True))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_both_ways_to_finish_views_agree_on_a_gpu(photo_folder, dtype):
    index, settings = index_images(photo_folder), dict(seed=1, device="gpu", dtype=dtype)
    ours, others = (
        next(TrainingLoader(index, RandomViews(index, (STRONG,), photometric=p, **settings), batch_size=16)).views[0]
        for p in ("triton", "dali")
    )
    assert ours.dtype == others.dtype == dtype
    assert ours.is_contiguous(memory_format=torch.channels_last)
    levels = 255 * (ours.float() - others.float()).abs() * torch.tensor(STRONG.std, device="cuda")[:, None, None]
    assert (levels <= (1.01 if dtype == torch.float32 else 3)).float().mean() > 0.99
