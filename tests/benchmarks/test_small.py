"""The benchmark of small data sets: its data, its runs, its table."""

import json

import pytest
from PIL import Image

from helpers.runs import small_config
from sce_fast.benchmarks import small
from sce_fast.benchmarks.emoji import SIDE, is_held_out, write_emoji


@pytest.fixture(scope="module")
def emoji(tmp_path_factory):
    pytest.importorskip("resvg_py", reason="the extra dev is not installed whole")
    return write_emoji(tmp_path_factory.mktemp("small") / "emoji")


def test_a_fifth_of_all_emoji_is_held_out():
    codes = [f"{code:X}" for code in range(0x1F300, 0x1F700)]
    assert sum(map(is_held_out, codes)) / len(codes) == pytest.approx(0.2, abs=0.03)
    assert [code for code in codes[:12] if is_held_out(code)] == ["1F307"]


@pytest.mark.slow
def test_emoji_are_drawn_once_and_tones_stay_together(emoji):
    train, test = emoji
    drawn = [{path.stem: path.parent.name for path in part.rglob("*.png")} for part in emoji]
    assert [len(names) for names in drawn] == [3074, 704]
    assert drawn[0]["1F600"] == "face-smiling"
    for code in ("1F44B", "1F9D1-200D-1F680"):  # waving hand, astronaut
        parts = [names for names in drawn if code in names or f"{code[:5]}-1F3FF{code[5:]}" in names]
        assert len(parts) == 1
        assert f"{code[:5]}-1F3FF{code[5:]}" in parts[0]
    with Image.open(train / "face-smiling" / "1F600.png") as image:
        assert image.size == (SIDE, SIDE)
        assert image.mode == "RGBA"
        assert image.getpixel((0, 0))[3] == 0
    stamp = train.stat().st_mtime_ns
    assert write_emoji(train.parent) == (train, test)
    assert train.stat().st_mtime_ns == stamp


@pytest.mark.slow
def test_a_finished_run_is_measured_once(photo_folder, tmp_path):
    config = small_config(photo_folder, tmp_path / "run", epochs=1)
    values = small.finished_run(config)
    assert values["cpu_seconds"] > 0
    for entry in small.STAGES:
        assert 0 <= values[entry] <= 1
    first = json.loads((config.out / "log.jsonl").read_text().splitlines()[0])
    assert values["knn_top1_untrained"] == first["top1"]
    stamp = (config.out / "config.json").stat().st_mtime_ns
    assert small.finished_run(config) == values
    assert (config.out / "config.json").stat().st_mtime_ns == stamp
    other = small_config(photo_folder, tmp_path / "run", epochs=1, seed=5)
    assert small.finished_run(other)["steps"] == values["steps"]
    assert json.loads((config.out / "config.json").read_text())["seed"] == 5


def test_the_table_has_means_and_ranges():
    runs = [{**dict.fromkeys(small.STAGES, value), "cpu_seconds": 240.0} for value in (0.25, 0.5)]
    lines = small.table({"digits": runs}).splitlines()
    assert lines[0] == "| features | digits |"
    assert "| trained | 0.375 (0.250 to 0.500) |" in lines
    assert lines[-1].endswith("| 2.0 min |")


def test_unknown_data_sets_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"data_sets=\('emojis',\): expected some of digits, emoji"):
        small.main(data_sets=("emojis",), data=tmp_path)
