"""Temporal differences: our kernel and DALI's operators give the same bits, those of an independent formula."""

import numpy as np
import pytest
from nvidia.dali import fn, pipeline_def, types

from sce_fast.data.video.difference import difference_operator
from sce_fast.native import CPU

SHAPES = [(1, 3, 4), (8, 20, 30), (5, 7, 1), (2, 1, 1), (3, 33, 64)]


@pytest.fixture(params=["native", "DALI operators"])
def either_kernel(request, monkeypatch):
    if request.param == "native":
        assert CPU.module is not None, "the extension is not built: make venv"
    else:
        monkeypatch.setattr(CPU, "module", None)


def random_clips() -> list[np.ndarray]:
    """Return clips (2F, H, W, 3) of frames and their neighbours."""
    random = np.random.default_rng(0)
    return [random.integers(0, 256, (2 * f, h, w, 3), dtype=np.uint8) for f, h, w in SHAPES]


def differences(clips, threads=2) -> list[np.ndarray]:
    """Run the operator in a graph. The last operator fails unless its input has the layout FHWC."""
    operator = difference_operator("cpu", threads)

    @pipeline_def(batch_size=len(clips), num_threads=2, device_id=None)
    def graph():
        clip = fn.external_source(source=[clips], batch=True, layout="FHWC", dtype=types.UINT8)
        return fn.crop_mirror_normalize(operator(clip), output_layout="FHWC", dtype=types.FLOAT)

    (output,) = graph().run()
    return [np.array(output[i]).astype(np.uint8) for i in range(len(clips))]


def formula(clip) -> np.ndarray:
    """Compute (grey − grey' + 255) / 2 in float64, without rounding."""
    frames, neighbours = np.split(clip.astype(np.float64) @ np.array([0.299, 0.587, 0.114]), 2)
    return np.repeat(((frames - neighbours + 255) / 2)[..., None], 3, axis=-1)


def test_differences_are_the_formula_rounded_once(either_kernel):
    clips = random_clips()
    for clip, result in zip(clips, differences(clips), strict=True):
        assert result.shape == (len(clip) // 2, *clip.shape[1:])
        assert np.abs(result - formula(clip)).max() <= 0.5 + 1e-9


def test_both_ways_give_the_same_bits(monkeypatch):
    clips = random_clips()
    native = differences(clips)
    monkeypatch.setattr(CPU, "module", None)
    for a, b in zip(native, differences(clips), strict=True):
        assert np.array_equal(a, b)


@pytest.mark.parametrize(
    ("frame", "neighbour", "expected"),
    [
        ((9, 99, 200), (9, 99, 200), 128),  # 127.5
        ((255, 255, 255), (0, 0, 0), 255),
        ((0, 0, 0), (255, 255, 255), 0),
        ((1, 1, 1), (0, 0, 0), 128),
        ((0, 0, 0), (1, 1, 1), 127),
        ((2, 2, 2), (0, 0, 0), 129),  # 128.5
        ((10, 20, 30), (0, 0, 0), 137),  # 2.99 + 11.74 + 3.42 = 18.15, 136.575
        ((0, 0, 0), (10, 20, 30), 118),  # 118.425
        ((255, 0, 0), (0, 0, 255), 151),  # 76.245 − 29.07 = 47.175, 151.09
    ],
)
def test_differences_by_hand(either_kernel, frame, neighbour, expected):
    clip = np.tile(np.uint8([frame, neighbour])[:, None, None], (1, 2, 3, 1))
    (result,) = differences([clip])
    assert result.tolist() == np.full((1, 2, 3, 3), expected).tolist()


def test_neighbours_follow_the_frames(either_kernel):
    """Frame i of the first half is compared with frame i of the second half."""
    levels = np.uint8([10, 20, 30, 12, 24, 36])
    (result,) = differences([np.tile(levels[:, None, None, None], (1, 2, 2, 3))])
    assert result[:, 0, 0, 0].tolist() == [127, 126, 125]  # (255 − 2) / 2, (255 − 4) / 2 and (255 − 6) / 2, upwards


@pytest.mark.parametrize("threads", [1, 5])
def test_pixels_do_not_depend_on_threads(threads):
    clips = random_clips()
    for a, b in zip(differences(clips, threads), differences(clips, 2), strict=True):
        assert np.array_equal(a, b)


def test_kernel_refuses_what_it_does_not_understand():
    clip = np.zeros((4, 2, 2, 3), dtype=np.uint8)
    for wrong in (clip[:3], clip[0], clip[..., :1]):
        with pytest.raises(ValueError, match=r"temporal_difference: every clip must be \(2F, H, W, 3\) uint8"):
            CPU.module.temporal_difference([wrong], 1)
    with pytest.raises(ValueError, match="threads is 0"):
        CPU.module.temporal_difference([clip], 0)
