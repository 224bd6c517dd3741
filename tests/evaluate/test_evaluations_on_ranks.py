"""Evaluations of frozen features on two ranks give the results of one."""

import json

import pytest

from helpers import image_sets, ranks
from helpers.backbones import write_backbone
from sce_fast.evaluate.results import read_result
from sce_fast.tools.evaluate import knn
from sce_fast.tools.svm import svm
from sce_fast.tools.transfer import transfer


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Return a folder with small data sets and an untrained backbone."""
    root = tmp_path_factory.mktemp("data")
    image_sets.class_folders(root / "mine", image_sets.coloured, images=9)
    image_sets.class_folders(root / "more", image_sets.coloured, images=8)
    image_sets.aircraft(root / "aircraft", image_sets.coloured)
    write_backbone(root / "network.safetensors")
    return root


def run(words, tmp_path):
    """Run `sce-fast evaluate WORDS` on two ranks with a folder of features of its own; return the result."""
    places = ["--device", "cpu", "--out", tmp_path / "ranks", "--features", tmp_path / "features"]
    codes = ranks.command(["evaluate", *words, *places], tmp_path / "told", ranks=2)
    told = [(tmp_path / f"told.{rank}").read_text() for rank in range(2)]
    assert codes == [0, 0], told
    assert f"In {tmp_path / 'ranks'}: " in told[0]
    assert "In " not in told[1]
    return read_result(tmp_path / "ranks")


@pytest.mark.slow
def test_transfer(data, tmp_path):
    """Three data sets on two ranks: each fits one of the first two, and the first rank the third."""
    names = [f"{name}={data / name}" for name in ("mine", "more", "aircraft")]
    found = run(["transfer", data / "network.safetensors", "--sets", *names, "--weight-decays", "0.001", "1"], tmp_path)
    alone = transfer(
        data / "network.safetensors", sets=tuple(names), weight_decays=(0.001, 1.0), device="cpu", out=tmp_path / "out"
    )
    assert json.loads(json.dumps(alone.rows)) == found.rows
    assert alone.settings == found.settings
    assert [row["data"] for row in found.rows] == ["aircraft", "mine", "more"]


@pytest.mark.slow
def test_svm(data, tmp_path):
    """Five fits of one class on each rank, and of the other class on the other."""
    words = ["svm", data / "network.safetensors", data / "mine", "--name", "mine", "--shots", "1", "--draws", "5"]
    found = run(words, tmp_path)
    alone = svm(
        data / "network.safetensors", data / "mine", name="mine", shots=(1,), draws=5, device="cpu",
        out=tmp_path / "out",
    )  # fmt: skip
    assert alone.rows == found.rows


@pytest.mark.slow
def test_knn(data, tmp_path):
    folders = {part: data / "mine" / part for part in ("train", "test")}
    options = ["--train", folders["train"], "--test", folders["test"], "--neighbours", "1", "5", "--baselines"]
    found = run(["knn", data / "network.safetensors", *options], tmp_path)
    settings = {**folders, "neighbours": (1, 5), "baselines": True, "device": "cpu"}
    alone = knn(data / "network.safetensors", out=tmp_path / "out", **settings)
    assert (alone.rows, alone.notes, alone.settings) == (found.rows, found.notes, found.settings)
    assert len(found.rows) == 7
