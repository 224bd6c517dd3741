"""The video demo: its table, its labels, and a short run that writes everything."""

import json

import pytest
import torch

from sce_fast.benchmarks import motions
from sce_fast.data.video.index import index_videos
from sce_fast.tools import demo, demo_video, moving_digits
from sce_fast.tools.demo import STAGES
from sce_fast.tools.demo_video import labels_of, run_demo_video, table
from sce_fast.tools.moving_digits import DIGITS, MOTIONS, MovingDigits, write_moving_digits


@pytest.fixture
def videos(tmp_path, monkeypatch):
    """Return a small data set: 120 videos to train on and 48 to test."""
    monkeypatch.setattr(moving_digits, "PARTS", {"train": 5, "test": 2})
    return write_moving_digits(tmp_path / "videos")


def test_the_table_has_a_row_for_each_stage_and_columns_for_each_label():
    values = {
        f"{label}_{kind}_top1{suffix}": (100 * s + 10 * m + k) / 1000
        for s, suffix in enumerate(("_raw_pixels", "_untrained", ""), start=1)
        for m, label in enumerate(("motion", "digit"), start=1)
        for k, kind in enumerate(("knn", "linear"), start=1)
    }
    rest = {"steps": 600, "seconds": 300.0, "samples_per_second": 64.0, "data_wait_share": 0.1, "final_loss": 2.5}
    lines = table({**values, **rest}).splitlines()
    assert lines[1].split() == ["motion", "digit"]
    assert lines[2].split()[-4:] == ["kNN", "linear"] * 2
    assert [line.split()[-4:] for line in lines[3:6]] == [
        ["0.111", "0.112", "0.121", "0.122"],
        ["0.211", "0.212", "0.221", "0.222"],
        ["0.311", "0.312", "0.321", "0.322"],
    ]
    assert len({len(line) for line in lines[1:6]}) == 1
    assert lines[6] == "600 steps in 300 s, 64 videos/s, 10% of the time waiting for data; final loss 2.500"


def test_table_of_seeds(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(demo, "is_run_of", lambda config: True)
    monkeypatch.setattr(motions, "write_moving_digits", MovingDigits)
    for seed in (1, 2):
        run = tmp_path / f"seed_{seed}"
        run.mkdir()
        values = {name + suffix: 0.5 + seed / 10 for name in motions.COLUMNS for suffix in STAGES}
        (run / "summary.json").write_text(json.dumps(values))
    motions.main(seeds=(1, 2), runs=tmp_path, out=tmp_path / "record.json")
    row = "| after SCE pretraining |" + " 0.650 (0.600 to 0.700) |" * len(motions.COLUMNS)
    assert row in capsys.readouterr().out
    assert len(json.loads((tmp_path / "record.json").read_text())["results"]) == 2


@pytest.mark.slow
def test_labels_are_in_the_order_of_the_index(videos, tmp_path):
    index = index_videos(videos.videos("test", "digit"), cache=tmp_path)
    digits = labels_of(videos, "test", "digit")
    assert torch.equal(digits, torch.as_tensor(index.labels))
    assert torch.bincount(digits).tolist() == [2 * len(MOTIONS)] * len(DIGITS)
    assert torch.bincount(labels_of(videos, "test", "motion")).tolist() == [2 * len(DIGITS)] * len(MOTIONS)


@pytest.mark.slow
def test_a_short_demo_writes_everything(videos, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(demo_video, "PIXELS", 4)  # the linear probe of all pixels takes most of a short demo's time
    run = tmp_path / "run"
    summary = run_demo_video(data=videos.folder, out=run, epochs=1, device="cpu")
    assert json.loads((run / "summary.json").read_text()) == summary
    names = {f"{label}_{kind}_top1{suffix}" for label in ("motion", "digit") for kind in ("knn", "linear")
             for suffix in ("", "_untrained", "_raw_pixels")}  # fmt: skip
    assert names <= summary.keys()
    assert all(0 <= summary[name] <= 1 for name in names)
    assert (summary["samples"], summary["kind"]) == (120, "videos")
    for name in ("loss.png", "knn.png", "views.png", "neighbours.png"):
        assert (run / name).stat().st_size > 1000
    printed = capsys.readouterr().out
    assert "120 videos to learn from without labels, 48 held out, 1 epoch" in printed
    assert f"{summary['digit_linear_top1']:.3f}" in printed

    # Without its summary the demo counts as interrupted. It is resumed, with the same result.
    (run / "summary.json").unlink()
    again = run_demo_video(data=videos.folder, out=run, epochs=1, device="cpu", pictures=False)
    assert all(again[name] == summary[name] for name in names)

    # A finished demo is moved aside.
    run_demo_video(data=videos.folder, out=run, epochs=1, seed=1, device="cpu", pictures=False)
    assert json.loads((tmp_path / "run.1" / "summary.json").read_text())["steps"] == summary["steps"]
