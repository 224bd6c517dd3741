"""The images of a resumed run: what it has set aside itself, what is refused, and what is accepted on request."""

import gzip
import json
import os
from pathlib import Path

import numpy as np
import pytest

from helpers.runs import small_config
from sce_fast.config import TrainConfig, replace
from sce_fast.data.index import ImageIndex
from sce_fast.data.sources import Listing, Names
from sce_fast.distributed import Ranks
from sce_fast.train.folder import write_config
from sce_fast.train.image_list import images_to_train_on, write_image_list

SIZES = {"a.jpg": (10, 20), "b.jpg": (10, 30), "c.jpg": (10, 40), "d\udcff.jpg": (10, 50)}


def index_of(root: Path, sizes: dict[str, tuple[int, int]]) -> ImageIndex:
    bad = {i: "empty" for i, size in enumerate(sizes.values()) if size == (0, 0)}
    rows = np.array(list(sizes.values()), dtype=np.int32)
    return ImageIndex(Listing(root, Names.of(sizes), None, []), rows, np.zeros(len(sizes), dtype=np.uint8), bad)


@pytest.fixture
def config(tmp_path) -> TrainConfig:
    """A run on SIZES with a checkpoint after step 4, which has set b.jpg aside."""
    config = small_config(tmp_path / "photos", tmp_path / "run")
    checkpoint = config.out / "checkpoints" / "step_00000004"
    checkpoint.mkdir(parents=True)
    index = index_of(config.data, SIZES)
    state = {"step": 4, "bad_files": {"b.jpg": "missing"}, "data_fingerprint": index.fingerprint}
    (checkpoint / "state.json").write_text(json.dumps(state))
    write_config(config)
    write_image_list(config.out, images_to_train_on(config, index, None, Ranks()))
    return replace(config, resume=True)


def resumed(config: TrainConfig, **changes: tuple[int, int] | None):
    """Return the images to train on if these sizes have changed; None for a file that is gone."""
    sizes = {name: changes.get(name.partition(".")[0], size) for name, size in SIZES.items()}
    sizes |= {f"{name}.jpg": size for name, size in changes.items() if f"{name}.jpg" not in sizes}
    index = index_of(config.data, {name: size for name, size in sizes.items() if size is not None})
    return images_to_train_on(config, index, config.out / "checkpoints" / "step_00000004", Ranks())


@pytest.mark.parametrize(("size", "reason"), [((9, 9), "changed size"), (None, "missing")])
def test_what_the_run_has_set_aside_stays_aside(config, size, reason):
    found = resumed(config, b=size)
    assert found.index.listing.names == list(SIZES)
    assert found.index.bad == {1: reason}
    assert (found.differences, found.restarts_epoch) == ([], False)
    write_image_list(config.out, found)
    assert resumed(config, b=size).index.bad == {1: reason}
    assert resumed(config).index.bad == {}  # it is back


@pytest.mark.parametrize("size", [(9, 9), None])
def test_a_file_set_aside_after_the_newest_checkpoint_counts_too(config, size):
    """The run was killed after it had written bad_files.txt."""
    with pytest.raises(ValueError, match=r"1 (of another size|missing): c.jpg"):
        resumed(config, c=size)
    (config.out / "bad_files.txt").write_text(f"{config.data}/b.jpg\tmissing\n{config.data}/c.jpg\tchanged size\n")
    assert resumed(config, b=None, c=size).index.bad.keys() == {1, 2}
    moved = replace(config, data=config.data.with_name("moved"))
    assert resumed(moved, b=None, c=size).index.bad.keys() == {1, 2}
    with pytest.raises(ValueError, match=r"1 missing: a.jpg"):
        resumed(config, a=None, b=None)


CHANGES = {
    "a size": ({"a": (9, 9)}, ["1 of another size: a.jpg"], False),
    "a missing file": ({"a": None}, ["1 missing: a.jpg"], True),
    "a new file": ({"e": (1, 1)}, ["1 new: e.jpg"], True),
    "all at once": ({"a": None, "c": (9, 9), "e": (1, 1)}, ["1 missing: a.jpg", "1 new: e.jpg",
                                                           "1 of another size: c.jpg"], True),
    "with one that is set aside": ({"a": None, "b": (9, 9)}, ["1 missing: a.jpg"], True),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_other_changes_are_accepted_on_request(config, change):
    changes, differences, restarts = CHANGES[change]
    with pytest.raises(ValueError, match="restore them, go on with --accept-changed-data, or start in another --out"):
        resumed(config, **changes)
    found = resumed(replace(config, accept_changed_data=True), **changes)
    assert (found.differences, found.restarts_epoch) == (differences, restarts)
    assert len(found.index) == len(SIZES) + sum(n == "e" for n in changes) - sum(s is None for s in changes.values())
    assert found.index.by_path(found.index.bad) == ({f"{config.data}/b.jpg": "changed size"} if "b" in changes else {})
    write_image_list(config.out, found)
    again = resumed(config, **changes)  # before the next checkpoint, without the option
    assert (again.differences, again.restarts_epoch) == ([], restarts)
    assert again.index.bad == found.index.bad


def test_another_order_and_an_unreadable_file(config):
    assert resumed(config, a=(0, 0)).index.bad == {0: "empty"}
    path = config.out / "images.json.gz"
    path.write_bytes(gzip.compress(json.dumps(list(reversed(SIZES.items()))).encode()))
    with pytest.raises(ValueError, match="the same images in another order"):
        resumed(config)


def test_without_its_list_the_fingerprint_tells(config):
    os.unlink(config.out / "images.json.gz")
    assert resumed(config).differences == []
    with pytest.raises(ValueError, match=r"has the fingerprint \w+, expected \w+; .* --accept-changed-data"):
        resumed(config, a=None)
    found = resumed(replace(config, accept_changed_data=True), a=None)
    assert (found.differences, found.restarts_epoch) == (["another list of images"], True)
