"""Samples of shards give the pixels of files, resume at the very next one, and are replaced if they are bad."""

import os
import shutil

import numpy as np
import pytest
import torch

from helpers.shards import tar_folder, write_table, write_tar
from sce_fast.data.evaluation import evaluation_batches
from sce_fast.data.faults import BadFilesError
from sce_fast.data.image.augment import AUGMENTATIONS, Augmentation, EvaluationView
from sce_fast.data.image.views import RandomViews
from sce_fast.data.index import index_images
from sce_fast.data.loader import TrainingLoader
from sce_fast.evaluate.overlap import shared_samples
from sce_fast.tools.scan import scan

VIEWS = (Augmentation(size=48, **AUGMENTATIONS["strong"]), Augmentation(size=32, **AUGMENTATIONS["beta"]))
VIEW = EvaluationView(resize=40, crop=32)


def loader(index, batch_size=8, **settings):
    return TrainingLoader(index, RandomViews(index, VIEWS, seed=5), batch_size=batch_size, **settings)


def take(source, count):
    return [next(source) for _ in range(count)]


def assert_same(batches, others):
    for batch, other in zip(batches, others, strict=True):
        assert np.array_equal(batch.samples, other.samples)
        assert all(torch.equal(view, same) for view, same in zip(batch.views, other.views, strict=True))


@pytest.fixture(scope="module")
def shards(photo_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    tar_folder(photo_folder, folder, shards=3)
    return folder


@pytest.fixture(scope="module")
def expected(photo_folder):
    return take(loader(index_images(photo_folder)), 6)


def test_shards_give_the_pixels_of_files(photo_folder, shards, expected):
    files, packed = index_images(photo_folder), index_images(shards)
    assert np.array_equal(packed.sizes, files.sizes)
    assert packed.listing.classes == files.listing.classes
    assert np.array_equal(packed.labels, files.labels)
    assert_same(take(loader(packed), 6), expected)
    batches = [list(evaluation_batches(index, VIEW, batch_size=7)) for index in (files, packed)]
    assert torch.equal(*map(torch.cat, batches))


def test_tables_give_the_pixels_of_files(photo_folder, tmp_path, expected):
    pytest.importorskip("pyarrow")
    files = index_images(photo_folder)
    contents = [files.files.content(i).tobytes() for i in range(len(files))]
    write_table(tmp_path / "train-0.parquet", contents, files.labels.tolist())
    assert_same(take(loader(index_images(tmp_path)), 6), expected)


@pytest.mark.parametrize("steps", [1, 4])
def test_resume_gives_the_very_next_batch(shards, expected, steps):
    interrupted = loader(index_images(shards))
    take(interrupted, steps)
    resumed = loader(index_images(shards))
    resumed.load_state_dict(interrupted.state_dict())
    assert_same(take(resumed, 6 - steps), expected[steps:])


def test_two_ranks_give_the_pixels_of_one(shards, expected):
    index = index_images(shards)
    halves = [take(loader(index, batch_size=4, rank=rank, ranks=2), 3) for rank in range(2)]
    for batch, first, second in zip(expected, *halves, strict=False):
        assert np.array_equal(batch.samples, np.concatenate([first.samples, second.samples]))
        for v, view in enumerate(batch.views):
            assert torch.equal(view, torch.cat([first.views[v], second.views[v]]))


def test_a_damaged_member_is_named_and_replaced(photo_folder, tmp_path, expected):
    """The header of the member is whole, so that only its decoder notices."""
    copied, sample = tmp_path / "data", int(expected[0].samples[0])
    cut = sorted(shutil.copytree(photo_folder, tmp_path / "files").rglob("*.jpg"))[sample]
    cut.write_bytes(cut.read_bytes()[:-500])
    tar_folder(tmp_path / "files", copied, shards=3)
    index = index_images(copied)
    name = f"{copied}/{index.listing.names[sample]}"
    source = loader(index)
    with pytest.warns(UserWarning, match="1 of 24 files cannot be used") as warned:
        batch = next(source)
    assert name in str(warned[0].message)
    assert source.bad_files == {name: "truncated or damaged"}
    assert sample not in batch.samples
    assert np.array_equal(batch.samples[1:], expected[0].samples[1:])
    with pytest.raises(BadFilesError, match=f"{name}: truncated or damaged"):
        list(evaluation_batches(index, VIEW))
    assert scan(copied).bad_files() == {name: "truncated or damaged"}


@pytest.mark.parametrize("fault", ["missing", "in a file that has changed"])
def test_a_shard_that_goes_makes_all_its_samples_bad_at_once(photo_folder, tmp_path, fault):
    tar_folder(photo_folder, tmp_path, shards=12)
    index = index_images(tmp_path)
    source, path = loader(index), tmp_path / "part-007.tar"
    if fault == "missing":
        path.unlink()
    else:
        write_tar(path, [("other.jpg", b"other")])
    with pytest.warns(UserWarning, match="2 of 24 files cannot be used"):
        batches = take(source, 3)
    assert source.bad_files == {f"{path}!{index.listing.packed.member(i)}": fault for i in (14, 15)}
    assert not {14, 15} & set(np.concatenate([batch.samples for batch in batches]).tolist())


def test_parts_of_shards_keep_names_pixels_and_labels(shards):
    index = index_images(shards)
    part = index.subset(np.array([20, 3, 3]))
    assert list(part.listing.names) == [index.listing.names[i] for i in (20, 3, 3)]
    assert part.labels.tolist() == index.labels[[20, 3, 3]].tolist()
    assert np.array_equal(part.files.content(0), index.files.content(20))
    entries = [index.listing.names[5], "part-000.tar!gone.jpg", index.listing.names[4]]
    listed = index.listed_as(entries)
    assert (list(listed.listing.names), listed.bad) == (entries, {1: "missing"})
    assert np.array_equal(listed.files.content(2), index.files.content(4))
    assert listed.files.failure_reason(1) == "missing"
    assert index.listed_as(list(index.listing.names)).fingerprint == index.fingerprint


def test_samples_in_both_sets_are_found_in_shards_too(photo_folder, shards, tmp_path):
    packed, files = index_images(shards), index_images(photo_folder)
    assert shared_samples(packed, packed.subset(np.arange(5))) == 5
    assert shared_samples(files, packed) == 24  # by name and content
    write_tar(tmp_path / "x.tar", [("001.jpg", b"\0" * int(packed.sizes.sum())), ("new.jpg", b"new")])
    assert shared_samples(packed, index_images(tmp_path)) == 0


def test_few_files_stay_open(shards, monkeypatch):
    monkeypatch.setattr("sce_fast.data.sources.reading.OPEN_FILES", 1)
    before = len(os.listdir("/proc/self/fd"))
    index = index_images(shards)
    for sample in range(0, 24, 5):
        index.files.content(sample)
    assert len(os.listdir("/proc/self/fd")) == before + 1
