"""evaluate transfer and evaluate svm on small data sets, as the commands run them."""

import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from helpers import image_sets
from helpers.backbones import write_backbone
from sce_fast.data.faults import BadFilesError
from sce_fast.evaluate import load_features, store
from sce_fast.evaluate.results import read_result
from sce_fast.evaluate.sets import open_set
from sce_fast.export import open_backbone
from sce_fast.tools import svm as svm_command
from sce_fast.tools import transfer as command
from sce_fast.tools.scan import scan
from sce_fast.tools.svm import svm
from sce_fast.tools.transfer import named_folders, transfer

SEARCH = {"weight_decays": (1e-3, 1.0), "device": "cpu"}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Return a folder with small data sets, whose classes are colours, and an untrained backbone."""
    root = tmp_path_factory.mktemp("data")
    image_sets.class_folders(root / "mine", image_sets.coloured, images=8)
    image_sets.aircraft(root / "aircraft", image_sets.coloured)
    image_sets.voc2007(root, image_sets.coloured)
    write_backbone(root / "network.safetensors")
    return root


@pytest.fixture
def extractions(monkeypatch):
    """Count the samples of each extraction."""
    counts, extract = [], store.extract_features

    def counting(backbone, index, *arguments, **settings):
        counts.append(len(index))
        return extract(backbone, index, *arguments, **settings)

    monkeypatch.setattr(store, "extract_features", counting)
    return counts


def mine(data):
    return (f"mine={data / 'mine'}",)


def test_colours_are_recovered_and_all_is_written(data, tmp_path, capsys):
    found = transfer(data / "network.safetensors", data=data, sets=mine(data), out=tmp_path / "out", **SEARCH)
    assert [row["data"] for row in found.rows] == ["aircraft", "voc2007", "mine"]
    aircraft, voc, own = found.rows
    assert (own["score"], own["top1"], own["mean_per_class"], own["metric"]) == (1, 1, 1, "accuracy")
    assert (own["train"], own["validation"], own["test"]) == (13, 3, 16)  # a random fifth of 16
    assert [decay for decay, _ in own["validation_scores"]] == [1e-3, 1.0]
    assert (aircraft["metric"], aircraft["train"], aircraft["validation"]) == ("mean per class", 2, 1)
    assert (voc["metric"], voc["classes"], voc["top1"]) == ("11-point mAP", ["cat", "dog"], None)
    assert found == read_result(tmp_path / "out")
    assert found.settings["view"]["interpolation"] == "bicubic"
    assert (found.settings["view"]["resize"], found.settings["view"]["crop"]) == (32, 32)
    printed = capsys.readouterr().out
    assert printed == f"{found.table()}\n\nIn {tmp_path / 'out'}: results.json, scores.png, table.txt, validation.png\n"
    mean = np.mean([row["score"] for row in found.rows])
    assert found.notes[0] == f"mean score of 3 data sets: {mean:.4f}"
    first_row = found.table().splitlines()[3]
    assert first_row.split() == ["aircraft", *["mean", "per", "class"], *["1.0000"] * 3, "0.0010", "no", "yes", *"211"]
    for picture in ("scores.png", "validation.png"):
        assert (tmp_path / "out" / picture).read_bytes().startswith(b"\x89PNG")


def test_finished_sets_and_kept_features_are_not_computed_again(data, tmp_path, extractions, monkeypatch):
    places = {"out": tmp_path / "out", "features": tmp_path / "features"}
    first = transfer(data / "network.safetensors", sets=mine(data), **places, **SEARCH)
    assert extractions == [32]
    with pytest.raises(ValueError, match="holds results already; pass --resume"):
        transfer(data / "network.safetensors", sets=mine(data), **places, **SEARCH)

    fitted, score = [], command.transfer_score
    monkeypatch.setattr(command, "transfer_score", lambda *a, **s: fitted.append(a[1]) or score(*a, **s))
    more = (*mine(data), f"aircraft={data / 'aircraft'}")
    found = transfer(data / "network.safetensors", sets=more, resume=True, **places, **SEARCH)
    assert extractions == [32, 4]
    assert fitted == ["mean per class"]  # of aircraft
    assert [row["data"] for row in found.rows] == ["aircraft", "mine"]
    assert found.rows[1] == first.rows[0]

    settings = {"weight_decays": (1.0,), "device": "cpu", "features": places["features"]}
    other = transfer(data / "network.safetensors", sets=more, out=tmp_path / "other", **settings)
    assert extractions == [32, 4]  # from the folder of features
    assert other.rows[1]["score"] == 1
    with pytest.raises(ValueError, match=r"holds results with other settings(.|\n)*weight_decays: \[0.001, 1.0\] then"):
        transfer(data / "network.safetensors", sets=more, out=tmp_path / "out", resume=True, **settings)


@pytest.mark.slow
def test_results_of_changed_images_are_not_resumed(data, tmp_path):
    root = shutil.copytree(data / "mine", tmp_path / "mine")
    network, sets = data / "network.safetensors", (f"mine={root}",)
    first = transfer(network, sets=sets, out=tmp_path / "transfer", **SEARCH).rows[0]
    svm(network, root, name="mine", shots=(), out=tmp_path / "svm", device="cpu")
    os.utime(root / "test" / "ship" / "test0.png", (1, 1))  # as in a copy
    assert transfer(network, sets=sets, out=tmp_path / "transfer", resume=True, **SEARCH).rows == [first]
    for i in range(8):  # the other colour, of another length
        (root / "test" / "bird" / f"test{i}.png").replace(root / "test" / "ship" / f"test{i}.png")
        shutil.copy(data / "mine" / "test" / "ship" / "test0.png", root / "test" / "bird" / f"test{i}.png")
    assert transfer(network, sets=sets, out=tmp_path / "transfer", resume=True, **SEARCH).rows[0]["score"] == 0
    with pytest.raises(ValueError, match=r"data.contents: '\w+' then, '\w+' now \(files have other lengths"):
        svm(network, root, name="mine", shots=(), out=tmp_path / "svm", device="cpu", resume=True)


@pytest.mark.slow
def test_kept_features_have_the_names_of_the_files_and_follow_them(data, tmp_path, extractions):
    root = shutil.copytree(data / "mine", tmp_path / "mine")
    places = {"out": tmp_path / "out", "features": tmp_path / "features", "sets": (f"mine={root}",)}
    transfer(data / "network.safetensors", **places, **SEARCH)
    (kept,) = (tmp_path / "features").glob("mine_*.safetensors")
    file = load_features(kept)
    assert file.features.shape == (32, 64)
    assert file.names[0] == "train/bird/train0.png"
    assert len(set(file.names)) == 32

    kept.write_bytes(kept.read_bytes()[:1000])  # truncated
    places["out"] = tmp_path / "again"
    transfer(data / "network.safetensors", **places, **SEARCH)
    assert extractions == [32, 32]

    image_sets.coloured(root / "train" / "ship" / "new.png")
    (root / "train" / "ship" / "new.png").replace(root / "train" / "bird" / "train0.png")  # another colour
    places["out"] = tmp_path / "changed"
    transfer(data / "network.safetensors", **places, **SEARCH)
    assert extractions == [32, 32, 32]


@pytest.mark.slow
def test_results_do_not_depend_on_the_batch_size(data, tmp_path):
    found = []
    for size in (3, 64):
        places = {"out": tmp_path / f"{size}", "features": tmp_path / f"features{size}", "batch_size": size}
        found.append(transfer(data / "network.safetensors", data=data, sets=mine(data), **places, **SEARCH).rows)
    assert found[0] == found[1]


@pytest.mark.slow
def test_without_a_folder_results_go_beside_the_network_and_features_are_shared(data, tmp_path, extractions):
    network = shutil.copy(data / "network.safetensors", tmp_path)
    transfer(network, sets=mine(data), resize=37, interpolation="bilinear", **SEARCH)  # the view of evaluate svm
    svm(network, data / "mine", name="mine", shots=(), device="cpu")
    transfer(network, sets=mine(data), **SEARCH)
    assert extractions == [32, 32]
    folder = tmp_path / "network_evaluations"
    assert {path.name for path in folder.iterdir()} == {"features", "svm", "transfer", "transfer-2"}


def test_svms_recover_colours_from_few_images(data, tmp_path, capsys):
    settings = {"name": "mine", "draws": 2, "out": tmp_path / "svm", "features": tmp_path / "features"}
    found = svm(data / "network.safetensors", data / "mine", shots=(1, 2), device="cpu", **settings)
    assert [(row["images_per_class"], row["mAP"], row["std"], row["draws"]) for row in found.rows] == [
        ("1", 1, 0, 2), ("2", 1, 0, 2), ("all", 1, 0, 1),
    ]  # fmt: skip
    assert found == read_result(tmp_path / "svm")
    assert (tmp_path / "svm" / "mAP.png").read_bytes().startswith(b"\x89PNG")
    assert "linear SVMs on frozen features of mine, 16 train and 16 test images, 2 classes;" in capsys.readouterr().out
    assert (found.settings["view"]["resize"], found.settings["view"]["interpolation"]) == (37, "bilinear")
    more = svm(data / "network.safetensors", data / "mine", shots=(4,), device="cpu", resume=True, **settings)
    assert [row["images_per_class"] for row in more.rows] == ["1", "2", "4", "all"]


@pytest.mark.slow
def test_svms_of_voc_learn_from_train_and_validation_images(data, tmp_path):
    found = svm(data / "network.safetensors", data / "VOCdevkit", shots=(1,), draws=1, device="cpu", out=tmp_path / "o")
    assert found.settings["data"]["classes"] == ["cat", "dog"]
    assert found.title.startswith("linear SVMs on frozen features of voc2007, 3 train and 2 test images")
    assert [row["images_per_class"] for row in found.rows] == ["1", "all"]
    assert all(0 < row["mAP"] <= 1 for row in found.rows)


@pytest.mark.parametrize("skip", [False, True])
def test_difficult_images_are_left_out_or_count_as_images_without_the_class(data, skip):
    images, _ = open_set("voc2007", data / "VOCdevkit")
    (difficult,) = np.argwhere(images.labels == 0)  # the cat of the validation image
    expected = np.where(images.labels == 0, 0 if skip else -1, images.labels)
    assert np.array_equal(svm_command.labels_of(images, skip_difficult=skip), expected)
    made = command.transfer_set(images, torch.zeros(5, 1), skip_difficult=skip, seed=0)
    assert np.array_equal(made.labels, expected)
    assert made.validation.tolist() == [difficult[0]]


def test_a_damaged_image_stops_the_evaluation_by_name(data, tmp_path):
    root = shutil.copytree(data / "mine", tmp_path / "mine")
    bad = root / "test" / "bird" / "test0.png"
    bad.write_bytes(bad.read_bytes()[:100])
    with pytest.raises((RuntimeError, ValueError), match=r"test/bird/test0.png: truncated or damaged"):
        transfer(data / "network.safetensors", sets=(f"mine={root}",), out=tmp_path / "out", **SEARCH)
    bad.unlink()
    bad.symlink_to("nowhere")
    with pytest.raises(ValueError, match=r"1 of 32 files cannot be used \(1 missing\)"):
        transfer(data / "network.safetensors", sets=(f"mine={root}",), out=tmp_path / "out", **SEARCH)


def test_a_published_set_is_evaluated_without_the_images_that_a_list_names(data, tmp_path):
    root = shutil.copytree(data / "mine", tmp_path / "mine")
    bird = root / "test" / "bird" / "test0.png"
    Image.open(bird).save(bird, format="jpeg")
    bird.write_bytes(bird.read_bytes()[:-100])  # the header is whole
    (root / "train" / "ship" / "train3.png").write_bytes(b"<html>")
    network, listed = data / "network.safetensors", tmp_path / "bad.txt"
    with pytest.raises(ValueError, match=r"train3.png: not an image(.|\n)*pass --leave-out LIST"):
        transfer(network, sets=(f"mine={root}",), out=tmp_path / "out", **SEARCH)
    listed.write_text("train/ship/train3.png\n")
    with pytest.raises(BadFilesError, match=r"test0.png: truncated or damaged(.|\n)*pass --leave-out LIST"):
        transfer(network, sets=(f"mine={root}",), out=tmp_path / "out", leave_out=listed, **SEARCH)
    listed.unlink()
    scan(root, out=listed)
    found = transfer(network, sets=(f"mine={root}",), out=tmp_path / "out", leave_out=listed, **SEARCH)
    (row,), names = found.rows, ["train/ship/train3.png", "test/bird/test0.png"]
    assert (row["score"], row["train"] + row["validation"], row["test"], row["left_out"]) == (1, 15, 15, names)
    line = f"2 images of mine are left out (--leave-out): {', '.join(names)}"
    assert found.notes == [line]
    settings = {"name": "mine", "shots": (), "device": "cpu", "out": tmp_path / "svm", "leave_out": listed}
    found = svm(network, root, **settings)
    assert (found.notes, found.settings["data"]["left_out"], found.settings["data"]["test"]) == ([line], names, 15)
    listed.write_text("test0.png\n")
    with pytest.raises(ValueError, match=r"bad.txt names no image of mine: expected paths, or names such as train"):
        transfer(network, sets=(f"mine={data / 'mine'}",), out=tmp_path / "other", leave_out=listed, **SEARCH)


def test_wrong_options_are_named(data, tmp_path):
    network = data / "network.safetensors"
    for call, message in (
        (lambda: transfer(network), "no data sets: name them by --sets NAME=FOLDER"),
        (lambda: transfer(network, sets=("pets",)), "sets=pets: expected NAME=FOLDER, with a known name"),
        (lambda: transfer(network, sets=("a/b=c",)), "sets=a/b=c: expected NAME=FOLDER"),
        (lambda: transfer(network, sets=mine(data), weight_decays=(0.0,)), "expected one or more finite numbers > 0"),
        (lambda: transfer(network, sets=mine(data), batch_size=0), "batch_size=0: expected at least 1"),
        (lambda: transfer(network, sets=mine(data), crop=32, resize=8), "crop=32, resize=8: expected 1 <= crop"),
        (lambda: svm(network, data / "mine", name="mine", cost=-1.0), "cost=-1.0: expected a finite number > 0"),
        (lambda: svm(network, data / "mine", name="mine", shots=(0,)), r"shots=\(0,\): expected numbers of at least 1"),
        (lambda: svm(network, data / "mine", name="mine", draws=0), "draws=0: expected at least 1"),
        (lambda: svm(network, data / "mine", name="mine", shots=(), full=False), "nothing to learn from"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder"):
        transfer(network, sets=(f"pets={tmp_path / 'nowhere'}",))
    assert named_folders(None, ("pets=a=b",))["pets"].name == "a=b"


def test_the_example_of_the_documentation(data, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(data / "mine", "mine")
    shutil.copytree(data / "mine" / "test", "mine/val")
    backbone = open_backbone(data / "network.safetensors")
    names = {"network": backbone.network, "view": backbone.description.view(), "device": torch.device("cpu")}
    page = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text()
    *_, code = re.findall(r"^```python\n(.*?)^```", page, flags=re.MULTILINE | re.DOTALL)
    exec(code, {**names, "torch": torch, "Path": Path})
    assert capsys.readouterr().out == "1.0 0.01\n"
