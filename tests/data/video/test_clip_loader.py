"""Batches of clips are the same for any number of ranks or threads, after an interruption, and beside bad files."""

import os
import shutil
import threading

import numpy as np
import pytest
import torch

from helpers.pipelines import all_shut_down
from helpers.videos import number_of
from sce_fast.data.image.augment import AUGMENTATIONS, Augmentation
from sce_fast.data.loader import TrainingLoader
from sce_fast.data.order import epoch_order
from sce_fast.data.video import inputs as inputs_module
from sce_fast.data.video import views as views_module
from sce_fast.data.video.clips import ClipSampling
from sce_fast.data.video.decode import ClipRequest, VideoError, decode_clips
from sce_fast.data.video.index import index_videos
from sce_fast.data.video.inputs import Ways
from sce_fast.data.video.plan import plan_clips
from sce_fast.data.video.views import RandomClips

SAMPLING = ClipSampling(frames=4, seconds=0.4, temporal_difference=0.3)
VIEWS = (Augmentation(size=32, **AUGMENTATIONS["strong"]), Augmentation(size=24, **AUGMENTATIONS["beta"]))
PIXELS = {"mean": (0.0,) * 3, "std": (1 / 255,) * 3}
WHOLE = Augmentation(size=64, scale=(1.0, 1.0), ratio=(1e-3, 1e3), flip=0.0, **PIXELS)


def loader(index, batch_size=4, *, sampling=SAMPLING, views=VIEWS, seed=5, threads=2, **settings):
    clips = RandomClips(index, sampling, views, seed=seed, threads=threads)
    return TrainingLoader(index, clips, batch_size=batch_size, **settings)


def take(source, count):
    batches = [next(source) for _ in range(count)]
    source.close()
    return batches


def assert_same(batches, others):
    for batch, other in zip(batches, others, strict=True):
        assert (batch.epoch, batch.step) == (other.epoch, other.step)
        assert np.array_equal(batch.samples, other.samples)
        assert all(torch.equal(view, same) for view, same in zip(batch.views, other.views, strict=True))


@pytest.fixture(scope="module")
def expected(mixed_folder):
    """Return the batches of two epochs."""
    return take(loader(index_videos(mixed_folder)), 4)


def test_batches_hold_all_videos_each_epoch(expected):
    assert [(b.epoch, b.step) for b in expected] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert [view.shape for view in expected[0].views] == [(4, 3, 4, 32, 32), (4, 3, 4, 24, 24)]
    assert expected[0].views[0].dtype == torch.float32
    assert expected[0].views[0].is_contiguous()
    for epoch in (expected[:2], expected[2:]):
        assert sorted(np.concatenate([b.samples for b in epoch])) == list(range(8))
    clips = {expected_view.tobytes() for b in expected for expected_view in b.views[0].numpy()}
    assert len(clips) == 16


def test_clips_show_the_planned_frames_whatever_the_codec(mixed):
    sampling = ClipSampling(frames=5, seconds=0.7)
    for batch in take(loader(mixed, sampling=sampling, views=(WHOLE, WHOLE), seed=1), 4):
        plans = plan_clips(
            sampling, (WHOLE, WHOLE), mixed.timelines, mixed.sizes[batch.samples],
            seed=1, epoch=batch.epoch, samples=batch.samples,
        )  # fmt: skip
        for view, plan in zip(batch.views, plans, strict=True):
            shown = [[number_of(frame) for frame in clip.permute(1, 2, 3, 0).numpy()] for clip in view]
            assert shown == plan.frames.tolist()


def test_two_ranks_give_the_pixels_of_one(mixed, expected):
    halves = [take(loader(mixed, batch_size=2, rank=rank, ranks=2), 4) for rank in range(2)]
    for batch, first, second in zip(expected, *halves, strict=True):
        assert np.array_equal(batch.samples, np.concatenate([first.samples, second.samples]))
        for v, view in enumerate(batch.views):
            assert torch.equal(view, torch.cat([first.views[v], second.views[v]]))


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_change_no_pixel(mixed, expected, threads):
    assert_same(take(loader(mixed, threads=threads), 4), expected)


@pytest.mark.parametrize("steps", range(1, 4))
def test_resume_gives_the_very_next_batch(mixed, expected, steps):
    interrupted = loader(mixed)
    for _ in range(steps):
        next(interrupted)
    state = interrupted.state_dict()
    resumed = loader(mixed)
    resumed.load_state_dict(state)
    assert_same(take(resumed, 4 - steps), expected[steps:])
    interrupted.load_state_dict({"epoch": 0, "step": 0})  # and back, in a loader that has already run
    assert_same(take(interrupted, 1), expected[:1])


def test_closing_ends_the_threads_and_loses_no_batch(mixed, expected):
    source = loader(mixed)
    batches = [next(source)]
    assert clip_threads()
    source.close()
    assert not clip_threads()
    batches += [next(source), next(source)]
    source.close()
    assert_same(batches, expected[:3])
    assert not clip_threads()


def clip_threads():
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("clips")]


@pytest.mark.parametrize("by_dali", [False, True])
def test_a_graph_of_one_way_gives_the_pixels_of_the_graph_of_both(mixed, monkeypatch, by_dali):
    part = mixed.subset(np.flatnonzero(views_module.routes(mixed, "cpu") == by_dali))
    assert len(part) == 4
    batches = take(loader(part, batch_size=2), 4)
    monkeypatch.setattr(views_module, "ways_of", lambda by_dali, recoloured: Ways.BOTH)
    assert_same(take(loader(part, batch_size=2), 4), batches)


def truncate(path, share=0.6):
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])


@pytest.fixture
def copied(tmp_path, mixed_folder):
    shutil.copytree(mixed_folder, tmp_path / "data")
    return index_videos(tmp_path / "data")


@pytest.fixture
def bear_many(monkeypatch):
    monkeypatch.setattr("sce_fast.data.faults.MAX_BAD_SHARE", 0.5)


def fails(index, sampling, sample, epoch):
    """Return whether the frames that an epoch plans of a sample cannot be decoded."""
    samples = np.array([sample])
    plans = plan_clips(
        sampling, VIEWS, index.timelines, index.sizes[samples], seed=5, epoch=epoch, samples=samples
    )  # fmt: skip
    try:
        decode_clips(index, sample, [ClipRequest(np.concatenate([p.frames[0], p.neighbours[0]])) for p in plans])
    except VideoError:
        return True
    return False


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(("number", "share"), [(2, 0.9), (1, 0.85)], ids=["decoded ahead", "decoded by DALI"])
def test_a_damaged_video_is_replaced_whenever_its_planned_frames_fail(copied, mixed, bear_many, number, share):
    sampling, epochs = ClipSampling(frames=4, seconds=0.2, temporal_difference=0.3), 4
    (path,) = (copied.listing.root).glob(f"{number:02d}.*")
    truncate(path, share)
    failing = [fails(copied, sampling, number, epoch) for epoch in range(epochs)]
    assert 0 < sum(failing) < epochs
    source = loader(copied, sampling=sampling)
    with pytest.warns(UserWarning, match=rf"(?s)1 of 8 .*{path.name}: truncated or damaged\nOther videos replace them"):
        batches = take(source, 2 * epochs)
    assert source.bad_files == {str(path): "truncated or damaged"}
    whole = take(loader(mixed, sampling=sampling), 2 * epochs)
    assert [e for e in range(epochs) if not any(number in b.samples for b in batches[2 * e : 2 * e + 2])] == [
        epoch for epoch in range(epochs) if failing[epoch]
    ]
    for batch, other in zip(batches, whole, strict=True):
        assert (batch.epoch, batch.step) == (other.epoch, other.step)
        same = (batch.samples == other.samples) & (batch.samples != number)
        assert (same | (other.samples == number)).all()
        for view, original in zip(batch.views, other.views, strict=True):
            assert torch.equal(view[torch.from_numpy(same)], original[torch.from_numpy(same)])

    # A loader that begins in a later epoch does not know what was found before it, and neither does another rank.
    for step in (1, 5):
        resumed = loader(copied, sampling=sampling, threads=1)
        resumed.load_state_dict({"epoch": step // 2, "step": step % 2})
        assert_same(take(resumed, 2 * epochs - step), batches[step:])
    halves = [take(loader(copied, batch_size=2, sampling=sampling, rank=r, ranks=2), 2 * epochs) for r in range(2)]
    for batch, one, two in zip(batches, *halves, strict=True):
        assert np.array_equal(batch.samples, np.concatenate([one.samples, two.samples]))
        for v, view in enumerate(batch.views):
            assert torch.equal(view, torch.cat([one.views[v], two.views[v]]))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:DALI does not decode")
@pytest.mark.parametrize("damage", [os.unlink, lambda path: path.write_bytes(b"")], ids=["missing", "empty"])
@pytest.mark.parametrize("number", [0, 3], ids=["decoded ahead", "decoded by DALI"])
def test_a_video_that_vanishes_gives_the_batches_of_one_known_to_be_bad(copied, number, damage, bear_many):
    """A resumed run reads all headers again; it must give the same bits as a run that found the file while training."""
    (path,) = (copied.listing.root).glob(f"{number:02d}.*")
    names = copied.listing.entries()
    damage(path)
    found_later = loader(copied)
    with pytest.warns(UserWarning, match="cannot be used"):
        batches = take(found_later, 6)
    known = index_videos(copied.listing.root).listed_as(names)
    with pytest.warns(UserWarning, match="cannot be used"):
        knowing = loader(known)
    assert knowing.bad_files == found_later.bad_files
    assert_same(take(knowing, 6), batches)


def test_what_dali_refuses_is_decoded_the_other_way(mixed, expected, monkeypatch):
    """DALI 2.4 decodes no H.264 on a CPU."""
    monkeypatch.setattr(views_module, "routes", lambda index, device: np.isin(index.codecs, ["h264", "hevc", "vp8"]))
    source = loader(mixed)
    refusal = r"DALI does not decode all frames of .*\.mp4; FFmpeg tries instead"
    with all_shut_down(), pytest.warns(UserWarning, match=refusal):
        batches = take(source, 4)
    assert not source.bad_files
    monkeypatch.setattr(views_module, "routes", lambda index, device: np.isin(index.codecs, ["vp8"]))
    assert_same(batches, take(loader(mixed), 4))


@pytest.mark.parametrize(
    ("error", "told"),
    [(ZeroDivisionError("in the decoder"), "ZeroDivisionError: in the decoder"), (SystemExit(), "SystemExit$")],
)
def test_an_unknown_failure_of_the_decoder_names_the_file(mixed, monkeypatch, error, told):
    """A SystemExit would end the run as if it were complete."""

    def broken(index, sample, requests):
        if sample == 4:
            raise error
        return decode_clips(index, sample, requests)

    monkeypatch.setattr(inputs_module, "decode_clips", broken)
    source = loader(mixed)
    with (
        pytest.raises(RuntimeError, match=rf"04\.mp4: {told}"),
        pytest.warns(UserWarning, match="trying it again"),
    ):
        take(source, 3)
    assert not clip_threads()


@pytest.mark.filterwarnings("ignore:a batch failed, but none of its files is known to be bad")
def test_a_failure_behind_batches_without_a_video_for_dali_names_the_file(mixed, monkeypatch):
    part = mixed.subset(np.flatnonzero(~views_module.routes(mixed, "cpu")))
    last = epoch_order(5, 0, len(part))[-1]  # in the second batch, while the first is in flight

    def broken(index, sample, requests):
        if sample == last:
            raise ZeroDivisionError("in the decoder")
        return decode_clips(index, sample, requests)

    monkeypatch.setattr(inputs_module, "decode_clips", broken)
    path = os.fsdecode(part.path(last))
    with pytest.raises(RuntimeError, match=f"{path}: ZeroDivisionError: in the decoder"):
        take(loader(part, batch_size=2), 2)


def test_many_bad_videos_stop_the_run(copied):
    for number in (0, 4, 6):
        truncate(*copied.listing.root.glob(f"{number:02d}.*"), share=0.1)
    with pytest.raises(RuntimeError, match=r"(?s)more than 10% bad files: \d of 8 .*truncated"):
        take(loader(copied), 6)
    assert not clip_threads()


def test_larger_batches_than_videos_are_refused(mixed):
    with pytest.raises(ValueError, match="batch_size=9 on 1 rank"):
        loader(mixed, batch_size=9)


def test_an_index_of_bad_videos_alone_is_refused(copied):
    for path in copied.listing.root.iterdir():
        path.write_bytes(b"")
    with pytest.raises(RuntimeError, match="8 of 8 files cannot be used"):
        loader(index_videos(copied.listing.root))
