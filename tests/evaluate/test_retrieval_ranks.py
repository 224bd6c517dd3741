"""Retrieval on two ranks gives the results of one."""

import pytest
import torch

from helpers import ranks
from helpers.clip_backbones import write_clip_backbone, write_colours
from sce_fast.evaluate import load_features
from sce_fast.evaluate.results import read_result


@pytest.mark.slow
def test_retrieval(tmp_path):
    """Two ranks share an odd number of videos; the first one alone prints and draws."""
    write_colours(tmp_path / "bank", videos=3)
    write_colours(tmp_path / "queries", videos=1, first=3)
    write_clip_backbone(tmp_path / "network.safetensors")
    found, features = [], []
    for count in (1, 2):
        sets = ["--bank", tmp_path / "bank", "--queries", tmp_path / "queries", "--recall-at", 1, 3, "--clips", 2]
        places = ["--out", tmp_path / f"out{count}", "--features", tmp_path / f"features{count}", "--device", "cpu"]
        words = ["evaluate", "retrieval", tmp_path / "network.safetensors", *sets, *places, "--baselines"]
        codes = ranks.command(words, tmp_path / f"told{count}", ranks=count)
        assert codes == [0] * count, (tmp_path / f"told{count}.0").read_text()
        found.append(read_result(tmp_path / f"out{count}"))
        files = sorted((tmp_path / f"features{count}").iterdir())
        features.append([load_features(path).features for path in files])
    assert found[0] == found[1]
    assert [row["features"] for row in found[0].rows] == ["backbone", "untrained network", "chance"]
    assert len(features[0]) == 4
    for one, two in zip(*features, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6)
    assert (tmp_path / "told2.1").read_text() == ""
    assert (tmp_path / "out2" / "neighbours.png").exists()
