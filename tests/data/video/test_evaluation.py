"""Clips of evaluations: frames and crops against formulas, the order of the index, and bad files."""

import shutil
import threading

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from helpers.pipelines import all_shut_down
from sce_fast.data.faults import BadFilesError
from sce_fast.data.video import evaluation as evaluation_module
from sce_fast.data.video.augment import ClipEvaluationView
from sce_fast.data.video.clips import ClipSampling, uniform_clips
from sce_fast.data.video.decode import ClipRequest, decode_clips
from sce_fast.data.video.evaluation import evaluation_clips
from sce_fast.data.video.index import index_videos
from sce_fast.data.video.routes import routes

SAMPLING = ClipSampling(frames=4, seconds=0.4)
PIXELS = {"mean": (0.0,) * 3, "std": (1 / 255,) * 3}
VIEW = ClipEvaluationView(resize=40, crop=32, sampling=SAMPLING, clips=2, crops=3, **PIXELS)


def together(index, view=VIEW, **settings):
    return torch.cat(list(evaluation_clips(index, view, **settings)))


def expected_clips(index, sample, view):
    """Return the crops (clips · crops, 3, F, crop, crop) of a video by formulas."""
    clips = []
    for frames in uniform_clips(view.sampling, index.timelines, np.array([sample]), view.clips)[0]:
        (whole,) = decode_clips(index, sample, [ClipRequest(frames)])
        height, width = (view.resize * side // min(whole.shape[1:3]) for side in whole.shape[1:3])
        pixels = torch.from_numpy(whole.astype(float)).permute(0, 3, 1, 2)
        resized = interpolate(pixels, size=(height, width), mode="bilinear", antialias=True, align_corners=False)
        top, left = round((height - view.crop) / 2), round((width - view.crop) / 2)
        corners = [(0, left), (top, left), (height - view.crop, left)]
        if width >= height:
            corners = [(top, 0), (top, left), (top, width - view.crop)]
        for y, x in corners if view.crops == 3 else [(top, left)]:
            clips.append(resized[:, :, y : y + view.crop, x : x + view.crop].permute(1, 0, 2, 3))
    return torch.stack(clips)


@pytest.mark.parametrize("crops", [1, 3])
def test_crops_of_uniform_clips_against_formulas(mixed, crops):
    view = ClipEvaluationView(resize=40, crop=32, sampling=SAMPLING, clips=2, crops=crops, **PIXELS)
    found = together(mixed, view, batch_size=3)
    assert found.shape == (8, 2 * crops, 3, 4, 32, 32)
    by_dali = routes(mixed, "cpu")
    for n in range(len(mixed)):
        error = (found[n] - expected_clips(mixed, n, view)).abs()
        assert error.mean() < (3 if by_dali[n] else 0.4)


def test_clips_are_normalised(mixed):
    mean, std = (0.4, 0.45, 0.5), (0.2, 0.225, 0.25)
    view = ClipEvaluationView(resize=40, crop=32, sampling=SAMPLING, clips=2, crops=3, mean=mean, std=std)
    pixels = together(mixed, view) * torch.tensor(std).view(3, 1, 1, 1) + torch.tensor(mean).view(3, 1, 1, 1)
    torch.testing.assert_close(pixels * 255, together(mixed), atol=1e-3, rtol=0)


def test_batches_and_threads_change_no_pixel(mixed, monkeypatch):
    batches = list(evaluation_clips(mixed, VIEW, batch_size=3))
    assert [len(batch) for batch in batches] == [3, 3, 2]
    whole = torch.cat(batches)
    assert torch.equal(together(mixed, batch_size=16, threads=1), whole)
    assert torch.equal(together(mixed, batch_size=1, threads=3), whole)
    monkeypatch.setattr(evaluation_module, "BYTES_AT_ONCE", 2**20)
    small = list(evaluation_clips(mixed, VIEW, batch_size=16))
    assert max(len(batch) for batch in small) < 8
    assert torch.equal(torch.cat(small), whole)


def test_a_subset_has_the_pixels_of_the_whole(mixed):
    """Videos of one way take a graph of their own."""
    whole, by_dali = together(mixed), routes(mixed, "cpu")
    for way in (by_dali, ~by_dali):
        samples = np.flatnonzero(way)
        assert torch.equal(together(mixed.subset(samples)), whole[samples])


def test_an_iterator_that_is_given_up_leaves_no_threads(mixed):
    batches = evaluation_clips(mixed, VIEW, batch_size=2)
    next(batches)
    batches.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("clips")]


@pytest.fixture
def copied(tmp_path, mixed_folder):
    shutil.copytree(mixed_folder, tmp_path / "data")
    return index_videos(tmp_path / "data")


def truncate(index, number, share=0.5):
    (path,) = index.listing.root.glob(f"{number:02d}.*")
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    return path


@pytest.mark.parametrize("number", [0, 1], ids=["decoded ahead", "decoded by DALI"])
def test_a_bad_file_stops_an_evaluation_by_name_or_is_skipped(copied, mixed, number):
    path = truncate(copied, number)
    reason = rf"(?s)1 of 8 files.*{path.name}: truncated or damaged.*never skip videos"
    with all_shut_down(), pytest.raises(BadFilesError, match=reason):
        together(copied)
    skipped = {}
    with all_shut_down():
        found = together(copied, batch_size=3, skipped=skipped)
    assert skipped == {number: "truncated or damaged"}
    assert torch.equal(found, together(mixed)[[n for n in range(8) if n != number]])

    path.write_bytes(b"")
    known = index_videos(copied.listing.root)
    with pytest.raises(ValueError, match=rf"(?s)1 of 8 files cannot be used.*{path.name}: empty"):
        together(known)
    skipped = {}
    assert torch.equal(together(known, skipped=skipped), found)
    assert skipped == {number: "empty"}


def test_what_dali_refuses_is_decoded_the_other_way(mixed, monkeypatch):
    """DALI 2.4 decodes no H.264 on a CPU."""
    expected = together(mixed)
    by_dali = routes(mixed, "cpu")
    monkeypatch.setattr(evaluation_module, "routes", lambda index, device: by_dali | (index.codecs == "h264"))
    assert torch.equal(together(mixed, batch_size=3), expected)


def test_if_all_files_are_bad_there_are_no_batches(copied):
    for number in range(8):
        truncate(copied, number, 0.02)
    skipped = {}
    assert list(evaluation_clips(copied, VIEW, skipped=skipped)) == []
    assert skipped.keys() == set(range(8))


def test_bad_settings_are_named(mixed):
    with pytest.raises(ValueError, match="batch_size=0: expected at least 1"):
        next(evaluation_clips(mixed, VIEW, batch_size=0))
