"""Names in one piece of memory behave like a list of strings."""

import os
import random

import numpy as np
import pytest

from sce_fast.data.sources import Names
from sce_fast.data.sources import names as names_module

STRINGS = ["a.jpg", "", "ü/ß.png", os.fsdecode(b"\xff\xfe.png"), "a.jpg", "日本/1.jpg", "with\nnewline", "a.jpg.bak"]


@pytest.fixture(autouse=True, params=[2, 65536])
def strings_at_a_time(request, monkeypatch):
    monkeypatch.setattr(names_module, "TOGETHER", request.param)


def test_they_are_those_that_went_in():
    names = Names.of(iter(STRINGS))
    assert (len(names), list(names)) == (len(STRINGS), STRINGS)
    assert [names[i] for i in range(-len(STRINGS), len(STRINGS))] == STRINGS * 2
    assert names[1:6:2] == STRINGS[1:6:2]
    assert list(names.encoded()) == list(map(os.fsencode, STRINGS))
    assert names == STRINGS
    assert names == Names.of(map(os.fsencode, STRINGS))
    assert names != STRINGS[:-1]
    assert "ü/ß.png" in names
    with pytest.raises(IndexError):
        names[len(STRINGS)]


def test_no_names():
    none = Names.of([])
    assert (list(none), none[:], none == [], list(Names.joined([none]))) == ([], [], True, [])
    assert none.find(Names.of(STRINGS)).tolist() == [-1] * len(STRINGS)
    assert Names.of(STRINGS).find(none).tolist() == []


def test_parts_are_joined_and_taken_in_any_order():
    joined = Names.joined([Names.of(STRINGS[:3]), Names.of([]), Names.of(STRINGS[3:])])
    assert joined == STRINGS
    rows = np.array([5, 0, 0, -1, 7, 2])
    assert list(joined.take(rows)) == ["" if i < 0 else STRINGS[i] for i in rows]
    assert list(joined.take(rows[:0])) == []


def test_names_are_found_wherever_they_stand():
    random.seed(1)
    strings = [f"{i % 7}/{random.getrandbits(20):x}.jpg" for i in range(2000)]
    names = Names.of(strings)
    shuffled = random.sample(strings, len(strings))
    assert [strings[i] for i in names.find(Names.of(shuffled))] == shuffled
    other = ["new.jpg", *strings[5:50], "7/new.jpg"]
    found = names.find(Names.of(other)).tolist()
    assert (found[0], found[-1]) == (-1, -1)
    assert [strings[i] for i in found[1:-1]] == other[1:-1]


def test_names_with_the_same_hash_are_told_apart(monkeypatch):
    monkeypatch.setattr(names_module, "_hashes", lambda names: np.zeros(len(names), dtype=np.int64))
    names = Names.of(["a", "b"])
    found = names.find(Names.of(["b", "c", "a"])).tolist()
    assert found[1] == -1
    assert all(row in (-1, want) for row, want in zip(found, [1, -1, 0], strict=True))
