"""Sources of videos: folders, list files, tables of Kinetics, and folders of extracted frames."""

import os

import numpy as np
import pytest

from helpers.images import write_png
from sce_fast.data.sources import frame_files, kinds_found, list_images, list_videos


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"-")


def test_class_folders(tmp_path):
    touch(tmp_path, "run/2.MP4", "run/1.webm", "jump/deep/3.mkv", "jump/notes.txt", ".hidden/4.mp4", "run/.5.mp4")
    found = list_videos(tmp_path)
    assert found.names == ["jump/deep/3.mkv", "run/1.webm", "run/2.MP4"]
    assert found.classes == ["jump", "run"]
    assert found.labels.tolist() == [0, 1, 1]
    assert found.ignored == {".txt": 1}
    assert found.parts is None


def test_a_flat_folder(tmp_path):
    touch(tmp_path, "b.mp4", "a.avi", "deeper/c.mov")
    found = list_videos(tmp_path)
    assert found.names == ["a.avi", "b.mp4", "deeper/c.mov"]
    assert found.labels is None


def test_images_between_videos_are_counted(tmp_path):
    touch(tmp_path, "1.mp4", "2.webm", "cover.jpg", "0001.jpg", "more/3.mp4", "more/b.JPG")
    assert list_videos(tmp_path).describe_ignored() == f"3 files in {tmp_path} are ignored (3 .jpg)"
    assert list_images(tmp_path).describe_ignored() == f"3 files in {tmp_path} are ignored (2 .mp4, 1 .webm)"
    assert kinds_found(tmp_path) == ("images", "videos")


@pytest.mark.parametrize("flat", [True, False])
def test_folders_of_frames(tmp_path, flat):
    """A folder of numbered images is one video; with other images, or with videos, it is not."""
    outer = "" if flat else "class/"
    for video, first in (("a", 0), ("b", 1)):
        touch(tmp_path, *(f"{outer}{video}/{number:08d}.jpg" for number in range(first, first + 3)))
    touch(tmp_path, f"{outer}photos/1.jpg", f"{outer}photos/me.jpg", f"{outer}c/00000001.png", f"{outer}c/sound.wav")
    found = list_videos(tmp_path)
    assert found.names == [f"{outer}a", f"{outer}b", f"{outer}c"]
    assert (found.labels is None) if flat else (found.labels.tolist() == [0, 0, 0])
    assert found.ignored == {".jpg": 2}
    assert frame_files(os.fsencode(tmp_path / outer / "b"))[-1] == os.fsencode(tmp_path / f"{outer}b/00000003.jpg")
    assert kinds_found(tmp_path) == ("images",)
    with pytest.raises(ValueError, match=r"a holds the frames of one video, or only images; expected a folder of"):
        list_videos(tmp_path / outer / "a")


@pytest.mark.parametrize("prefix", ["img_", "frame", "-5KQ66BBWC4_"])
def test_frames_with_a_prefix(tmp_path, prefix):
    touch(tmp_path, *(f"a/{prefix}{number:05d}.jpg" for number in (2, 1, 3)), "a/notes.txt")
    touch(
        tmp_path,
        "caltech/image_0001.jpg",
        "two/img_00001.jpg",
        "two/flow_00002.jpg",
        "half/1.jpg",
        "half/img_00002.jpg",
    )
    found = list_videos(tmp_path)
    assert found.names == ["a"]
    assert found.ignored == {".jpg": 5}
    assert frame_files(os.fsencode(tmp_path / "a")) == [
        os.fsencode(tmp_path / "a" / f"{prefix}0000{number}.jpg") for number in (1, 2, 3)
    ]
    with pytest.raises(ValueError, match="begin with 'flow_' and with 'img_'"):
        frame_files(os.fsencode(tmp_path / "two"))


def test_frames_by_number(tmp_path):
    touch(tmp_path, *(f"{number}.jpg" for number in range(12)), "notes.txt")
    assert [os.path.basename(name) for name in frame_files(os.fsencode(tmp_path))][9:] == [
        b"9.jpg",
        b"10.jpg",
        b"11.jpg",
    ]
    (tmp_path / "5.jpg").unlink()
    with pytest.raises(ValueError, match="frames are missing"):
        frame_files(os.fsencode(tmp_path))
    touch(tmp_path, "5.jpg", "05.jpg")
    with pytest.raises(ValueError, match="two have the same number"):
        frame_files(os.fsencode(tmp_path))
    (tmp_path / "late").mkdir()
    touch(tmp_path / "late", "3.jpg", "4.jpg")
    with pytest.raises(ValueError, match="frames are missing"):
        frame_files(os.fsencode(tmp_path / "late"))


def listed(tmp_path, text):
    (tmp_path / "list.txt").write_text(text)
    return list_videos(tmp_path / "list.txt")


def test_lists_with_tabs(tmp_path):
    found = listed(tmp_path, "# comment\nmy video.mp4\tzebra\n\n/data/b 1.mp4\tape\n")
    assert found.names == ["my video.mp4", "/data/b 1.mp4"]
    assert found.classes == ["ape", "zebra"]
    assert found.labels.tolist() == [1, 0]
    found = listed(tmp_path, "a.mp4\tx\t1.5\t4\na.mp4\ty\na.mp4\tx\t0\t1\n")
    assert found.names == ["a.mp4"] * 3
    assert found.parts == [(1.5, 4.0), None, (0.0, 1.0)]
    assert found.labels.tolist() == [0, 1, 0]
    found = listed(tmp_path, "frames/a\t2\t3\n")
    assert (found.names, found.parts, found.labels) == (["frames/a"], [(2.0, 3.0)], None)


def test_lists_with_spaces(tmp_path):
    found = listed(tmp_path, "a/1.mp4 10\nmy videos/the 3rd one.mp4 9\nmy  videos/b.mp4.webm 10\nfolder of frames 9\n")
    assert found.names == ["a/1.mp4", "my videos/the 3rd one.mp4", "my  videos/b.mp4.webm", "folder of frames"]
    assert found.classes == ["9", "10"]  # by value
    assert found.labels.tolist() == [1, 0, 1, 0]
    assert found.parts is None
    found = listed(tmp_path, "a 1.mp4 3 0.5 2\nb.mp4 4\n")
    assert (found.names, found.labels.tolist(), found.parts) == (["a 1.mp4", "b.mp4"], [0, 1], [(0.5, 2.0), None])
    found = listed(tmp_path, "a 1.mp4 0.5 2\nb c.mp4\n")
    assert (found.names, found.labels, found.parts) == (["a 1.mp4", "b c.mp4"], None, [(0.5, 2.0), None])
    assert kinds_found(tmp_path / "list.txt") == ("videos",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.mp4 1\nb.mp4\n", "line 2: expected a class on every line or on none"),
        ("a.mp4\tx\nb.mp4\n", "line 2: expected a class on every line or on none"),
        ("a.mp4 run\n", r"line 1: run after a.mp4: expected an integer label of at least 0"),
        ("\na.mp4 -1\n", r"line 2: -1 after a.mp4: expected an integer label of at least 0"),
        ("a.mp4 1 2 3 4\n", r"line 1: 4 fields after a.mp4; expected path, path label, or path label start end"),
        ("a.mp4\tx\t1\t2\t3\n", r"line 1: 5 fields; expected path, path label, or path label start end"),
        ("a.mp4 1 2 2\n", r"line 1: start 2, end 2: expected seconds with 0 <= start < end"),
        ("a.mp4\tx\t1\tnan\n", r"line 1: start 1, end nan: expected seconds with 0 <= start < end"),
        ("a.mp4\t-1\t4\n", r"line 1: start -1, end 4: expected seconds"),
        ("a.mp4 1 two\n", r"line 1: start 1, end two: expected seconds"),
        ("a\0", "is neither a folder nor a text file that lists videos"),
        ("", r"no videos found \(looked for files ending in .3gp .asf .avi"),
    ],
)
def test_malformed_lists_are_refused_by_file_and_line(tmp_path, text, message):
    with pytest.raises(ValueError, match=rf"list.txt.* ?{message}"):
        listed(tmp_path, text)


HEADER = "label,youtube_id,time_start,time_end,split,is_cc\n"


def test_a_table_of_kinetics(tmp_path):
    touch(tmp_path, "play chess/a_b-C_d1_000005_000015.mp4", "jog_far/x_000010_000020.webm", "y_000000_000010.mp4")
    touch(tmp_path, "train/jog far/z_000001_000011.mp4", "train/w_000100_000110.mp4")
    rows = ["play chess,a_b-C_d1,5,15", "jog far,x,10,20", "jog far,y,0,10", "jog far,z,1,11", '"jog far",w,100.0,110']
    rows += ["play chess,gone,7,17"]
    (tmp_path / "train.csv").write_text(HEADER + "".join(f"{row},train,0\n" for row in rows))
    found = list_videos(tmp_path / "train.csv")
    assert found.names == [
        "play chess/a_b-C_d1_000005_000015.mp4",
        "jog_far/x_000010_000020.webm",
        "y_000000_000010.mp4",
        "train/jog far/z_000001_000011.mp4",
        "train/w_000100_000110.mp4",
        "play chess/gone_000007_000017.mp4",
    ]
    assert found.classes == ["jog far", "play chess"]
    assert found.labels.tolist() == [1, 0, 0, 0, 0, 1]
    assert kinds_found(tmp_path / "train.csv") == ("videos",)
    (tmp_path / "test.csv").write_text("youtube_id,time_start,time_end,split\ny,0,10,test\n")
    assert list_videos(tmp_path / "test.csv").names == ["y_000000_000010.mp4"]
    assert list_videos(tmp_path / "test.csv").labels is None


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("run,x,1,2\n", "4 fields; expected 6"),
        ("run,x,one,2,train,0\n", "one: expected a time in seconds"),
        ("run,x,1,-2,train,0\n", "-2: expected a time in seconds"),
        (",x,1,2,train,0\n", "expected a label"),
    ],
)
def test_malformed_rows_of_kinetics(tmp_path, row, message):
    (tmp_path / "train.csv").write_text(f"{HEADER}run,a,1,2,train,0\n{row}")
    with pytest.raises(ValueError, match=rf"train.csv, line 3: {message}"):
        list_videos(tmp_path / "train.csv")


def test_a_csv_file_with_paths_is_a_list(tmp_path):
    """SlowFast and pytorchvideo call their lists with spaces train.csv."""
    (tmp_path / "train.csv").write_text("/data/a b.mp4 3\n/data/c.mp4 0\n")
    found = list_videos(tmp_path / "train.csv")
    assert (found.names, found.labels.tolist()) == (["/data/a b.mp4", "/data/c.mp4"], [1, 0])


def test_where_there_are_no_videos(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder or list file"):
        list_videos(tmp_path / "nowhere")
    touch(tmp_path, "a.mp4")
    with pytest.raises(ValueError, match=r"a.mp4 is one video; expected a folder of videos or a list file"):
        list_videos(tmp_path / "a.mp4")
    write_png(tmp_path / "images" / "x.png", np.zeros((2, 2, 3), dtype=np.uint8))
    with pytest.raises(ValueError, match=r"images: no videos found .*; 1 file in \S+images is ignored \(1 .png\)"):
        list_videos(tmp_path / "images")


def test_entries_tell_parts_apart(tmp_path):
    found = listed(tmp_path, "a.mp4\tx\t0.1\t4\na.mp4\ty\n")
    assert found.entries() == ["a.mp4\t0.1\t4.0", "a.mp4"]
    again = found.listed_as(found.entries()[::-1], np.array([1, 0]))
    assert (again.names, again.parts, again.labels) == (["a.mp4", "a.mp4"], [None, (0.1, 4.0)], None)
    assert found.subset([1]).parts == [None]
    assert found.listed_as(["b\tc\td"], np.array([-1])).names == ["b\tc\td"]  # a file name with tabs
