"""Action detection on two ranks and on one: the same results up to the order of sums."""

import json

import pytest
from safetensors.torch import load_file

from helpers import ranks
from helpers.actions import write_action_videos
from helpers.clip_backbones import write_clip_backbone


@pytest.mark.slow
def test_one_and_two_ranks_agree(tmp_path):
    write_action_videos(tmp_path, videos=3)  # nine key frames: the ranks test five and four
    write_clip_backbone(tmp_path / "backbone.safetensors")
    rows = (tmp_path / "ava_train_v2.2.csv").read_text().splitlines(keepends=True)
    (tmp_path / "ava_train_v2.2.csv").write_text("".join(rows[1:]))  # clips with one person and with two
    words = ["evaluate", "detection", tmp_path / "backbone.safetensors", "--data", tmp_path]
    words += ["--videos", tmp_path / "videos", "--start", 899.5, "--device", "cpu", "--loader-threads", 1]
    words += ["--precision", "float64", "--epochs", 2, "--batch-size", 4, "--learning-rates", 1.0]
    for count in (1, 2):
        out = ["--out", tmp_path / f"{count}"]
        codes = ranks.command([*words, *out], tmp_path / f"told{count}", ranks=count)
        assert codes == [0] * count, (tmp_path / f"told{count}.0").read_text()
    one, two = (load_file(tmp_path / name / "classifier.safetensors") for name in ("1", "2"))
    for name, tensor in one.items():
        assert (tensor.double() - two[name].double()).abs().max() <= 1e-9, name
    results = [json.loads((tmp_path / name / "results.json").read_text()) for name in ("1", "2")]
    assert results[0]["rows"] == results[1]["rows"]
    assert (tmp_path / "told2.1").read_text() == ""
