"""Each operator of the graph against an independent formula, on natural photographs."""

import dataclasses

import matplotlib.colors
import numpy as np
import pytest
import scipy.ndimage
import torch
from PIL import Image

from sce_fast.data.image.augment import Augmentation, EvaluationView
from sce_fast.data.image.graph import (
    evaluation_feed,
    evaluation_pipeline,
    path_arrays,
    training_pipeline,
    view_vectors,
)
from sce_fast.data.image.plan import JITTER_ORDERS, ViewPlan
from sce_fast.native import CPU

pytestmark = pytest.mark.filterwarnings("ignore:the CPU kernels are not built")

SIZE = 96
NONE = -1
# A graph with every operator; the plan selects the operators for an image.
EVERYTHING = Augmentation(
    size=SIZE, jitter=1.0, grayscale=1.0, blur=1.0, solarize=1.0, mean=(0, 0, 0), std=(1 / 255,) * 3
)
MEAN_ERROR = 2.0  # of 255


@pytest.fixture(params=["native", "DALI operators"])
def either_kernel(request, monkeypatch):
    if request.param == "native":
        assert CPU.module is not None, "the extension is not built: make venv"
    else:
        monkeypatch.setattr(CPU, "module", None)


def cut(photograph, top=100, left=200):
    return photograph[top : top + SIZE, left : left + SIZE]


@pytest.fixture(scope="module")
def crops(photographs) -> list[np.ndarray]:
    return [cut(photographs[0]), cut(photographs[1]), cut(photographs[0], 300, 20), cut(photographs[1], 10, 400)]


@pytest.fixture(scope="module")
def files(crops, tmp_path_factory) -> list[bytes]:
    folder = tmp_path_factory.mktemp("crops")
    for i, crop in enumerate(crops):
        Image.fromarray(crop).save(folder / f"{i}.png")
    return [str(folder / f"{i}.png").encode() for i in range(len(crops))]


def still(count, **changes) -> ViewPlan:
    """Return a plan that leaves images of the view's size unchanged except for the given changes."""
    plan = ViewPlan(
        boxes=np.tile(np.int32([0, 0, SIZE, SIZE]), (count, 1)),
        operations=np.full((count, 5), NONE, dtype=np.int32),
        factors=np.zeros((count, 5), dtype=np.float32),
        blur_sigma=np.zeros(count, dtype=np.float32),
        solarize=np.zeros(count, dtype=bool),
        flip=np.zeros(count, dtype=bool),
    )
    return dataclasses.replace(plan, **changes)


def render(files, plan, threads=2) -> np.ndarray:
    """Return the views (N, H, W, 3) with values in [0, 255]."""
    feeds = iter([(path_arrays(files), view_vectors(plan))])
    settings = dict(background=None, batch_size=len(files), threads=threads, device="cpu")
    pipeline = training_pipeline(feeds, (EVERYTHING,), **settings)
    (views,) = pipeline.run()
    return torch.from_dlpack(views.as_tensor()).permute(0, 2, 3, 1).numpy().copy()


def grey(x):
    return x @ np.array([0.299, 0.587, 0.114])


def by_formula(image, operation, factor):
    """Compute a colour operation as torchvision defines it, in float64 on values in [0, 255]."""
    x = image.astype(np.float64)
    if operation == 0:
        x = x * factor
    elif operation == 1:
        x = factor * x + (1 - factor) * grey(x).mean()
    elif operation == 2:
        x = factor * x + (1 - factor) * grey(x)[..., None]
    elif operation == 3:
        hsv = matplotlib.colors.rgb_to_hsv(x / 255)
        hsv[..., 0] = (hsv[..., 0] + factor) % 1.0
        x = 255 * matplotlib.colors.hsv_to_rgb(hsv)
    elif operation == 4:
        x = np.repeat(grey(x)[..., None], 3, axis=2)
    return x.clip(0, 255)


def assert_near(images, expected, mean_error=MEAN_ERROR):
    for image, other in zip(images, expected, strict=True):
        error = np.abs(image - other)
        assert error.mean() <= mean_error, f"mean error {error.mean():.2f} of 255"


def test_nothing_to_do_changes_nothing(files, crops, either_kernel):
    assert np.array_equal(render(files, still(4)), np.stack(crops))


@pytest.mark.parametrize(
    ("operation", "factors"),
    [
        (0, [0.6, 1.4, 0.0, 1.8]),
        (1, [0.6, 1.4, 0.0, 1.8]),
        (2, [0.6, 1.4, 0.0, 1.8]),
        (3, [0.1, -0.1, 0.5, -0.37]),
        (4, [0.0, 0.0, 0.0, 0.0]),
    ],
)
def test_each_colour_operation(files, crops, either_kernel, operation, factors):
    plan = still(4)
    slot = 4 if operation == 4 else 2
    plan.operations[:, slot] = operation
    plan.factors[:, slot] = factors
    images = render(files, plan)
    expected = [by_formula(crop, operation, factor) for crop, factor in zip(crops, factors, strict=True)]
    assert_near(images, expected, mean_error=0.6)  # rounding alone
    if operation not in (0, 4):  # a test that could not see the operation would be worthless
        assert min(np.abs(image - crop).mean() for image, crop in zip(images, crops, strict=True)) > MEAN_ERROR


def test_colour_operations_in_every_order(files, crops, either_kernel):
    factors_of = np.array([1.3, 0.7, 1.4, -0.08])
    for start in range(0, len(JITTER_ORDERS), 4):
        orders = JITTER_ORDERS[start : start + 4]
        plan = still(4)
        plan.operations[:, :4] = orders
        plan.factors[:, :4] = factors_of[orders]
        plan.operations[1, 4] = 4
        expected = []
        for i, (crop, order) in enumerate(zip(crops, orders, strict=True)):
            x = crop.astype(np.float64)
            for operation in order:
                x = by_formula(x, operation, factors_of[operation])
            expected.append(by_formula(x, 4, 0) if i == 1 else x)
        assert_near(render(files, plan), expected, mean_error=0.6)


def test_blur(files, crops, either_kernel):
    sigmas = [0.5, 1.0, 1.5, 2.0]
    images = render(files, still(4, blur_sigma=np.float32(sigmas)))
    expected = [
        scipy.ndimage.gaussian_filter(crop.astype(np.float64), (sigma, sigma, 0), mode="mirror", radius=(11, 11, 0))
        for crop, sigma in zip(crops, sigmas, strict=True)
    ]
    assert_near(images, expected, mean_error=1.0)
    assert np.abs(images[0] - crops[0]).mean() > MEAN_ERROR


def test_solarize_and_flip(files, crops, either_kernel):
    plan = still(4, solarize=np.array([True, False, True, False]), flip=np.array([True, True, False, False]))
    inverted = [np.where(crop >= 128, 255 - crop, crop) for crop in crops]
    expected = [inverted[0][:, ::-1], crops[1][:, ::-1], inverted[2], crops[3]]
    assert np.array_equal(render(files, plan), np.stack(expected))


@pytest.mark.parametrize("box", [(10, 20, 70, 90), (0, 0, 40, 30), (63, 8, 96, 96)])
def test_crop_is_cut_first_and_then_resized(files, crops, box):
    top, left, bottom, right = box
    images = render(files, still(4, boxes=np.tile(np.int32(box), (4, 1))))
    expected = [
        np.array(Image.fromarray(crop[top:bottom, left:right]).resize((SIZE, SIZE), Image.Resampling.BILINEAR))
        for crop in crops
    ]
    assert_near(images, expected, mean_error=0.6)


def test_crop_from_a_large_image_is_antialiased(photographs, tmp_path):
    path = tmp_path / "large.png"
    Image.fromarray(photographs[0]).save(path)
    (image,) = render([str(path).encode()], still(1, boxes=np.int32([[7, 30, 407, 630]])))
    expected = Image.fromarray(photographs[0][7:407, 30:630]).resize((SIZE, SIZE), Image.Resampling.BILINEAR)
    assert_near([image], [np.array(expected)], mean_error=0.6)


def test_order_of_the_operators(files, crops, either_kernel):
    """Jitter, grayscale, blur, solarize, flip. Saturation and brightness clip, so another order gives other pixels."""
    plan = still(
        4,
        blur_sigma=np.full(4, 2.0, dtype=np.float32),
        solarize=np.ones(4, dtype=bool),
        flip=np.ones(4, dtype=bool),
    )
    plan.operations[:], plan.factors[:] = [2, 0, NONE, NONE, 4], [3.0, 2.0, 0, 0, 0]

    def jitter(x):
        return by_formula(by_formula(x, 2, 3.0), 0, 2.0)

    def grayscale(x):
        return by_formula(x, 4, 0)

    def blur(x):
        return scipy.ndimage.gaussian_filter(x, (2.0, 2.0, 0), mode="mirror", radius=(11, 11, 0)).round()

    def solarize(x):
        return np.where(x >= 128, 255 - x, x)

    def in_order(*operators):
        results = []
        for crop in crops:
            x = crop.astype(np.float64)
            for operator in operators:
                x = operator(x)
            results.append(x[:, ::-1])
        return np.stack(results)

    images = render(files, plan)
    assert_near(images, in_order(jitter, grayscale, blur, solarize), mean_error=1.0)
    for other in (
        (grayscale, jitter, blur, solarize),
        (jitter, blur, grayscale, solarize)[::-1],
        (blur, jitter, grayscale, solarize),
        (jitter, grayscale, solarize, blur),
    ):
        assert np.abs(images - in_order(*other)).mean() > 2.0


def test_both_kernels_agree(files, monkeypatch):
    """Up to the rounding between jitter and blur."""
    plan = still(4, blur_sigma=np.float32([0, 0.5, 1, 2]), solarize=np.array([False, True, False, True]))
    plan.operations[:, :4], plan.factors[:, :4] = JITTER_ORDERS[[3, 9, 14, 20]], [0.9, 1.2, 0.07, 1.1]
    native_images = render(files, plan)
    monkeypatch.setattr(CPU, "module", None)
    with pytest.warns(UserWarning, match="the CPU kernels are not built"):
        difference = np.abs(render(files, plan) - native_images)
    near = difference <= 1
    assert near.mean() > 0.999  # a value at the solarize threshold may fall on either side


@pytest.mark.parametrize("threads", [1, 3])
def test_pixels_do_not_depend_on_threads(files, threads):
    plan = still(4, blur_sigma=np.float32([0, 1, 0, 2]))
    plan.operations[:, :4], plan.factors[:, :4] = JITTER_ORDERS[:4], 0.45
    assert np.array_equal(render(files, plan, threads=threads), render(files, plan, threads=2))


def native(images, operations=NONE, factors=0.0, blur_sigma=0.0, solarize=False, threads=1):
    """Run the kernel on a list of images with the same plan for each."""
    n = len(images)
    rows = [
        np.tile(np.array(row, dtype=dtype), (n, 1)) for row, dtype in ((operations, np.int32), (factors, np.float32))
    ]
    return CPU.module.augment(images, *rows, np.full(n, blur_sigma, dtype=np.float32), np.full(n, solarize), threads)


def test_kernel_refuses_what_it_does_not_understand():
    image, row = np.zeros((4, 4, 3), dtype=np.uint8), np.zeros((1, 5), dtype=np.int32)
    call = {
        "images": [image], "operations": row, "factors": row.astype(np.float32),
        "blur_sigma": np.zeros(1, dtype=np.float32), "solarize": np.zeros(1, dtype=bool), "threads": 1,
    }  # fmt: skip
    for change, message in [
        ({"images": [image[..., :1]]}, r"\(H, W, 3\)"),
        ({"images": [image, image]}, "N = 2 images"),
        ({"factors": call["factors"][:, :3]}, "shape of operations"),
        ({"blur_sigma": np.zeros(2, dtype=np.float32)}, "blur_sigma must be"),
        ({"solarize": np.zeros(2, dtype=bool)}, "solarize must be"),
        ({"threads": 0}, "threads is 0"),
    ]:
        with pytest.raises(ValueError, match=message):
            CPU.module.augment(**{**call, **change})


def test_kernel_jitters_any_number_of_pixels():
    """Sizes around 16 and 2048 test the tails of lanes and blocks."""
    random = np.random.default_rng(0)
    operations, factors = [1, 3, 2, 1, 0], [1.5, 0.2, 0.5, 0.7, 1.1]
    for pixels in (1, 15, 17, 2047, 2048, 2049, 5000):
        image = random.integers(0, 256, (1, pixels, 3), dtype=np.uint8)
        (result,) = native([image], operations, factors)
        expected = image
        for operation, factor in zip(operations, factors, strict=True):
            expected = by_formula(expected, operation, factor)
        assert np.abs(result - expected).max() <= 0.51


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (2, 3), (5, 4), (40, 17), (33, 64)])
def test_kernel_blurs_any_size(shape):
    """A window wider than the image is mirrored more than once."""
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    for sigma in (0.1, 0.7, 2.0, 4.3):
        radius = int(np.ceil(3 * sigma))
        expected = scipy.ndimage.gaussian_filter(
            image.astype(np.float64), (sigma, sigma, 0), mode="mirror", radius=(radius, radius, 0)
        )
        (result,) = native([image], blur_sigma=sigma)
        assert np.abs(result - expected).max() <= 0.51


def test_kernel_gives_the_same_bits_on_any_number_of_threads(crops):
    many = crops * 5
    settings = dict(operations=[2, 0, 3, 1, NONE], factors=[1.3, 0.8, 0.07, 1.2, 0], blur_sigma=1.3, solarize=True)
    alone = native(many, **settings)
    for threads in (2, 5):
        for image, other in zip(native(many, **settings, threads=threads), alone, strict=True):
            assert np.array_equal(image, other)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_evaluation_view(photographs, tmp_path, interpolation):
    path = tmp_path / "photograph.png"
    Image.fromarray(photographs[0]).save(path)
    view = EvaluationView(resize=96, crop=80, interpolation=interpolation)
    feeds = iter([evaluation_feed(view, [str(path).encode()], np.int32([[427, 640]]), np.zeros(1, np.bool_), None)])
    pipeline = evaluation_pipeline(feeds, view, background=None, batch_size=1, threads=1, device="cpu")
    (images,) = pipeline.run()
    image = torch.from_dlpack(images.as_tensor())[0]
    resized = Image.fromarray(photographs[0]).resize((96 * 640 // 427, 96), Image.Resampling[interpolation.upper()])
    expected = np.array(resized)[8:88, 32:112]  # centre crop of 96 × 143
    expected = (expected / 255 - view.mean) / view.std
    assert np.abs(image.permute(1, 2, 0).numpy() - expected).mean() * 255 * 0.225 < 0.6


def test_an_unknown_interpolation_is_refused():
    with pytest.raises(ValueError, match="interpolation='nearest': expected bilinear or bicubic"):
        EvaluationView(interpolation="nearest")
