"""Every frame of a clip becomes what it would become as an image, with the parameters of its clip."""

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nvidia.dali import fn, pipeline_def, types

from sce_fast.data.image.photometric import photometric_operator
from sce_fast.native import CPU

pytestmark = pytest.mark.filterwarnings("ignore:the CPU kernels are not built")


def parameters(count, seed=0) -> dict[str, np.ndarray]:
    """Return random parameters of `count` clips, as the kernel takes them. The first one has every operation."""
    random = np.random.default_rng(seed)
    operations = np.stack([[*random.permutation(4), random.choice([-1, 4])] for _ in range(count)]).astype(np.int32)
    operations[1:][random.random((count - 1, 5)) < 0.3] = -1
    factors = random.uniform(0.3, 1.7, (count, 5))
    factors[operations == 3] = random.uniform(-0.5, 0.5, (operations == 3).sum())
    sigma = np.where(random.random(count) < 0.6, random.uniform(0.1, 2, count), 0)
    sigma[0] = 1.3
    return {
        "operations": operations,
        "factors": factors.astype(np.float32),
        "blur_sigma": sigma.astype(np.float32),
        "solarize": random.random(count) < 0.5,
    }


def random_clips(shapes=((4, 9, 13), (1, 30, 20), (6, 48, 64)), seed=1) -> list[np.ndarray]:
    """Return clips whose frames differ in brightness, and so in the mean that contrast takes."""
    random = np.random.default_rng(seed)
    return [
        np.stack([random.integers(0, high, (h, w, 3), dtype=np.uint8) for high in random.integers(20, 256, f)])
        for f, h, w in shapes
    ]


def augment(images, threads=1, **columns):
    return CPU.module.augment(images, **columns, threads=threads)


def frame_by_frame(clips, columns, augment=augment) -> list[np.ndarray]:
    """Augment each frame as an image, with the parameters of its clip."""
    rows = {name: column[np.repeat(np.arange(len(clips)), [len(c) for c in clips])] for name, column in columns.items()}
    frames = augment([frame for clip in clips for frame in clip], **rows)
    ends = np.cumsum([len(clip) for clip in clips])
    return [np.stack(frames[end - len(clip) : end]) for clip, end in zip(clips, ends, strict=True)]


def assert_same_bits(clips, expected):
    for clip, other in zip(clips, expected, strict=True):
        assert np.array_equal(clip, other)


@given(
    seed=st.integers(0, 10**6),
    shapes=st.lists(st.tuples(st.integers(1, 6), st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=4),
    threads=st.integers(1, 3),
)
def test_a_clip_equals_its_frames_one_by_one(seed, shapes, threads):
    clips, columns = random_clips(shapes, seed), parameters(len(shapes), seed)
    assert_same_bits(augment(clips, threads, **columns), frame_by_frame(clips, columns))


def test_images_and_clips_in_one_batch():
    clips, columns = random_clips(), parameters(4)
    mixed = [*clips, clips[2][3]]
    results = augment(mixed, 2, **columns)
    assert_same_bits(results[:3], augment(clips, **{name: column[:3] for name, column in columns.items()}))
    (image,) = augment(mixed[3:], **{name: column[3:] for name, column in columns.items()})
    assert np.array_equal(results[3], image)
    assert image.shape == (48, 64, 3)


@pytest.mark.parametrize("threads", [1, 2, 16])
def test_a_still_gives_identical_frames(threads):
    still = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    (clip,) = augment([np.tile(still, (8, 1, 1, 1))], threads, **parameters(1))
    assert (clip == clip[0]).all()
    assert not np.array_equal(clip[0], still)


def test_contrast_takes_the_mean_of_each_frame():
    clip = np.uint8([[[[100] * 3, [100] * 3]], [[[200] * 3, [200] * 3]]])  # flat frames keep their level
    columns = parameters(1) | {"operations": np.int32([[1]]), "factors": np.float32([[0.5]])}
    columns |= {"blur_sigma": np.float32([0]), "solarize": np.array([False])}
    assert_same_bits(augment([clip], **columns), [clip])


def test_threads_share_the_frames_of_one_clip():
    """Several clips would occupy the threads anyway; a single clip must, too."""
    clip = random_clips([(48, 224, 224)])
    before = time.process_time(), time.thread_time()
    augment(clip, 2, **parameters(1))
    everyone, caller = time.process_time() - before[0], time.thread_time() - before[1]
    assert caller < 0.9 * everyone


def test_a_clip_of_another_shape_is_refused():
    for wrong in (np.zeros((2, 4, 4, 1), np.uint8), np.zeros((1, 2, 4, 4, 3), np.uint8), np.zeros((4, 3), np.uint8)):
        with pytest.raises(ValueError, match=r"every image must be \(H, W, 3\) uint8, every clip \(F, H, W, 3\) uint8"):
            augment([wrong], **parameters(1))


def in_graph(images, columns, layout) -> list[np.ndarray]:
    """Run the operator in a graph. The last operator fails unless its input has the layout."""
    operator = photometric_operator("cpu", 2, layout)
    rows = [list(np.asarray(column, dtype=np.float32)) for column in columns.values()]

    @pipeline_def(batch_size=len(images), num_threads=2, device_id=None, enable_conditionals=True)
    def graph():
        image = fn.external_source(source=[images], batch=True, layout=layout, dtype=types.UINT8)
        inputs = [fn.external_source(source=[row], batch=True, dtype=types.FLOAT) for row in rows]
        return fn.crop_mirror_normalize(operator(image, *inputs), output_layout=layout, dtype=types.FLOAT)

    (output,) = graph().run()
    return [np.array(output[i]).astype(np.uint8) for i in range(len(images))]


@pytest.mark.parametrize("kernel", ["native", "DALI operators"])
def test_clips_in_the_graph_equal_their_frames_in_the_graph(kernel, monkeypatch):
    if kernel == "DALI operators":
        monkeypatch.setattr(CPU, "module", None)
    clips, columns = random_clips(), parameters(3)
    expected = frame_by_frame(clips, columns, lambda frames, **rows: in_graph(frames, rows, "HWC"))
    assert_same_bits(in_graph(clips, columns, "FHWC"), expected)


def test_both_kernels_agree_on_clips(monkeypatch):
    """Up to the rounding between jitter and blur."""
    clips, columns = random_clips([(3, 40, 50)] * 4), parameters(4)
    native = in_graph(clips, columns, "FHWC")
    assert_same_bits(native, augment(clips, **columns))
    monkeypatch.setattr(CPU, "module", None)
    difference = np.abs(np.stack(in_graph(clips, columns, "FHWC")).astype(int) - np.stack(native))
    assert (difference <= 1).mean() > 0.999  # a value at the solarize threshold may fall on either side
