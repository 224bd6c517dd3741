"""Tiny copies of the transfer data sets, in the layouts in which they are downloaded."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat

from helpers.shards import planar

Write = Callable[[Path], object]


def placeholder(path: Path) -> None:
    """Write a file of one byte."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x")


def lines_file(path: Path, lines: Iterable[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))


def structures(columns: Mapping[str, Sequence[object]]) -> np.ndarray:
    """Return a row of MATLAB structures."""
    rows = np.zeros(len(next(iter(columns.values()))), dtype=[(name, object) for name in columns])
    for name, values in columns.items():
        rows[name] = values
    return rows


def food101(root: Path, write: Write = placeholder) -> Path:
    entries = {"train": ["pie/1", "soup/2", "pie/3"], "test": ["soup/4", "pie/5"]}
    for part, names in entries.items():
        lines_file(root / "meta" / f"{part}.txt", names)
        for name in names:
            write(root / "images" / f"{name}.jpg")
    return root


def sun397(root: Path, write: Write = placeholder) -> Path:
    entries = {"Training_01": ["/a/abbey/sun_1.jpg", "/b/bar/indoor/sun_2.jpg"], "Testing_01": ["/a/abbey/sun_3.jpg"]}
    for name, files in entries.items():
        lines_file(root / "Partitions" / f"{name}.txt", files)
        for file in files:
            write(root / "SUN397" / file.removeprefix("/"))
    return root


def cars(root: Path, write: Write = placeholder) -> Path:
    (root / "devkit").mkdir(parents=True)
    tables = {"train": ["00001.jpg", "00002.jpg", "00003.jpg"], "test": ["00001.jpg", "00002.jpg"]}
    paths = {"train": root / "devkit/cars_train_annos.mat", "test": root / "cars_test_annos_withlabels.mat"}
    for part, names in tables.items():
        classes = [10, 9, 10][: len(names)]
        savemat(paths[part], {"annotations": structures({"bbox_x1": names, "class": classes, "fname": names})})
        for name in names:
            write(root / f"cars_{part}" / name)
    return root


def cars_in_one_table(root: Path, write: Write = placeholder) -> Path:
    root.mkdir(parents=True)
    names = [f"car_ims/{i:06d}.jpg" for i in range(4)]
    columns: dict[str, Sequence[object]] = {"relative_im_path": names, "class": [2, 1, 2, 1], "test": [0, 0, 1, 1]}
    savemat(root / "cars_annos.mat", {"annotations": structures(columns)})
    for name in names:
        write(root / name)
    return root


def aircraft(root: Path, write: Write = placeholder) -> Path:
    tables = {"train": ["001 707-320", "002 DC-10 30"], "val": ["003 DC-10 30"], "test": ["004 707-320"]}
    for part, lines in tables.items():
        lines_file(root / "data" / f"images_variant_{part}.txt", lines)
        for line in lines:
            write(root / "data" / "images" / f"{line[:3]}.jpg")
    return root


def voc2007(root: Path, write: Write = placeholder) -> Path:
    base = root / "VOCdevkit" / "VOC2007"
    tables = {
        "train": {"cat": {"000001": 1, "000002": -1}, "dog": {"000001": 1, "000002": 1}},
        "val": {"cat": {"000003": 0}, "dog": {"000003": 1}},
        "test": {"cat": {"000004": 1, "000005": -1}, "dog": {"000004": -1, "000005": 1}},
    }
    for part, by_class in tables.items():
        for name, values in by_class.items():
            lines_file(
                base / "ImageSets/Main" / f"{name}_{part}.txt", [f"{image} {v:2d}" for image, v in values.items()]
            )
            for image in values:
                write(base / "JPEGImages" / f"{image}.jpg")
        lines_file(base / "ImageSets/Main" / f"{part}.txt", tables[part]["cat"])
    return root


def dtd(root: Path, write: Write = placeholder) -> Path:
    for part, name in (("train", "woven/woven_1.jpg"), ("val", "banded/banded_1.jpg"), ("test", "woven/woven_2.jpg")):
        lines_file(root / "labels" / f"{part}1.txt", [name])
        write(root / "images" / name)
    return root


def pets(root: Path, write: Write = placeholder) -> Path:
    header = "#Image CLASS-ID SPECIES BREED ID"
    for part, names in (("trainval", ["Maine_Coon_1", "beagle_2"]), ("test", ["Maine_Coon_3"])):
        lines_file(root / "annotations" / f"{part}.txt", [header, *(f"{name} 1 1 1" for name in names)])
        for name in names:
            write(root / "images" / f"{name}.jpg")
    return root


def caltech101(root: Path, write: Write = placeholder, images: int = 33) -> Path:
    for name in ("BACKGROUND_Google", "ant"):
        for i in range(images):
            write(root / "101_ObjectCategories" / name / f"image_{i:04d}.jpg")
    return root


def flowers(root: Path, write: Write = placeholder) -> Path:
    root.mkdir(parents=True)
    savemat(root / "imagelabels.mat", {"labels": [[11, 2, 11, 2, 11, 2]]})
    savemat(root / "setid.mat", {"trnid": [[1, 2]], "valid": [[4]], "tstid": [[3, 5, 6]]})
    for number in range(1, 7):
        write(root / "jpg" / f"image_{number:05d}.jpg")
    return root


def class_folders(root: Path, write: Write = placeholder, images: int = 3) -> Path:
    for part in ("train", "test"):
        for name in ("bird", "ship"):
            for i in range(images):
                write(root / part / name / f"{part}{i}.png")
    return root


def coloured(path: Path) -> None:
    """Write an image of noise in the colour of its class: that of its folder, or of the last digit of its name."""
    name = path.parent.name if path.parent.name not in ("images", "JPEGImages") else path.stem[-1]
    random = np.random.default_rng(list(os.fsencode(path.name)))
    pixels = random.integers(60, size=(40, 44, 3), dtype=np.uint8)
    pixels[..., sum(name.encode()) % 3] += 150
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def noise(labels: Sequence[int], side: int) -> np.ndarray:
    """Return images (n, side, side, 3) of noise in the colours of their classes 0, 1 and 2."""
    pixels = np.random.default_rng(len(labels)).integers(60, size=(len(labels), side, side, 3), dtype=np.uint8)
    for image, label in zip(pixels, labels, strict=True):
        image[..., label] += 150
    return pixels


def cifar10_binaries(root: Path, images: int = 4) -> Path:
    """Write CIFAR-10's binary version with two classes: batches of some images to train on, and one to test."""
    folder = root / "cifar-10-batches-bin"
    folder.mkdir(parents=True)
    (folder / "batches.meta.txt").write_text("airplane\nautomobile\n\n")
    labels = [i % 2 for i in range(images)]
    for name in ("data_batch_1.bin", "data_batch_2.bin", "test_batch.bin"):
        rows = zip(labels, noise(labels, 32), strict=True)
        (folder / name).write_bytes(b"".join(bytes([label]) + planar(image[None]) for label, image in rows))
    return folder


def stl10_binaries(root: Path, images: int = 4) -> Path:
    """Write STL-10 with two classes."""
    folder = root / "stl10_binary"
    folder.mkdir(parents=True)
    (folder / "class_names.txt").write_text("airplane\nbird\n")
    labels = [i % 2 for i in range(images)]
    for name in ("unlabeled", "train", "test"):
        stored = noise(labels, 96).transpose(0, 3, 2, 1)  # channel by channel, column by column
        (folder / f"{name}_X.bin").write_bytes(stored.tobytes())
        if name != "unlabeled":
            (folder / f"{name}_y.bin").write_bytes(bytes(label + 1 for label in labels))
    return folder
