"""The split command writes lists that other commands read."""

import pytest

from sce_fast.cli import main
from sce_fast.data.sources import list_videos, read_split
from sce_fast.tools.split import write_split


@pytest.fixture
def hmdb(tmp_path):
    split, videos = tmp_path / "splits", tmp_path / "videos"
    for name in ("wave/#1_a.avi", "wave/b c.avi", "run/d.avi"):
        (videos / name).parent.mkdir(parents=True, exist_ok=True)
        (videos / name).write_bytes(b"-")
    split.mkdir()
    (split / "wave_test_split1.txt").write_text("#1_a.avi 1 \nb c.avi 1 \ngone.avi 1 \n")
    (split / "run_test_split1.txt").write_text("d.avi 1 \n")
    return split, videos


def test_a_list_has_the_videos_and_classes_of_the_split(hmdb, tmp_path, capsys):
    out = write_split(*hmdb, part="train", out=tmp_path / "lists.txt")
    found, expected = list_videos(out), read_split(*hmdb, "train")
    assert found.names == [str(hmdb[1] / name) for name in expected.names]
    assert (found.labels.tolist(), found.classes) == (expected.labels.tolist(), expected.classes)
    assert len(found.names) == 3
    assert (tmp_path / "lists.missing.txt").read_text() == "wave/gone.avi\n"
    assert "1 of 4 files of" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"lists.txt exists already"):
        write_split(*hmdb, part="train", out=tmp_path / "lists.txt")


def test_the_command_names_the_file(hmdb, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    main(["split", *map(str, hmdb), "--part", "train"])
    assert capsys.readouterr().out == "splits_train_1.txt\n"
    assert len(list_videos(tmp_path / "splits_train_1.txt").names) == 3
