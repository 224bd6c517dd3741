"""Parts of a data set, drawn by seed or named by lists."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sce_fast.data.index import ImageIndex
from sce_fast.data.sources import Listing, Names
from sce_fast.data.subset import subset

COUNTS = {"ape": 100, "bat": 30, "cat": 4}


def index(labelled=True):
    names = [f"{name}/{name}_{i}.jpg" for name, count in COUNTS.items() for i in range(count)]
    labels = np.repeat(np.arange(3, dtype=np.int32), list(COUNTS.values()))
    listing = Listing(Path("photos"), Names.of(names), labels if labelled else None, list(COUNTS) if labelled else [])
    sizes = np.arange(2 * len(names), dtype=np.int32).reshape(-1, 2) + 1
    return ImageIndex(listing, sizes, np.zeros(len(names), dtype=np.uint8), {3: "empty", 101: "missing"})


def numbers(part):
    return ((part.sizes[:, 0] - 1) // 2).tolist()


def test_a_share_has_as_much_of_each_class_and_always_the_same():
    part = subset(index(), share=0.1, seed=5)
    assert np.bincount(part.labels).tolist() == [10, 3, 1]  # at least one
    assert numbers(part) == sorted(numbers(part)) == numbers(subset(index(), share=0.1, seed=5))
    assert numbers(part) != numbers(subset(index(), share=0.1, seed=6))
    assert set(numbers(part)) < set(numbers(subset(index(), share=0.5, seed=5)))
    everything = subset(index(), share=1.0)
    assert everything.listing.names == index().listing.names
    assert np.array_equal(everything.labels, index().labels)
    assert part.listing.classes == list(COUNTS)
    assert part.listing.names == [index().listing.names[i] for i in numbers(part)]
    for new, old in enumerate(numbers(part)):
        assert part.bad.get(new) == index().bad.get(old)


def test_the_choice_is_uniform():
    drawn = np.zeros(134)
    for seed in range(200):
        drawn[numbers(subset(index(), share=0.5, seed=seed))] += 1
    assert np.abs(drawn / 200 - 0.5).max() < 4.5 * 0.5 / 200**0.5


def test_a_number_of_each_class():
    assert np.bincount(subset(index(), per_class=20).labels).tolist() == [20, 20, 4]
    assert len(subset(index(labelled=False), per_class=20)) == 20
    assert len(subset(index())) == 134


def test_lists_of_files_and_classes(tmp_path):
    files = tmp_path / "files.txt"
    files.write_text("cat/cat_2.jpg\r\n\nape_7.jpg\ncat/cat_2.jpg\n")
    assert numbers(subset(index(), files=files)) == [7, 132]
    classes = tmp_path / "classes.txt"
    classes.write_text("cat\nape\n")
    part = subset(index(), classes=classes)
    assert part.listing.classes == ["ape", "cat"]
    assert np.bincount(part.labels).tolist() == [100, 4]
    assert part.bad == {3: "empty"}
    assert np.bincount(subset(index(), classes=classes, share=0.5).labels).tolist() == [50, 2]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"share": 0.0}, r"share=0.0: expected a number in \(0, 1\]"),
        ({"share": 0.1, "per_class": 1}, "share=0.1, per_class=1: expected at most one of both"),
        ({"per_class": 0}, "per_class=0: expected at least 1"),
        ({"seed": -1, "share": 0.1}, r"seed=-1: expected 0 to 2\*\*32 - 1"),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        subset(index(), **settings)


def test_names_that_are_not_there_are_named(tmp_path):
    path = tmp_path / "names.txt"
    path.write_text("ape_7.jpg\nape_700.jpg\nbat/ape_7.jpg\n")
    with pytest.raises(ValueError, match=r"names.txt names files that photos lacks: ape_700.jpg, bat/ape_7.jpg"):
        subset(index(), files=path)
    path.write_text("dog\n")
    with pytest.raises(ValueError, match=r"names.txt names classes that photos lacks: dog"):
        subset(index(), classes=path)
    with pytest.raises(ValueError, match=r"photos has no classes, so .*names.txt cannot choose among them"):
        subset(index(labelled=False), classes=path)
    with pytest.raises(FileNotFoundError):
        subset(index(), files=tmp_path / "nowhere.txt")
    twice = index()
    names = Names.of(["bat/ape_7.jpg", *twice.listing.names[1:]])
    twice = replace(twice, listing=replace(twice.listing, names=names))
    path.write_text("ape_7.jpg\n")
    with pytest.raises(ValueError, match=r"ape_7.jpg may be bat/ape_7.jpg and ape/ape_7.jpg; expected names"):
        subset(twice, files=path)
