"""Tar shards, CIFAR and STL-10: which files of a path are read, and what is found in them."""

import os
import pickle
import re

import numpy as np
import pytest

from helpers.images import write_png
from helpers.shards import planar, write_tar
from sce_fast.data.image import shards
from sce_fast.data.image.augment import EvaluationView
from sce_fast.data.index import index_images
from sce_fast.data.sources import find_shards, kinds_found
from sce_fast.data.sources.pickles import read_cifar_pickle
from sce_fast.data.subset import subset
from sce_fast.evaluate import labelled_indices
from sce_fast.evaluate.sets import open_set

SMALL = np.arange(5 * 7 * 3, dtype=np.uint8).reshape(5, 7, 3)


@pytest.fixture
def png(tmp_path) -> bytes:
    write_png(tmp_path / "png" / "small.png", SMALL)
    return (tmp_path / "png" / "small.png").read_bytes()


def names_of(path):
    return find_shards(path).names


def test_members_of_one_name_are_one_sample(tmp_path, png):
    members = [
        ("a/0.png", png), ("a/0.cls", b"10"), ("a/0.mask.png", png), ("a/0.txt", b"a dog"),
        ("a/1.json", b'{"label": 9, "url": "x"}'), ("a/1.png", png),
        ("a/2.cls", b"2\n"), ("a/.hidden.png", png), ("a/3.png", png), ("a/3.cls", b"10"),
    ]  # fmt: skip
    found = index_images(write_tar(tmp_path / "train.tar", members))
    assert found.listing.names == [f"train.tar!a/{i}.png" for i in (0, 1, 3)]
    assert found.listing.classes == ["9", "10"]
    assert found.labels.tolist() == [1, 0, 1]
    assert found.sizes.tolist() == [[5, 7]] * 3
    assert found.files.content(1).tobytes() == png
    assert found.listing.describe_ignored().endswith("train.tar are ignored (1 .png, 1 .txt)")
    assert kinds_found(tmp_path / "train.tar") == ("images",)


def test_without_classes_the_folders_inside_are_classes(tmp_path, png):
    path = write_tar(tmp_path / "a.tar", [("x/cat/1.v2.png", png), ("x/cat/1.v3.png", png), ("x/dog/1.png", png)])
    found = index_images(path)
    assert found.listing.names == [f"a.tar!x/{name}.png" for name in ("cat/1.v2", "cat/1.v3", "dog/1")]
    assert found.listing.classes == ["cat", "dog"]
    write_tar(path, [("all/1.png", png), ("all/2.png", png)])
    assert index_images(path).labels is None


def test_images_without_a_class_among_others_are_counted_and_named(tmp_path, png):
    members = [(f"{i}.{end}", content) for i in range(3) for end, content in (("png", png), ("cls", b"%d" % i))]
    path = write_tar(tmp_path / "a" / "train.tar", [*members, ("3.png", png), ("4.png", png)])
    write_tar(tmp_path / "a" / "test.tar", members)
    for _ in range(2):  # read, then from the cache
        with pytest.raises(ValueError, match=r"needs labels; 2 of 5 images have no class, such as train.tar!3.png"):
            labelled_indices(path, path, EvaluationView(), threads=1)
    with pytest.raises(ValueError, match=r"a class: 2 of 8 images have no class, such as train.tar!3.png; expected"):
        open_set("mine", tmp_path / "a")
    (tmp_path / "list.txt").write_text("0\n")
    with pytest.raises(ValueError, match=r"train.tar has no classes \(2 of 5 images have no class, .*, so \S+list.txt"):
        subset(index_images(path), classes=tmp_path / "list.txt")


def test_only_changed_shards_are_read_again(tmp_path, png, monkeypatch):
    for i in range(3):
        write_tar(tmp_path / "data" / f"{i}.tar", [(f"{i}{k}.png", png) for k in range(2)])
    first = index_images(tmp_path / "data")
    read, original = [], shards.scan_file
    monkeypatch.setattr(shards, "scan_file", lambda root, name, stamp: read.append(name) or original(root, name, stamp))
    again = index_images(tmp_path / "data")
    assert (read, again.fingerprint) == ([], first.fingerprint)
    assert list(again.listing.names) == list(first.listing.names)
    write_tar(tmp_path / "data" / "1.tar", [("new.png", png)])
    (tmp_path / "data" / "0.tar").unlink()
    changed = index_images(tmp_path / "data")
    assert read == ["1.tar"]
    assert changed.listing.names == ["1.tar!new.png", "2.tar!20.png", "2.tar!21.png"]
    assert changed.sizes.tolist() == [[5, 7]] * 3


def test_bad_members_and_cut_shards_are_named(tmp_path, png):
    """A cut shard gives the members that are whole; the one that is cut off, and the shard, are bad."""
    path = write_tar(tmp_path / "data" / "a.tar", [(f"{i}.png", png) for i in range(4)] + [("page.jpg", b"<html>")])
    whole = index_images(path)
    assert whole.bad == {4: "not an image"}
    cut = int(whole.listing.packed.offset[3]) + 20
    path.write_bytes(path.read_bytes()[:cut])
    write_tar(tmp_path / "data" / "b.tar", [("0.png", png), ("empty.png", b"")])
    (tmp_path / "data" / "c.tar").write_bytes(b"no tar file at all" * 40)
    for _ in range(2):  # read, then from the cache
        found = index_images(tmp_path / "data")
        assert found.listing.names == [*(f"a.tar!{i}.png" for i in range(4)), "b.tar!0.png", "b.tar!empty.png"]
        root = tmp_path / "data"
        assert found.bad_files() == {
            f"{root}/a.tar": "truncated; its last samples are missing",
            f"{root}/c.tar": "truncated or damaged",
            f"{root}/a.tar!3.png": "truncated or damaged",
            f"{root}/b.tar!empty.png": "empty",
        }
    with pytest.raises(ValueError, match=r"(?s)a.tar: truncated; its last.*never skip images"):
        found.require_readable()


def test_patterns_name_shards_and_those_that_are_missing(tmp_path, png):
    for i in range(8, 12):
        write_tar(tmp_path / f"train-{i:03d}.tar", [("0.png", png)])
    write_tar(tmp_path / "val-000.tar", [("0.png", png)])
    assert names_of(tmp_path / "train-{009..010}.tar") == ["train-009.tar", "train-010.tar"]
    assert names_of(tmp_path / "t*-01?.tar") == ["train-010.tar", "train-011.tar"]
    assert names_of(tmp_path / "{val,train}-0[01]0.tar") == ["val-000.tar", "train-010.tar"]
    found = index_images(tmp_path / "train-{010..012}.tar")
    assert found.bad_files() == {f"{tmp_path}/train-012.tar": "missing"}
    with pytest.raises(FileNotFoundError):
        index_images(tmp_path / "nothing-*.tar")


@pytest.mark.parametrize(
    ("files", "train", "others"),
    [
        (["train-0.tar", "val-0.tar"], ["train-0.tar"], ["val-0.tar"]),
        (["d/train/0.tar", "d/test/0.tar", "d/test/1.tar"], ["d/train/0.tar"], ["d/test/*.tar"]),
        (["0.tar", "1.tar", "test.tar"], ["0.tar", "1.tar"], ["test.tar"]),
        (["retrain.tar", "b.tar"], ["b.tar", "retrain.tar"], []),
        (["extra-0.tar", "extra-1.tar", "train-0.tar", "x.tar"], ["train-0.tar"], ["extra-*.tar", "x.tar"]),
        (["test-0.tar", "train-0.tar", "unsupervised-0.tar"], ["train-0.tar"], ["test-0.tar", "unsupervised-0.tar"]),
    ],
)
def test_a_folder_of_splits_gives_that_for_training(tmp_path, files, train, others):
    for name in files:
        write_tar(tmp_path / name, [])
    found = find_shards(tmp_path)
    assert found.names == train
    assert found.others == tuple(f"{tmp_path}/{name}" for name in others)


def test_images_beside_no_shards_are_not_asked_for_their_status(tmp_path, monkeypatch):
    """A minute of ImageNet's."""
    for i in range(12):
        write_png(tmp_path / "ab"[i % 2] / f"{i}.png", SMALL)
    (tmp_path / "a" / "list.txt").write_text("0.png\n")
    (tmp_path / "turn").symlink_to("turn")
    asked, original = [], os.stat
    monkeypatch.setattr(os, "stat", lambda path, **kwargs: asked.append(os.fspath(path)) or original(path, **kwargs))
    assert find_shards(tmp_path) is find_shards(tmp_path / "a" / "list.txt") is None
    assert asked
    assert not [path for path in asked if path.endswith(".png")]


def test_what_cannot_be_told_apart_is_refused(tmp_path, png):
    write_tar(tmp_path / "a" / "val.tar", [])
    write_tar(tmp_path / "a" / "test-1.tar", [])
    with pytest.raises(ValueError, match=r"a holds several splits; expected one of \S+test-1.tar, \S+val.tar"):
        find_shards(tmp_path / "a")
    (tmp_path / "b.tar.gz").write_bytes(b"")
    with pytest.raises(ValueError, match=r"b.tar.gz is compressed, .*: unpack it once"):
        find_shards(tmp_path / "b.tar.gz")
    write_tar(tmp_path / "c" / "1.tar", [])
    with pytest.raises(ValueError, match=r"c: no images found in 1.tar"):
        index_images(tmp_path / "c")
    write_tar(tmp_path / "c" / "2.tar", [])
    (tmp_path / "c" / "1.parquet").write_bytes(b"PAR1")
    message = (
        f"c holds both tar files and Parquet tables; expected one kind: name a pattern, such as '{tmp_path}/c/*.tar'"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        find_shards(tmp_path / "c")
    assert names_of(tmp_path / "c" / "*.tar") == ["1.tar", "2.tar"]
    write_png(tmp_path / "d" / "1.png", SMALL)
    write_tar(tmp_path / "d" / "1.tar", [("1.png", png)])
    assert index_images(tmp_path / "d").listing.names == ["1.png"]  # a folder of images, beside which a tar file lies


def test_shards_may_lose_a_tenth_of_the_images(tmp_path, png):
    for s in range(10):
        write_tar(tmp_path / f"{s}.tar", [(f"{s}{i}.png", png) for i in range(5)])
    index_images(tmp_path / "{0..9}.tar").listing.require_few_lost()
    index_images(tmp_path / "{0..10}.tar").listing.require_few_lost()  # one of eleven is missing
    cut = tmp_path / "3.tar"
    cut.write_bytes(cut.read_bytes()[:1536])  # one image and part of the next one: four of 55 are lost, and five
    found = index_images(tmp_path / "{0..10}.tar").listing
    with pytest.raises(RuntimeError, match=r"more than 10% of the images are lost with their shards: 2 of 11 files"):
        found.require_few_lost()
    index_images(tmp_path / "{0..9}.tar").listing.require_few_lost()


@pytest.fixture
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)


def ppm(image: np.ndarray) -> bytes:
    side = len(image)
    return f"P6\n{side} {side}\n255\n".encode() + image.tobytes()


def with_labels(labels: list[bytes], images: np.ndarray) -> bytes:
    return b"".join(label + planar(image[None]) for label, image in zip(labels, images, strict=True))


def test_cifar10_and_cifar100_binaries(tmp_path, pixels):
    ten = tmp_path / "cifar-10-batches-bin"
    ten.mkdir()
    for i in (1, 2):
        (ten / f"data_batch_{i}.bin").write_bytes(with_labels([b"\x01", b"\0"], pixels[2 * i - 2 : 2 * i]))
    (ten / "test_batch.bin").write_bytes(with_labels([b"\x01"], pixels[4:5]) + b"cut")
    (ten / "batches.meta.txt").write_text("airplane\nbird\n\n")
    found = index_images(tmp_path)  # as torchvision's root folder, which holds the folder
    assert found.listing.names[1:3] == [f"cifar-10-batches-bin/data_batch_{i}" for i in ("1.bin!1", "2.bin!0")]
    assert (found.labels.tolist(), found.listing.classes) == ([1, 0, 1, 0], ["airplane", "bird"])
    assert [found.files.content(i).tobytes() for i in range(4)] == [ppm(image) for image in pixels[:4]]
    assert found.sizes.tolist() == [[32, 32]] * 4
    assert found.notes("black") == [
        f"{tmp_path} has further splits, which are left out: {ten}/test_batch.bin",
    ]
    test = index_images(ten / "test_batch.bin")
    assert test.bad_files() == {f"{ten}/test_batch.bin": "truncated; its last samples are missing"}
    hundred = tmp_path / "cifar-100-binary"
    hundred.mkdir()
    for name in ("train.bin", "test.bin"):
        (hundred / name).write_bytes(with_labels([b"\x03\x01", b"\x03\0"], pixels[4:]))
    (hundred / "fine_label_names.txt").write_text("apple\nfish\n")
    found = index_images(hundred)
    assert (found.labels.tolist(), found.listing.classes) == ([1, 0], ["apple", "fish"])
    assert found.files.content(1).tobytes() == ppm(pixels[5])


def python2_pickle(images: np.ndarray) -> bytes:
    """Return a batch as Python 2 and its numpy wrote it, in protocol 2."""

    def text(value: bytes) -> bytes:
        return b"T" + len(value).to_bytes(4, "little") + value

    array = (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\0\x85" + text(b"b") + b"\x87R(K\x01K\x02M\0\x0c\x86"
        b"cnumpy\ndtype\n" + text(b"u1") + b"K\0K\x01\x87R(K\x03" + text(b"|")
        + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb\x89"
        + text(planar(images)) + b"tb"
    )  # fmt: skip
    return b"\x80\x02}(" + text(b"data") + array + text(b"labels") + b"]K\x01aK\0a" + b"u."


def test_cifar_pickles_are_read_without_running_them(tmp_path, pixels):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name, images in (("data_batch_1", pixels[:2]), ("test_batch", pixels[2:4])):
        (folder / name).write_bytes(python2_pickle(images))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": ["airplane", "bird"]}))
    found = index_images(folder)
    assert found.listing.names == ["data_batch_1!0", "data_batch_1!1"]
    assert [found.listing.classes[label] for label in found.labels] == ["bird", "airplane"]
    assert [found.files.content(i).tobytes() for i in range(2)] == [ppm(image) for image in pixels[:2]]
    assert found.listing.others == (f"{folder}/test_batch",)


class Evil:
    def __reduce__(self):
        return open, ("evil", "w")


def test_a_pickle_that_names_code_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "batch").write_bytes(pickle.dumps({"data": Evil()}))
    with pytest.raises(ValueError, match=r"is not part of CIFAR; the binary version, cifar-10-binary.tar.gz"):
        read_cifar_pickle(tmp_path / "batch")
    assert not (tmp_path / "evil").exists()


def test_stl10(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (3, 96, 96, 3), dtype=np.uint8)
    stored = images.transpose(0, 3, 2, 1).tobytes()  # channel by channel, column by column
    for name in ("unlabeled_X.bin", "train_X.bin", "test_X.bin"):
        (tmp_path / name).write_bytes(stored)
    (tmp_path / "train_y.bin").write_bytes(b"\x02\x01\x02")
    (tmp_path / "class_names.txt").write_text("airplane\nbird\n")
    found = index_images(tmp_path)
    assert found.listing.names[0] == "unlabeled_X.bin!0"
    assert found.labels is None
    assert found.files.content(2).tobytes() == ppm(images[2])
    both = index_images(tmp_path / "{train,unlabeled}_X.bin")
    assert len(both) == 6
    train = index_images(tmp_path / "train_X.bin")
    assert (train.labels.tolist(), train.listing.classes) == ([1, 0, 1], ["airplane", "bird"])
