"""Batches: the same whatever the ranks, the threads or an interruption."""

import os
import shutil

import numpy as np
import pytest
import torch

from sce_fast.data.augment import AUGMENTATIONS, Augmentation, EvaluationView
from sce_fast.data.index import index_images
from sce_fast.data.loader import TrainingLoader, evaluation_batches

VIEWS = (
    Augmentation(size=48, **AUGMENTATIONS["strong"]),
    Augmentation(size=32, **AUGMENTATIONS["beta"]),
)


@pytest.fixture
def photos(photo_folder):
    return index_images(photo_folder)


def loader(index, batch_size=8, **settings):
    return TrainingLoader(index, VIEWS, **{"batch_size": batch_size, "seed": 5, **settings})


def take(source, count):
    return [next(source) for _ in range(count)]


def assert_same(batches, others):
    for batch, other in zip(batches, others, strict=True):
        assert (batch.epoch, batch.step) == (other.epoch, other.step)
        assert np.array_equal(batch.samples, other.samples)
        assert all(torch.equal(view, same) for view, same in zip(batch.views, other.views, strict=True))


def test_batches_of_two_epochs(photos):
    batches = take(loader(photos), 6)
    assert [(b.epoch, b.step) for b in batches] == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]
    assert [view.shape for view in batches[0].views] == [(8, 3, 48, 48), (8, 3, 32, 32)]
    assert batches[0].views[0].dtype == torch.float32
    for epoch in (batches[:3], batches[3:]):
        assert sorted(np.concatenate([b.samples for b in epoch])) == list(range(24))
    assert not np.array_equal(batches[0].samples, batches[3].samples)
    assert not torch.equal(batches[0].views[0], batches[3].views[0])


def test_two_ranks_give_the_pixels_of_one(photos):
    whole = take(loader(photos, batch_size=8), 4)
    halves = [take(loader(photos, batch_size=4, rank=rank, ranks=2), 4) for rank in range(2)]
    for batch, first, second in zip(whole, *halves, strict=True):
        assert np.array_equal(batch.samples, np.concatenate([first.samples, second.samples]))
        for v, view in enumerate(batch.views):
            assert torch.equal(view, torch.cat([first.views[v], second.views[v]]))


@pytest.mark.parametrize("threads", [1, 4])
def test_threads_change_no_pixel(photos, threads):
    assert_same(take(loader(photos, threads=threads), 3), take(loader(photos, threads=2), 3))


@pytest.mark.parametrize("steps", [1, 2, 3, 5])
def test_resume_gives_the_very_next_batch(photos, steps):
    undisturbed = take(loader(photos), 8)
    interrupted = loader(photos)
    take(interrupted, steps)
    state = interrupted.state_dict()
    resumed = loader(photos)
    resumed.load_state_dict(state)
    assert_same(take(resumed, 8 - steps), undisturbed[steps:])
    interrupted.load_state_dict({"epoch": 0, "step": 0})  # and back, in a loader that has already run
    assert_same(take(interrupted, 2), undisturbed[:2])


def test_batches_stay_intact_after_later_ones(photos):
    source = loader(photos)
    first = next(source)
    copies = [view.clone() for view in first.views]
    take(source, 5)
    assert all(torch.equal(view, copy) for view, copy in zip(first.views, copies, strict=True))


def test_last_incomplete_batch_is_dropped(photos):
    source = loader(photos, batch_size=7)
    assert source.steps_per_epoch == 3
    assert [b.epoch for b in take(source, 4)] == [0, 0, 0, 1]


def test_evaluation_keeps_the_last_batch_and_the_order(photos):
    view = EvaluationView(resize=40, crop=32)
    batches = list(evaluation_batches(photos, view, batch_size=7))
    assert [len(batch) for batch in batches] == [7, 7, 7, 3]
    together = torch.cat(batches)
    assert torch.equal(together, torch.cat(list(evaluation_batches(photos, view, batch_size=24, threads=1))))


def truncate(path):
    path.write_bytes(path.read_bytes()[:3000])


@pytest.fixture
def copied(tmp_path, photo_folder):
    shutil.copytree(photo_folder, tmp_path / "data")
    return index_images(tmp_path / "data")


@pytest.mark.parametrize("damage", [truncate, os.unlink], ids=["truncated", "vanished"])
def test_a_file_that_breaks_is_replaced_and_nothing_else_changes(copied, photos, damage):
    path = copied.listing.root / "temple" / "010.jpg"
    damage(path)
    source = loader(copied)
    with pytest.warns(UserWarning, match=r"cannot be decoded, replaced by other images: \S*temple/010.jpg$"):
        batches = take(source, 6)
    assert source.bad_files == [str(path)]
    bad = copied.listing.names.index("temple/010.jpg")
    for batch, whole in zip(batches, take(loader(photos), 6), strict=True):
        assert (batch.epoch, batch.step) == (whole.epoch, whole.step)
        same = whole.samples != bad
        assert np.array_equal(batch.samples[same], whole.samples[same])
        assert bad not in batch.samples
        for view, other in zip(batch.views, whole.views, strict=True):
            assert torch.equal(view[torch.from_numpy(same)], other[torch.from_numpy(same)])

    # The replacement is the same for two ranks and after a resume.
    with pytest.warns(UserWarning, match="cannot be decoded"):
        halves = [take(loader(copied, batch_size=4, rank=rank, ranks=2), 6) for rank in range(2)]
    for batch, first, second in zip(batches, *halves, strict=True):
        assert np.array_equal(batch.samples, np.concatenate([first.samples, second.samples]))
        assert torch.equal(batch.views[0], torch.cat([first.views[0], second.views[0]]))
    resumed = loader(copied)
    resumed.load_state_dict({"epoch": 0, "step": 2})
    with pytest.warns(UserWarning, match="cannot be decoded"):
        assert_same(take(resumed, 4), batches[2:])


def test_many_bad_files_stop_the_run(copied):
    for name in copied.listing.names[:4]:
        truncate(copied.listing.root / name)
    with (
        pytest.raises(RuntimeError, match=r"[34] of 24 files cannot be decoded, more than 10%; the last: \S*flower/"),
        pytest.warns(UserWarning, match="cannot be decoded"),
    ):
        take(loader(copied), 6)


def test_a_bad_file_stops_an_evaluation_by_name(copied):
    truncate(copied.listing.root / "temple" / "010.jpg")
    with pytest.raises(RuntimeError, match=r"cannot be decoded: \S*temple/010.jpg$"):
        list(evaluation_batches(copied, EvaluationView(resize=40, crop=32)))


def test_names_that_are_not_utf8_are_decoded(tmp_path, photo_folder):
    target = os.fsencode(tmp_path) + b"/\xff"
    os.mkdir(target)
    for i, path in enumerate(sorted((photo_folder / "temple").iterdir())[:4]):
        with open(target + b"/\xe9%d.jpg" % i, "wb") as file:
            file.write(path.read_bytes())
    assert next(loader(index_images(tmp_path), batch_size=4)).views[0].shape == (4, 3, 48, 48)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 25}, r"batch_size=25 on 1 rank\(s\) is larger than the data set of 24 images"),
        ({"batch_size": 13, "ranks": 2}, r"batch_size=13 on 2 rank\(s\)"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"rank": 2, "ranks": 2}, "rank=2: expected 0 to 1"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_bad_settings_are_named(photos, settings, message):
    with pytest.raises(ValueError, match=message):
        loader(photos, **settings)
    with pytest.raises(ValueError, match="batch_size=0"):
        next(evaluation_batches(photos, EvaluationView(), batch_size=0))
    with pytest.raises(ValueError, match="loader position"):
        loader(photos).load_state_dict({"epoch": 0, "step": 3})


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
@pytest.mark.parametrize("kind", ["png", "jpg"])
def test_gpu_views_are_those_of_a_cpu(tmp_path, kind):
    """Within what another decoder and another order of sums may do."""
    from sce_fast.benchmarks.gpu_loader import MEAN_ALLOWED, pixels

    assert pixels(tmp_path, kind, 16, "gpu")["mean"] <= MEAN_ALLOWED[kind]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
def test_gpu_loader_resumes_at_the_very_next_sample(photos):
    expected = take(loader(photos, device="gpu"), 4)[2:]
    resumed = loader(photos, device="gpu")
    resumed.load_state_dict({"epoch": 0, "step": 2})
    for batch, its in zip(take(resumed, 2), expected, strict=True):
        assert (batch.epoch, batch.step) == (its.epoch, its.step)
        for view, other in zip(batch.views, its.views, strict=True):
            assert view.device.type == "cuda"
            torch.testing.assert_close(view, other)
