"""Times and lengths of files: what the operating system says, with and without the CPU kernels."""

import os
from types import SimpleNamespace

import numpy as np
import pytest

from sce_fast.data import stamps
from sce_fast.data.sources import Names
from sce_fast.data.stamps import content_stamps, file_stamps
from sce_fast.native import CPU


@pytest.fixture(params=["kernel", "python"])
def way(request, monkeypatch):
    if request.param == "python":
        monkeypatch.setattr(stamps, "CPU", SimpleNamespace(module=None))
    else:
        assert CPU.module is not None, "the extension is not built: make venv"


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("folders", [False, True])
def test_odd_files_have_their_reasons(tmp_path, monkeypatch, folders):
    monkeypatch.setattr(stamps, "TOGETHER", 3)
    (tmp_path / "folder").mkdir()
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    good = [
        "a.jpg",
        "folder/b b.jpg",
        os.fsdecode(b"\xff.jpg"),
        "new\nline.jpg",
        "ü.jpg",
        str(tmp_path / "folder/c.jpg"),
    ]
    for i, name in enumerate(good):
        (tmp_path / name).write_bytes(b"x" * (i + 1))
        os.utime(tmp_path / name, ns=(0, 1_234_567_890_123_456_789 + i))
    (tmp_path / "link.jpg").symlink_to("a.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    odd = {
        "empty.jpg": "empty",
        "loop.jpg": "a link to itself",
        "pipe.jpg": "not a file",
        "gone.jpg": "missing",
        "a.jpg/inside.jpg": "missing",
        "": "not a file",
        "a.jpg\0.jpg": "unreadable",
        "x" * 300: "unreadable",
    }
    names = [*good, *odd, "link.jpg", "folder"]
    found, bad = file_stamps(tmp_path, Names.of(names), folders=folders)
    expected_bad = {len(good) + i: reason for i, reason in enumerate(odd.values())} | {len(names) - 1: "not a file"}
    if folders:
        expected_bad = {i: reason for i, reason in expected_bad.items() if names[i] not in ("", "folder")}
    assert bad == expected_bad
    for i, name in enumerate(names):
        status = None if i in bad else os.stat(tmp_path / name)
        assert found[i].tolist() == ([0, 0] if status is None else [status.st_mtime_ns, status.st_size])


def test_frames_written_anew_in_place_change_their_folder(tmp_path):
    frames = tmp_path / "film"
    frames.mkdir()
    (tmp_path / "a.mp4").write_bytes(b"12345")
    for i in range(3):
        (frames / f"{i:05}.jpg").write_bytes(b"x" * 10)
        os.utime(frames / f"{i:05}.jpg", ns=(0, 10**18 + i))
    os.utime(frames, ns=(0, 10**18))
    names = Names.of(["a.mp4", "film", "gone.mp4"])
    first = content_stamps(tmp_path, names)
    assert first.tolist() == [[os.stat(tmp_path / "a.mp4").st_mtime_ns, 5], [10**18 + 2, 30], [0, 0]]
    (frames / "00001.jpg").write_bytes(b"y" * 10)
    again = content_stamps(tmp_path, names)
    assert os.stat(frames).st_mtime_ns == 10**18
    assert again[1, 0] > first[1, 0]
    assert again[[0, 2]].tolist() == first[[0, 2]].tolist()


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("count", [0, 1, 64, 65, 1000])
def test_many_files(tmp_path, monkeypatch, count):
    monkeypatch.chdir(tmp_path)
    names = [f"{i:04}.bin" for i in range(count)]
    for i, name in enumerate(names):
        with open(name, "wb") as file:
            file.truncate(i + 1)
    found, bad = file_stamps(tmp_path.relative_to(tmp_path), Names.of(names))
    assert (found[:, 1].tolist(), bad) == (list(range(1, count + 1)), {})


def test_the_kernel_refuses_ends_outside_the_text():
    assert CPU.module is not None
    text = np.frombuffer(b"abc", dtype=np.uint8)
    for start, ends in ((0, [4]), (2, [1]), (0, [2, 1]), (-1, [1])):
        with pytest.raises(ValueError, match="ends must rise from start to the length of text"):
            CPU.module.file_stamps(b"/", text, start, np.array(ends), 1)
    with pytest.raises(ValueError, match="threads is 0, expected at least 1"):
        CPU.module.file_stamps(b"/", text, 0, np.array([3]), 0)
