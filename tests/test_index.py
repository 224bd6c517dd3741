"""What is found, in which order, how large, and what is said of bad input."""

import os
import shutil

import numpy as np
import pytest
from conftest import write_png
from PIL import Image

from sce_fast.data import index
from sce_fast.data.index import index_images

GREY = np.full((9, 13, 3), 128, dtype=np.uint8)


def test_class_folders(photo_folder):
    found = index_images(photo_folder)
    assert found.listing.classes == ["flower", "temple"]
    assert found.labels.tolist() == [0] * 12 + [1] * 12
    assert found.listing.names[0] == "flower/001.jpg"
    assert found.listing.names == sorted(found.listing.names)
    for path, size in zip(found.paths, found.sizes, strict=True):
        with Image.open(path) as image:
            sideways = image.getexif().get(0x0112) == 6
            assert tuple(size) == (image.size if sideways else image.size[::-1])


def test_flat_folder_has_no_labels_and_takes_every_depth(tmp_path):
    for name in ("b.png", "a.PNG", "deeper/c.png", "deeper/still/d.png", ".hidden/e.png", ".f.png"):
        write_png(tmp_path / name, GREY)
    (tmp_path / "notes.txt").write_text("no image")
    found = index_images(tmp_path)
    assert found.listing.names == ["a.PNG", "b.png", "deeper/c.png", "deeper/still/d.png"]
    assert found.labels is None
    assert found.sizes.tolist() == [[9, 13]] * 4


def test_classes_may_hold_folders_and_links(tmp_path):
    write_png(tmp_path / "real" / "x" / "1.png", GREY)
    root = tmp_path / "data"
    write_png(root / "cat" / "deep" / "2.png", GREY)
    (root / "empty").mkdir()
    os.symlink(tmp_path / "real", root / "dog")
    os.symlink(root / "cat", root / "cat" / "loop")
    found = index_images(root)
    assert found.listing.names == ["cat/deep/2.png", "dog/x/1.png"]
    assert found.listing.classes == ["cat", "dog"]


def test_list_file(tmp_path):
    for name in ("x/1.png", "x/2.png", "3.png"):
        write_png(tmp_path / name, GREY)
    (tmp_path / "list.txt").write_text(f"# comment\nx/2.png\tzebra\n\n{tmp_path}/3.png\tape\nx/1.png\tzebra\n")
    found = index_images(tmp_path / "list.txt")
    assert found.listing.names == ["x/2.png", f"{tmp_path}/3.png", "x/1.png"]
    assert found.labels.tolist() == [1, 0, 1]
    assert found.listing.classes == ["ape", "zebra"]
    (tmp_path / "plain.txt").write_text("x/2.png\nx/1.png\n")
    assert index_images(tmp_path / "plain.txt").labels is None
    (tmp_path / "mixed.txt").write_text("x/2.png\nx/1.png\tape\n")
    with pytest.raises(ValueError, match=r"mixed.txt, line 2: either every line"):
        index_images(tmp_path / "mixed.txt")
    (tmp_path / "missing.txt").write_text("x/2.png\nx/9.png\n")
    with pytest.raises(ValueError, match=r"x/9.png: listed, but there is no such file"):
        index_images(tmp_path / "missing.txt")


def test_names_that_are_not_utf8(tmp_path):
    folder = os.fsencode(tmp_path) + b"/caf\xe9"
    write_png(os.fsdecode(folder + b"/\xff\xfe.png"), GREY)
    found = index_images(tmp_path)
    assert found.paths == [folder + b"/\xff\xfe.png"]
    assert found.sizes.tolist() == [[9, 13]]
    assert np.array_equal(index_images(tmp_path).sizes, found.sizes)  # from the cache
    with open(folder + b"/broken\xff.png", "wb") as file:
        file.write(b"not an image")
    with pytest.raises(ValueError, match=r"caf\\xe9/broken\\xff.png"):
        index_images(tmp_path)


def test_sizes_come_from_the_cache_until_a_file_changes(tmp_path, monkeypatch):
    data = tmp_path / "data"
    for name in ("1.png", "2.png"):
        write_png(data / name, GREY)
    read = []
    original = index.read_sizes
    monkeypatch.setattr(index, "read_sizes", lambda paths, **kw: read.append(len(paths)) or original(paths, **kw))
    first = index_images(data)
    again = index_images(data)
    assert read == [2]
    assert again.fingerprint == first.fingerprint
    write_png(data / "2.png", np.zeros((5, 6, 3), dtype=np.uint8))
    write_png(data / "0.png", GREY)
    changed = index_images(data)
    assert read == [2, 2]
    assert changed.sizes.tolist() == [[9, 13], [9, 13], [5, 6]]
    assert changed.fingerprint != first.fingerprint


def test_a_damaged_or_unwritable_cache_is_passed_over(tmp_path):
    write_png(tmp_path / "data" / "1.png", GREY)
    cache = tmp_path / "cache"
    index_images(tmp_path / "data", cache=cache)
    (file,) = cache.iterdir()
    file.write_bytes(b"PK\x03\x04 damaged")
    assert index_images(tmp_path / "data", cache=cache).sizes.tolist() == [[9, 13]]
    (tmp_path / "blocked").write_text("a file where a folder should be")
    assert len(index_images(tmp_path / "data", cache=tmp_path / "blocked" / "cache")) == 1


def test_bad_files_are_named(tmp_path, photo_folder):
    shutil.copytree(photo_folder, tmp_path / "data")
    flowers = tmp_path / "data" / "flower"
    (flowers / "empty.jpg").write_bytes(b"")
    (flowers / "text.png").write_text("hello")
    with pytest.raises(ValueError, match=r"(?s)2 files cannot be read.*flower/empty.jpg.*flower/text.png"):
        index_images(tmp_path / "data")


def test_missing_and_empty_folders_are_named(tmp_path):
    (tmp_path / "binary").write_bytes(b"\x00\x01")
    with pytest.raises(ValueError, match="binary is neither a folder nor a text file"):
        index_images(tmp_path / "binary")
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder or list file"):
        index_images(tmp_path / "nowhere")
    (tmp_path / "empty" / "deeper").mkdir(parents=True)
    (tmp_path / "empty" / "deeper" / "movie.gif").write_bytes(b"GIF89a")
    with pytest.raises(ValueError, match="empty: no images found"):
        index_images(tmp_path / "empty")
