"""Retrieval from a run of the video demo, with one command."""

import json

import pytest

from sce_fast.cli import main
from sce_fast.tools import moving_digits
from sce_fast.tools.demo_video import demo_video_config
from sce_fast.tools.moving_digits import write_moving_digits
from sce_fast.train import Trainer


@pytest.mark.slow
def test_a_run_of_the_video_demo(tmp_path, monkeypatch, capsys):
    """Bank and queries are the videos that the run itself evaluates, by their motion."""
    monkeypatch.setattr(moving_digits, "PARTS", {"train": 2, "test": 1})
    videos = write_moving_digits(tmp_path / "videos")
    run = tmp_path / "run"
    Trainer(demo_video_config(videos, run, seed=1, epochs=1, device="cpu")).train()
    main(["evaluate", "retrieval", str(run), "--clips", "2", "--device", "cpu"])
    folder = run / "evaluations" / "retrieval"
    assert sorted(path.name for path in folder.iterdir()) == [
        "neighbours.png",
        "recall.png",
        "results.json",
        "table.txt",
    ]
    result = json.loads((folder / "results.json").read_text())
    names = ("bank_samples", "query_samples", "bank_classes")
    assert [result["settings"][name] for name in names] == [48, 24, 6]
    assert [row["features"] for row in result["rows"]] == ["backbone", "chance"]
    recall = list(result["rows"][0].values())[1:]
    assert recall == sorted(recall)
    assert result["rows"][1]["R@1"] == pytest.approx(1 / 6)
    assert "48 videos in the bank, 24 queries, 6 classes" in capsys.readouterr().out
