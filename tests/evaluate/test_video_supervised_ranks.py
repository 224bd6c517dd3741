"""Supervised evaluations of videos on two ranks and on one: the same results up to the order of sums."""

import json

import pytest
from safetensors.torch import load_file

from helpers import ranks
from helpers.clip_backbones import write_clip_backbone, write_colours


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Return a folder with a backbone, and red, green and blue videos."""
    root = tmp_path_factory.mktemp("videos")
    write_colours(root / "train", videos=3)
    write_colours(root / "test", videos=2, first=3)
    write_clip_backbone(root / "backbone.safetensors")
    return root


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "more", "tolerance"),
    [
        ("linear", ["--learning-rates", 1, 3, "--accumulation", 2], 1e-12),
        ("finetune", ["--learning-rate", 0.02, "--dropout", 0.5], 1e-9),
    ],
)
def test_one_and_two_ranks_agree(videos, tmp_path, command, more, tolerance):
    places = ["--train", videos / "train", "--test", videos / "test", "--device", "cpu", "--loader-threads", 1]
    training = ["--precision", "float64", "--epochs", 2, "--batch-size", 8, "--scaling", "none", "--warmup-epochs", 0]
    words = ["evaluate", command, videos / "backbone.safetensors", *places, *training, "--clips", 2, "--crops", 1]
    for count in (1, 2):
        told, out = tmp_path / f"told{count}", tmp_path / f"{count}"
        assert ranks.command([*words, *more, "--out", out], told, ranks=count) == [0] * count, told
    one, two = (load_file(tmp_path / name / "classifier.safetensors") for name in ("1", "2"))
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        assert (tensor.double() - two[name].double()).abs().max() <= tolerance, name
    results = [json.loads((tmp_path / name / "results.json").read_text()) for name in ("1", "2")]
    assert results[0] == results[1]
    assert (tmp_path / "told2.1").read_text() == ""  # the first rank alone prints
