"""Each data set is read in the layout in which it is downloaded."""

import json
import shutil

import numpy as np
import pytest
from scipy.io import savemat

from helpers import image_sets
from sce_fast.evaluate.sets import SETS, find_sets, open_set
from sce_fast.evaluate.sets.folders import caltech101, class_folders


def listed(images):
    """Return part → name → class of a set."""
    found = {}
    for name, label, part in zip(images.names, images.labels, images.parts, strict=True):
        found.setdefault(part, {})[name] = images.classes[label] if images.labels.ndim == 1 else label.tolist()
    return found


EXPECTED = {
    "food101": {
        "train": {"images/pie/1.jpg": "pie", "images/soup/2.jpg": "soup", "images/pie/3.jpg": "pie"},
        "test": {"images/soup/4.jpg": "soup", "images/pie/5.jpg": "pie"},
    },
    "sun397": {
        "train": {"a/abbey/sun_1.jpg": "/a/abbey", "b/bar/indoor/sun_2.jpg": "/b/bar/indoor"},
        "test": {"a/abbey/sun_3.jpg": "/a/abbey"},
    },
    "cars": {
        "train": {"cars_train/00001.jpg": "10", "cars_train/00002.jpg": "9", "cars_train/00003.jpg": "10"},
        "test": {"cars_test/00001.jpg": "10", "cars_test/00002.jpg": "9"},
    },
    "aircraft": {
        "train": {"images/001.jpg": "707-320", "images/002.jpg": "DC-10 30"},
        "validation": {"images/003.jpg": "DC-10 30"},
        "test": {"images/004.jpg": "707-320"},
    },
    "voc2007": {
        "train": {"JPEGImages/000001.jpg": [1, 1], "JPEGImages/000002.jpg": [-1, 1]},
        "validation": {"JPEGImages/000003.jpg": [0, 1]},
        "test": {"JPEGImages/000004.jpg": [1, -1], "JPEGImages/000005.jpg": [-1, 1]},
    },
    "dtd": {
        "train": {"images/woven/woven_1.jpg": "woven"},
        "validation": {"images/banded/banded_1.jpg": "banded"},
        "test": {"images/woven/woven_2.jpg": "woven"},
    },
    "pets": {
        "train": {"images/Maine_Coon_1.jpg": "Maine_Coon", "images/beagle_2.jpg": "beagle"},
        "test": {"images/Maine_Coon_3.jpg": "Maine_Coon"},
    },
    "flowers": {
        "train": {"jpg/image_00001.jpg": "11", "jpg/image_00002.jpg": "2"},
        "validation": {"jpg/image_00004.jpg": "2"},
        "test": {"jpg/image_00003.jpg": "11", "jpg/image_00005.jpg": "11", "jpg/image_00006.jpg": "2"},
    },
    "cifar10": {
        part: {f"{part}/{name}/{part}{i}.png": name for name in ("bird", "ship") for i in range(3)}
        for part in ("train", "test")
    },
}


def write_set(name, root):
    writer = image_sets.class_folders if name.startswith("cifar") else getattr(image_sets, name)
    return writer(root)


@pytest.mark.parametrize("name", EXPECTED)
def test_a_set_is_read_as_it_is_downloaded(tmp_path, name):
    images, _ = open_set(name, write_set(name, tmp_path / "set"))
    assert listed(images) == EXPECTED[name]
    assert all((images.root / file).exists() for file in images.names)
    assert images.counts() == {part: len(files) for part, files in EXPECTED[name].items()}


def test_class_numbers_follow_the_numbers_of_tables_and_not_their_digits(tmp_path):
    assert open_set("cars", image_sets.cars(tmp_path / "cars"))[0].classes == ["9", "10"]
    assert open_set("flowers", image_sets.flowers(tmp_path / "flowers"))[0].classes == ["2", "11"]


def test_the_one_table_of_the_cars(tmp_path):
    images, _ = open_set("cars", image_sets.cars_in_one_table(tmp_path / "cars"))
    assert listed(images) == {
        "train": {"car_ims/000000.jpg": "2", "car_ims/000001.jpg": "1"},
        "test": {"car_ims/000002.jpg": "2", "car_ims/000003.jpg": "1"},
    }


def test_food_lists_may_be_json_and_partitions_of_sun_may_lie_beside_the_images(tmp_path):
    root = image_sets.food101(tmp_path / "food-101")
    for part in ("train", "test"):
        by_class = {}
        for line in (root / "meta" / f"{part}.txt").read_text().split():
            by_class.setdefault(line.partition("/")[0], []).append(line)
        (root / "meta" / f"{part}.json").write_text(json.dumps(by_class))
        (root / "meta" / f"{part}.txt").unlink()
    assert listed(open_set("food101", tmp_path)[0]) == EXPECTED["food101"]  # one folder further up
    sun = image_sets.sun397(tmp_path / "sun")
    for path in (sun / "Partitions").iterdir():
        path.rename(sun / "SUN397" / path.name)
    assert listed(open_set("sun397", sun)[0]) == listed(open_set("sun397", sun / "SUN397")[0]) == EXPECTED["sun397"]


def test_thirty_random_images_of_each_class_of_caltech_train(tmp_path):
    root = image_sets.caltech101(tmp_path)
    images, metric = open_set("caltech101", root)
    assert metric == "mean per class"
    assert images.counts() == {"train": 60, "test": 6}
    for c in (0, 1):
        assert (images.labels[images.rows("train")] == c).sum() == 30
    assert open_set("caltech101", root / "101_ObjectCategories")[0].parts == images.parts
    assert caltech101(root, seed=1).parts != images.parts


def test_anyones_class_folders_may_have_a_validation_part(tmp_path):
    image_sets.class_folders(tmp_path)
    shutil.copytree(tmp_path / "test", tmp_path / "val")
    images, metric = open_set("mine", tmp_path)
    assert (metric, images.counts()) == ("accuracy", {"train": 6, "validation": 6, "test": 6})
    image_sets.placeholder(tmp_path / "test" / "plane" / "1.png")
    with pytest.raises(ValueError, match=r"test has classes that \S*train lacks: plane"):
        class_folders(tmp_path)
    shutil.rmtree(tmp_path / "test")
    with pytest.raises(FileNotFoundError, match=r"has no test \(class folders to test on\)"):
        class_folders(tmp_path)
    image_sets.placeholder(tmp_path / "test" / "1.png")
    with pytest.raises(ValueError, match="test has images, but no class folders"):
        class_folders(tmp_path)


@pytest.mark.parametrize("name", EXPECTED)
def test_missing_images_are_counted_and_named(tmp_path, name):
    root = write_set(name, tmp_path / "set")
    images, _ = open_set(name, root)
    first, last = images.root / images.names[0], images.root / images.names[-1]
    if name.startswith("cifar"):  # folders list what they have
        last.write_bytes(b"")
        expected = rf"1 of 12 files cannot be used \(1 empty\):\n  {last}: empty"
    else:
        first.unlink()
        last.write_bytes(b"")
        total = len(images.names)
        expected = rf"2 of {total} files cannot be used \(1 missing, 1 empty\):\n  {first}: missing\n  {last}: empty"
    with pytest.raises(ValueError, match=expected):
        open_set(name, root)


@pytest.mark.parametrize(
    ("name", "lost", "message"),
    [
        ("food101", "meta", "has no meta or food-101/meta"),
        ("food101", "meta/test.txt", "has no test.txt or test.json"),
        ("sun397", "Partitions/Testing_01.txt", "Testing_01.txt"),
        ("sun397", "SUN397", "has no a or SUN397/a"),
        ("cars", "devkit", "has no cars_annos.mat or devkit/cars_train_annos.mat"),
        ("cars", "cars_test_annos_withlabels.mat", "cars_test_annos_withlabels.mat or devkit/"),
        ("aircraft", "data/images_variant_val.txt", "images_variant_val.txt does not exist"),
        ("voc2007", "VOCdevkit/VOC2007/ImageSets/Main/dog_test.txt", "dog_test.txt does not exist"),
        ("voc2007", "VOCdevkit", "has no ImageSets or VOC2007/ImageSets"),
        ("dtd", "labels/val1.txt", "val1.txt does not exist"),
        ("pets", "annotations/test.txt", "test.txt does not exist"),
        ("caltech101", "101_ObjectCategories", "has no 101_ObjectCategories or caltech101/"),
        ("flowers", "imagelabels.mat", "has no imagelabels.mat"),
        ("cifar10", "train", r"has no train \(class folders"),
    ],
)
def test_a_missing_list_is_named(tmp_path, name, lost, message):
    root = write_set(name, tmp_path / "set")
    path = root / lost
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(FileNotFoundError, match=message):
        open_set(name, root)


def test_what_is_malformed_is_named(tmp_path):
    root = image_sets.voc2007(tmp_path / "voc")
    main = root / "VOCdevkit/VOC2007/ImageSets/Main"
    for content, message in (
        ("000001 7\n", "line '000001 7': expected an image and 1, 0 or -1"),
        ("000009 1\n", "othe"),
    ):
        (main / "dog_train.txt").write_text(content)
        with pytest.raises(ValueError, match=message):
            open_set("voc2007", root)
    for path in main.glob("*_train.txt"):
        path.unlink()
    with pytest.raises(FileNotFoundError, match=r"has no list CLASS_train\.txt"):
        open_set("voc2007", root)

    root = image_sets.flowers(tmp_path / "flowers")
    savemat(root / "setid.mat", {"trnid": [[1, 2]], "valid": [[4]], "tstid": [[9]]})
    with pytest.raises(ValueError, match="image 9: expected 1 to 6"):
        open_set("flowers", root)
    savemat(root / "setid.mat", {"trnid": [[1, 2]]})
    with pytest.raises(ValueError, match=r"setid\.mat has no array valid"):
        open_set("flowers", root)
    (root / "setid.mat").write_text("text, and no table")
    with pytest.raises(ValueError, match=r"setid\.mat is not a MATLAB file"):
        open_set("flowers", root)

    root = image_sets.dtd(tmp_path / "dtd")
    for path in (root / "labels").iterdir():
        path.write_text("# nothing\n")
    with pytest.raises(ValueError, match="its lists name no files"):
        open_set("dtd", root)


def test_sets_are_found_below_a_folder_by_their_usual_names(tmp_path):
    image_sets.pets(tmp_path / "oxford-iiit-pet")
    image_sets.voc2007(tmp_path)  # VOCdevkit
    assert find_sets(tmp_path) == {"voc2007": tmp_path / "VOCdevkit", "pets": tmp_path / "oxford-iiit-pet"}
    for name, folder in find_sets(tmp_path).items():
        assert listed(open_set(name, folder)[0]) == EXPECTED[name]
    with pytest.raises(FileNotFoundError, match="has none of the data sets: expected folders such as food101, cifar10"):
        find_sets(tmp_path / "VOCdevkit" / "VOC2007")
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder"):
        find_sets(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"dtd=\S*nowhere: no such folder"):
        open_set("dtd", tmp_path / "nowhere")


def test_the_table_has_the_metrics_of_the_published_code():
    by_metric = {}
    for name, benchmark in SETS.items():
        by_metric.setdefault(benchmark.metric, []).append(name)
    assert by_metric == {
        "accuracy": ["food101", "cifar10", "cifar100", "sun397", "cars", "dtd"],
        "mean per class": ["aircraft", "pets", "caltech101", "flowers"],
        "11-point mAP": ["voc2007"],
    }
    assert len(SETS) == 11
    assert np.array_equal(sorted(set(SETS)), sorted(SETS))
