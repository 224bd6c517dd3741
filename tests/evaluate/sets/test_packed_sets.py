"""Data sets of transfer in packed files: CIFAR and STL-10 as downloaded, tar shards and tables."""

import pytest

from helpers import image_sets
from helpers.backbones import write_backbone
from helpers.shards import write_table, write_tar
from sce_fast.data.image.augment import EvaluationView
from sce_fast.evaluate.features import pixel_features
from sce_fast.evaluate.sets import find_sets, open_set
from sce_fast.tools.transfer import transfer

VIEW = EvaluationView(resize=32, crop=32)


def test_cifar10_is_read_as_downloaded(tmp_path):
    folder = image_sets.cifar10_binaries(tmp_path / "cifar10")
    images, metric = open_set("cifar10", find_sets(tmp_path)["cifar10"])  # the folder above
    assert (metric, images.classes) == ("accuracy", ["airplane", "automobile"])
    assert images.counts() == {"train": 8, "test": 4}
    assert images.labels.tolist() == [0, 1] * 6
    assert images.names[8] == "cifar-10-batches-bin/test_batch.bin!0"
    index = images.index(VIEW, tmp_path / "lists" / "cifar10.txt")
    assert index.labels is None
    features = pixel_features(index, VIEW).view(12, 3, -1).mean(2)
    assert features.argmax(1).tolist() == images.labels.tolist()  # each image has its own label
    assert find_sets(folder.parent) == {"cifar10": folder}  # by the name of the archive's folder
    assert open_set("cifar10", folder)[0].names[8] == "test_batch.bin!0"


def test_packed_images_may_be_left_out(tmp_path):
    folder = image_sets.cifar10_binaries(tmp_path)
    left_out = {"data_batch_2.bin!0", f"{folder}/test_batch.bin!3"}
    images, _ = open_set("cifar10", folder, leave_out=left_out)
    assert (set(images.left_out), images.counts()) == (
        {"data_batch_2.bin!0", "test_batch.bin!3"},
        {"train": 7, "test": 3},
    )
    features = pixel_features(images.index(VIEW, tmp_path / "list.txt"), VIEW).view(10, 3, -1).mean(2)
    assert features.argmax(1).tolist() == images.labels.tolist() == [0, 1, 0, 1, 1, 0, 1, 0, 1, 0]


def test_stl10_and_other_packed_splits(tmp_path, photo_folder):
    images, _ = open_set("stl10", image_sets.stl10_binaries(tmp_path))
    assert images.counts() == {"train": 4, "test": 4}  # the images without labels are left out
    assert images.labels.tolist() == [0, 1] * 4
    photos = [(f"{i}.jpg", path.read_bytes()) for i, path in enumerate(sorted(photo_folder.rglob("*.jpg"))[:8])]
    for part, some in (("train", photos[:4]), ("val", photos[4:6]), ("test", photos[6:])):
        named = [(f"{'ab'[i % 2]}/{name}", content) for i, (name, content) in enumerate(some)]
        write_tar(tmp_path / "shards" / f"{part}-000.tar", named)
    images, metric = open_set("mine", tmp_path / "shards")
    assert (metric, images.counts()) == ("accuracy", {"train": 4, "validation": 2, "test": 2})
    assert images.classes == ["a", "b"]
    images.require_files()


def test_tables_are_sets_too(tmp_path, photo_folder):
    pytest.importorskip("pyarrow")
    photos = [path.read_bytes() for path in sorted(photo_folder.rglob("*.jpg"))[:4]]
    for part in ("train", "test"):
        write_table(tmp_path / f"{part}-00000-of-00001.parquet", photos, [0, 1, 0, 1])
    images, _ = open_set("mine", tmp_path)
    assert (images.counts(), images.classes) == ({"train": 4, "test": 4}, ["zebra", "ape"])


def test_what_packed_sets_lack_is_named(tmp_path):
    folder = image_sets.cifar10_binaries(tmp_path)
    (folder / "test_batch.bin").write_bytes((folder / "test_batch.bin").read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"1 truncated; its last samples are missing"):
        open_set("cifar10", folder)
    record = bytes([2]) + bytes(3072)
    (folder / "batches.meta.txt").write_text("airplane\nautomobile\nbird\n")
    (folder / "test_batch.bin").write_bytes(record)
    with pytest.raises(ValueError, match=r"has classes that its train split lacks: bird"):
        open_set("cifar10", folder)
    write_tar(tmp_path / "tars" / "train-0.tar", [("a/0.jpg", b"x"), ("b/1.jpg", b"x")])
    with pytest.raises(FileNotFoundError, match=r"has no files of the split test; splits found: train"):
        open_set("mine", tmp_path / "tars")
    write_tar(tmp_path / "tars" / "test-0.tar", [("0.jpg", b"x")])
    with pytest.raises(ValueError, match=r"has images without a class"):
        open_set("mine", tmp_path / "tars")


@pytest.mark.slow
def test_transfer_on_cifar10_as_downloaded(tmp_path):
    image_sets.cifar10_binaries(tmp_path / "cifar10", images=10)
    write_backbone(tmp_path / "network.safetensors")
    settings = {"weight_decays": (1e-3,), "device": "cpu", "out": tmp_path / "out"}
    (row,) = transfer(tmp_path / "network.safetensors", data=tmp_path, **settings).rows
    assert (row["data"], row["score"]) == ("cifar10", 1)
    assert (row["train"], row["validation"], row["test"]) == (16, 4, 10)
