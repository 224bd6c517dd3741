"""The index: files, order, sizes, and the reasons for bad files."""

import os
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from helpers.images import write_png
from sce_fast.data import index
from sce_fast.data.faults import bad_files_tsv, describe_bad_files, status_or_reason
from sce_fast.data.image.formats import decode_failure_reason
from sce_fast.data.image.sizes import SizeReader
from sce_fast.data.index import index_images
from sce_fast.data.sources import Listing, Names

GREY = np.full((9, 13, 3), 128, dtype=np.uint8)


def test_class_folders(photo_folder):
    found = index_images(photo_folder)
    assert found.listing.classes == ["flower", "temple"]
    assert found.labels.tolist() == [0] * 12 + [1] * 12
    assert found.listing.names[0] == "flower/001.jpg"
    assert found.listing.names == sorted(found.listing.names)
    for path, size in zip(found.listing.paths(), found.sizes, strict=True):
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
    with pytest.raises(ValueError, match=r"mixed.txt, line 2: expected a tab and a class on every line or on none"):
        index_images(tmp_path / "mixed.txt")
    (tmp_path / "missing.txt").write_text("x/2.png\nx/9.png\n")
    assert index_images(tmp_path / "missing.txt").bad == {1: "missing"}


def test_names_that_are_not_utf8(tmp_path):
    folder = os.fsencode(tmp_path) + b"/caf\xe9"
    write_png(os.fsdecode(folder + b"/\xff\xfe.png"), GREY)
    found = index_images(tmp_path)
    assert list(found.listing.paths()) == [folder + b"/\xff\xfe.png"]
    assert found.sizes.tolist() == [[9, 13]]
    assert np.array_equal(index_images(tmp_path).sizes, found.sizes)  # from the cache
    with open(folder + b"/broken\xff.png", "wb") as file:
        file.write(b"not an image")
    found = index_images(tmp_path)
    assert found.by_path(found.bad) == {os.fsdecode(folder + b"/broken\xff.png"): "not an image"}


def test_headers_come_from_the_cache_until_a_file_changes(tmp_path, monkeypatch):
    data = tmp_path / "data"
    for name in ("1.png", "2.png"):
        write_png(data / name, GREY)
    read = []
    original = index.read_headers
    monkeypatch.setattr(index, "read_headers", lambda paths, **kw: read.append(len(paths)) or original(paths, **kw))
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
    (data / "1.png").write_bytes(b"")
    assert index_images(data).fingerprint == changed.fingerprint  # a file that breaks does not change the list


def test_contents_follow_lengths_and_classes_but_not_times(tmp_path):
    for name in ("a/1.png", "b/2.png"):
        write_png(tmp_path / name, GREY)
    first = index_images(tmp_path)
    before = first.contents()
    os.utime(tmp_path / "a" / "1.png", (1, 1))
    assert index_images(tmp_path).contents() == before
    other = replace(first, listing=replace(first.listing, labels=np.array([1, 0], dtype=np.int32)))
    (tmp_path / "a" / "1.png").write_bytes((tmp_path / "a" / "1.png").read_bytes() + b"x")
    assert len({before, first.contents(), other.contents()}) == 3
    assert index_images(tmp_path).fingerprint == first.fingerprint


def test_a_damaged_or_unwritable_cache_is_passed_over(tmp_path):
    write_png(tmp_path / "data" / "1.png", GREY)
    cache = tmp_path / "cache"
    index_images(tmp_path / "data", cache=cache)
    (file,) = cache.iterdir()
    content = bytearray(file.read_bytes())
    central = content.rindex(b"PK\x01\x02")  # of the last column, whose way of compression becomes unknown
    content[central + 10] = 0x63
    for damaged in (b"PK\x03\x04 damaged", content):
        file.write_bytes(damaged)
        assert index_images(tmp_path / "data", cache=cache).sizes.tolist() == [[9, 13]]
    columns = dict(np.load(file))
    np.savez(file, **{**columns, "sizes": columns["sizes"][:0]})
    assert index_images(tmp_path / "data", cache=cache).sizes.tolist() == [[9, 13]]
    (tmp_path / "blocked").write_text("a file where a folder should be")
    assert len(index_images(tmp_path / "data", cache=tmp_path / "blocked" / "cache")) == 1


def with_bad_files(folder):
    """Write one bad file of each kind and return name → reason."""
    folder.mkdir(parents=True, exist_ok=True)
    write_png(folder / "good.png", GREY)
    (folder / "cut.png").write_bytes((folder / "good.png").read_bytes()[:30])
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "page.jpg").write_text("<html>404</html>")
    (folder / "sound.webp").write_bytes(b"RIFF\0\0\0\0WAVEfmt ")
    (folder / "drawing.jpg").write_bytes(b"8BPS\0\1")
    os.mkfifo(folder / "pipe.jpg")
    Image.fromarray(GREY).convert("1").save(folder / "bilevel.tif")
    os.symlink("nowhere.jpg", folder / "link.jpg")
    return {
        "bilevel.tif": "unsupported format",
        "cut.png": "truncated or damaged",
        "drawing.jpg": "unsupported format",
        "empty.jpg": "empty",
        "link.jpg": "missing",
        "page.jpg": "not an image",
        "pipe.jpg": "not a file",
        "sound.webp": "not an image",
    }


def test_bad_files_are_in_the_index_with_their_reasons(tmp_path):
    """Reading a pipe would block, and a broken link is easily skipped: both are reported."""
    reasons = with_bad_files(tmp_path / "data")
    for _ in range(2):  # read, then from the cache
        found = index_images(tmp_path / "data")
        assert {found.listing.names[i]: reason for i, reason in found.bad.items()} == reasons
        assert [found.listing.names[i] for i in np.flatnonzero(found.sizes[:, 0])] == ["good.png"]
    part = found.subset(np.array([found.listing.names.index(name) for name in ("good.png", "page.jpg")]))
    assert part.bad == {1: "not an image"}


def test_bad_entries_of_a_list_file_keep_their_places(tmp_path):
    write_png(tmp_path / "a.png", GREY)
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "list.txt").write_text("gone.png\tx\na.png\tx\nfolder.jpg\ty\na.png/b.png\ty\n")
    found = index_images(tmp_path / "list.txt")
    assert found.bad == {0: "missing", 2: "not a file", 3: "missing"}
    assert found.labels.tolist() == [0, 0, 1, 1]


def test_what_may_not_be_read_is_unreadable(tmp_path, monkeypatch):
    """The refusal is simulated, because root may read everything."""
    write_png(tmp_path / "a.png", GREY)

    def refuse(path, *rest, **more):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr("sce_fast.data.faults.os.stat", refuse)
    assert status_or_reason(b"a.png") == "unreadable"
    monkeypatch.undo()
    monkeypatch.setattr("builtins.open", refuse)
    assert decode_failure_reason(os.fsencode(tmp_path / "a.png")) == "unreadable"


def test_links_back_to_the_folder_are_not_followed(tmp_path):
    for name in ("1.png", "deeper/2.png"):
        write_png(tmp_path / name, GREY)
    for name in ("all", "deeper/back", "Z"):
        (tmp_path / name).symlink_to(tmp_path)
    assert index_images(tmp_path).listing.names == ["1.png", "deeper/2.png"]


@pytest.fixture
def locked_folder(tmp_path, monkeypatch):
    """Make a folder unreadable; simulated, because root may read everything."""
    scandir, listdir = os.scandir, os.listdir

    def refused(folder, read):
        if os.path.basename(os.fsdecode(folder)) == "locked":
            raise PermissionError(13, "Permission denied", folder)
        return read(folder)

    monkeypatch.setattr(os, "scandir", lambda folder: refused(folder, scandir))
    monkeypatch.setattr(os, "listdir", lambda folder: refused(folder, listdir))


@pytest.mark.parametrize("layout", ["flat", "classes"])
def test_links_to_themselves_and_unreadable_folders_are_named_and_passed_over(tmp_path, locked_folder, layout):
    write_png(tmp_path / "a" / "1.png", GREY)
    write_png(tmp_path / "a" / "locked" / "2.png", GREY)
    write_png(tmp_path / "locked" / "3.png", GREY)
    (tmp_path / "a" / "turn").symlink_to("turn")
    (tmp_path / "turn").symlink_to("turn")
    (tmp_path / "a" / "turn.png").symlink_to("turn.png")
    if layout == "flat":
        write_png(tmp_path / "0.png", GREY)
    found = index_images(tmp_path)
    assert found.listing.names == ["0.png"] * (layout == "flat") + ["a/1.png", "a/turn.png"]
    assert found.listing.classes == ([] if layout == "flat" else ["a"])
    loop = "a link to itself"
    unreadable = {"a/locked": "unreadable folder", "a/turn": loop, "locked": "unreadable folder", "turn": loop}
    assert found.listing.unreadable == unreadable
    bad = {f"{tmp_path}/{name}": reason for name, reason in [*unreadable.items(), ("a/turn.png", loop)]}
    assert found.bad_files() == bad
    with pytest.raises(
        ValueError, match=r"(?s)cannot be used \(3 a link to itself, 2 unreadable folder\).*a/locked: unr"
    ):
        found.require_readable()
    assert not found.listing.ignored


@pytest.mark.parametrize("layout", ["flat", "classes"])
def test_other_files_are_counted_by_their_endings(tmp_path, layout):
    write_png(tmp_path / "a" / "1.png", GREY)
    if layout == "flat":
        write_png(tmp_path / "0.png", GREY)
    for name in ("x.gif", "a/y.GIF", "a/deep/z.gif", "a/x.avif", "b/x.heic", "x", "a/.hidden", "a/n\n.t\tt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"GIF89a")
    (tmp_path / "a" / "empty.d").mkdir()
    listing = index_images(tmp_path).listing
    assert listing.ignored == {".gif": 3, ".avif": 1, ".heic": 1, "": 1, ".t\tt": 1}
    counts = r"3 .gif, 1 without an ending, 1 .avif, 1 .heic, 1 .t\x09t"
    assert listing.describe_ignored() == f"7 files in {tmp_path} are ignored ({counts})"
    many = Listing(tmp_path, Names.of([]), None, [], ignored={f".{i:02d}": 1 for i in range(13)})
    assert many.describe_ignored().endswith("1 .06, 1 .07, 5 with other endings)")


def test_a_folder_with_an_images_name_is_a_class(tmp_path):
    write_png(tmp_path / "a" / "1.png", GREY)
    write_png(tmp_path / "b.png" / "2.png", GREY)  # a folder with an image's name is still a folder
    assert index_images(tmp_path).listing.classes == ["a", "b.png"]


def test_names_with_line_ends_print_in_one_line(tmp_path):
    assert bad_files_tsv({f"{tmp_path}/a\nb\t.jpg": "empty"}) == f"{tmp_path}/a\\x0ab\\x09.jpg\tempty\n"


def test_long_lists_of_bad_files_are_cut(tmp_path):
    text = describe_bad_files({f"{i:03d}.jpg": "empty" if i % 3 else "missing" for i in range(50)}, 1000)
    assert text.startswith("50 of 1000 files cannot be used (33 empty, 17 missing):\n  000.jpg: missing\n")
    assert text.endswith("  019.jpg: empty\n  and 30 more; sce-fast scan lists all of them")


@pytest.mark.parametrize("cut", [0.02, 0.5, 0.99, "end marker"])
@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_cut_off_anywhere_is_found_by_decoding_alone(tmp_path, photographs, progressive, cut):
    path = tmp_path / "photo.jpg"
    Image.fromarray(photographs[0]).save(path, progressive=progressive)
    whole = path.read_bytes()
    path.write_bytes(whole[:-2] if cut == "end marker" else whole[: int(cut * len(whole))])
    assert SizeReader(decode=False).sizes([os.fsencode(path)]).tolist() == [[427, 640]]
    assert SizeReader(decode=True).sizes([os.fsencode(path)]).tolist() == [[0, 0]]


def unusual_images(folder, photograph):
    image, turned = Image.fromarray(photograph), Image.Exif()
    turned[0x0112] = 6
    grey16 = Image.fromarray(photograph[:, :, 0].astype(np.uint16) * 257)
    image.convert("CMYK").save(folder / "cmyk.jpg")
    image.convert("L").save(folder / "grey.jpg")
    image.convert("P").save(folder / "palette.png")
    image.convert("RGBA").save(folder / "alpha.png")
    image.convert("LA").save(folder / "grey_alpha.png")
    image.save(folder / "animated.webp", save_all=True, append_images=[image])
    image.save(folder / "animated.png", save_all=True, append_images=[image])
    image.save(folder / "pages.tif", save_all=True, append_images=[image])
    image.convert("CMYK").save(folder / "cmyk.tif")
    image.save(folder / "turned.png", exif=turned)
    grey16.save(folder / "sixteen.png")
    grey16.save(folder / "sixteen.tif")
    for name in ("image.jpg", "image.bmp", "image.ppm", "image.webp", "image.jp2", "image.tif"):
        image.save(folder / name)
    image.convert("1").save(folder / "bits.pbm")
    image.convert("L").save(folder / "grey.pgm")


def test_unusual_images_decode_to_the_size_of_their_header(tmp_path, photographs):
    """If the decoder returned another size, crops could lie outside the image."""
    unusual_images(tmp_path, photographs[0][:60, :90])
    paths = [os.fsencode(path) for path in sorted(tmp_path.iterdir())]
    sizes = SizeReader(decode=False).sizes(paths)
    assert np.array_equal(SizeReader(decode=True).sizes(paths), sizes)
    assert sizes.tolist() == [[90, 60] if b"turned" in path else [60, 90] for path in paths]
    # After a failed batch, files that do not start like an image are not decoded again; these images must be.
    broken = tmp_path / "broken.png"
    broken.write_text("no image")
    together = SizeReader(decode=True).sizes([os.fsencode(broken), *paths])
    assert np.array_equal(together[1:], sizes)


def test_a_size_reader_finds_the_bad_files_of_any_mixture(tmp_path):
    write_png(tmp_path / "good.png", GREY)
    (tmp_path / "bad.png").write_bytes((tmp_path / "good.png").read_bytes()[:-20])
    good, bad = (os.fsencode(tmp_path / f"{name}.png") for name in ("good", "bad"))
    reader = SizeReader(decode=True, batch_size=8, threads=2)
    for pattern in ("g", "b", "gggggggggggg", "bbbbbbbbbbbb", "gbggggbbg", "bgbgbgbgbgbgbgbgb", ""):
        sizes = reader.sizes([good if letter == "g" else bad for letter in pattern])
        assert sizes.tolist() == [[9, 13] if letter == "g" else [0, 0] for letter in pattern]


def test_missing_and_empty_folders_are_named(tmp_path):
    (tmp_path / "binary").write_bytes(b"\x00\x01")
    with pytest.raises(ValueError, match="binary is neither a folder nor a text file"):
        index_images(tmp_path / "binary")
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder or list file"):
        index_images(tmp_path / "nowhere")
    (tmp_path / "empty" / "deeper").mkdir(parents=True)
    (tmp_path / "empty" / "deeper" / "movie.gif").write_bytes(b"GIF89a")
    with pytest.raises(ValueError, match=r"empty: no images found .*; 1 file in \S+empty is ignored \(1 .gif\)"):
        index_images(tmp_path / "empty")
