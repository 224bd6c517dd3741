"""Colours that DALI has converted by BT.601, corrected in the graph."""

import numpy as np
import pytest
import torch

from helpers.colours import KR_KB, enlarged, frame_of, planes_of, to_rgb
from helpers.videos import write_video
from sce_fast.data.image.augment import Augmentation
from sce_fast.data.video import views as views_module
from sce_fast.data.video.augment import ClipEvaluationView
from sce_fast.data.video.clips import ClipSampling
from sce_fast.data.video.colour import Colour, Converter, correction
from sce_fast.data.video.evaluation import evaluation_clips
from sce_fast.data.video.index import index_videos
from sce_fast.data.video.inputs import Ways
from sce_fast.data.video.routes import recoloured, routes
from sce_fast.data.video.views import RandomClips

OTHERS = [matrix for matrix in KR_KB if matrix not in (5, 6)]


def by_dali(planes, full):
    """Return RGB as DALI's kernel for GPUs converts 4:2:0: linear between U and V, rounded to a byte, by BT.601."""
    y, u, v = planes
    u, v = (np.rint(enlarged(plane, (1, 1), y.shape)) for plane in (u, v))
    return np.rint(to_rgb(y.astype(float), u, v, 5, full)).astype(np.uint8)


def errors(picture, matrix, full):
    """Return the mean difference from our conversion, in levels of 255: as DALI converts, and corrected."""
    planes = planes_of(picture, matrix, full)
    frame = frame_of("yuvj420p" if full else "yuv420p", planes)
    right = Converter(Colour(matrix, full))(frame, (0, 0, *picture.shape[:2])).astype(float)
    given = by_dali(planes, full)
    corrected = np.clip(np.rint(given @ correction(matrix).T), 0, 255)
    return np.abs(given - right).mean(), np.abs(corrected - right).mean()


def patches(levels, generator):
    """Return a picture of patches of 16 × 16 pixels, whose colours have these levels."""
    return generator.choice(levels, (12, 12, 3)).astype(np.uint8).repeat(16, 0).repeat(16, 1)


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("matrix", OTHERS)
def test_the_error_that_is_left(photographs, matrix, full):
    """Clipped values are lost: most in pure primaries, which only an artificial picture is full of."""
    assert (np.abs(correction(5) - np.eye(3)) < 1e-6).all()
    generator = np.random.default_rng(0)
    for picture in photographs[:2]:
        assert errors(picture[:160, :240], matrix, full)[1] < 0.6
    uncorrected, corrected = errors(patches(range(256), generator), matrix, full)
    assert corrected < 0.8
    assert uncorrected > (0.3 if matrix == 4 else 4)  # FCC is almost BT.601
    assert errors(patches([0, 255], generator), matrix, full)[1] < 7


def test_nothing_but_clipping_and_rounding_is_left():
    """Greys and weak colours are not clipped."""
    picture = patches(range(90, 166), np.random.default_rng(1))
    for matrix in OTHERS:
        assert errors(picture, matrix, full=True)[1] < 0.5


@pytest.fixture(scope="module")
def coloured(tmp_path_factory):
    """Return the index of VP9 files of three matrices, and of one file that PyAV decodes on any device."""
    folder = tmp_path_factory.mktemp("coloured")
    for name, matrix in (("0", 5), ("1", 1), ("2", 9), ("3", 1)):
        write_video(folder / name, "vp9", frames=12, size=(64, 96), seed=int(name), colorspace=matrix)
    write_video(folder / "4", "h264", frames=12, size=(64, 96), colorspace=1)
    return index_videos(folder, cache=folder.with_name("cache"))


def clips_of(index):
    whole = Augmentation(size=64, scale=(1.0, 1.0), ratio=(1e-3, 1e3), flip=0.0, mean=(0.0,) * 3, std=(1 / 255,) * 3)
    source = RandomClips(index, ClipSampling(frames=3, seconds=0.2), (whole, whole), seed=0)
    pipeline = source.pipeline((feed for _, feed in source.feeds(iter([(0, np.arange(len(index)))]))), len(index))
    clips = torch.stack([torch.from_dlpack(output.as_tensor()).clone() for output in pipeline.run()])
    return source, clips


def test_the_graph_corrects_what_it_decodes(coloured, monkeypatch):
    """DALI converts by BT.601 on a CPU, too."""
    assert recoloured(coloured).tolist() == [False, True, True, True, True]
    assert routes(coloured, "cpu").tolist() == [True, False, False, False, False]
    _, right = clips_of(coloured)
    in_graph = np.array([True, True, True, True, False])
    monkeypatch.setattr(views_module, "routes", lambda index, device: in_graph[: len(index)])
    source, corrected = clips_of(coloured)
    assert source._ways() == Ways.BOTH | Ways.RECOLOURED
    assert torch.equal(corrected[:, [0, 4]], right[:, [0, 4]])
    left = (corrected - right).abs().mean(dim=(0, 2, 3, 4, 5))
    assert left.max() < 1.5

    source, alone = clips_of(coloured.subset(np.arange(4)))
    assert source._ways() == Ways.DALI | Ways.RECOLOURED
    assert torch.equal(alone, corrected[:, :4])
    monkeypatch.setattr(views_module, "recoloured", lambda index: np.zeros(len(index), dtype=bool))
    _, wrong = clips_of(coloured)
    assert torch.equal(wrong[:, 0], corrected[:, 0])
    uncorrected = (wrong - right).abs().mean(dim=(0, 2, 3, 4, 5))
    assert (uncorrected[1:4] > left[1:4] + 0.5).all()


def test_evaluations_correct_too(coloured, monkeypatch):
    view = ClipEvaluationView(
        resize=64, crop=48, mean=(0.0,) * 3, std=(1 / 255,) * 3, sampling=ClipSampling(frames=2, seconds=0.2)
    )
    right = torch.cat(list(evaluation_clips(coloured, view)))
    monkeypatch.setattr(
        "sce_fast.data.video.evaluation.routes", lambda index, device: np.array([True, True, True, True, False])
    )
    corrected = torch.cat(list(evaluation_clips(coloured, view)))
    assert torch.equal(corrected[[0, 4]], right[[0, 4]])
    assert 0 < (corrected - right).abs().mean() < 1.5
