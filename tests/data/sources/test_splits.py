"""Published splits of UCF101, HMDB51, Kinetics and Something-Something v2, in the form of their files."""

import json

import pytest

from sce_fast.data.sources import list_videos, read_split


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"-")
    return root


@pytest.fixture
def ucf(tmp_path):
    split = tmp_path / "ucfTrainTestlist"
    split.mkdir()
    (split / "classInd.txt").write_text("1 ApplyEyeMakeup\r\n2 Archery\r\n")
    (split / "trainlist01.txt").write_text(
        "ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi 1\r\nArchery/v_Archery_g08_c01.avi 2\r\n"
    )
    (split / "trainlist02.txt").write_text("ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi 1\r\n")
    (split / "testlist01.txt").write_text("Archery/v_Archery_g01_c01.avi\r\nApplyEyeMakeup/v_Gone_g01_c01.avi\r\n")
    return split


def test_ucf101(ucf, tmp_path):
    videos = touch(
        tmp_path / "UCF-101",
        "ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi",
        "ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi",
        "Archery/v_Archery_g08_c01.mp4",  # encoded anew
        "v_Archery_g01_c01.avi",  # in no class folder
    )
    train, test = read_split(ucf, videos, "train"), read_split(ucf, videos, "test")
    assert train.names == ["ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi", "Archery/v_Archery_g08_c01.mp4"]
    assert (train.labels.tolist(), train.classes, train.missing) == ([0, 1], ["ApplyEyeMakeup", "Archery"], ())
    assert train.root == videos
    assert train.describe_missing() == ""
    assert (test.names, test.labels.tolist(), test.classes) == (["v_Archery_g01_c01.avi"], [1], train.classes)
    assert test.missing == ("ApplyEyeMakeup/v_Gone_g01_c01.avi",)
    assert test.describe_missing() == (
        f"1 of 2 files of {ucf / 'testlist01.txt'} is missing and left out: ApplyEyeMakeup/v_Gone_g01_c01.avi"
    )
    second = read_split(ucf, videos, "train", number=2)
    assert second.names == ["ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi"]
    with pytest.raises(FileNotFoundError, match=r"number=4: .*trainlist04.txt does not exist; UCF101 has splits 1 to"):
        read_split(ucf, videos, "train", number=4)


def test_lists_that_do_not_fit_their_classes(ucf, tmp_path):
    videos = touch(tmp_path / "UCF-101", "Archery/v_Archery_g08_c01.avi")
    (ucf / "trainlist01.txt").write_text("Archery/v_Archery_g08_c01.avi 1\n")
    with pytest.raises(ValueError, match=r"g08_c01.avi 1: the class is not that of classInd.txt"):
        read_split(ucf, videos, "train")
    (ucf / "trainlist01.txt").write_text("Juggling/v_Juggling_g08_c01.avi\n")
    with pytest.raises(ValueError, match=r"the class is not that of classInd.txt"):
        read_split(ucf, videos, "train")


def test_hmdb51(tmp_path):
    """Names begin with #, lines end with a space, and a list of one class is enough for the number of classes."""
    split = tmp_path / "testTrainMulti_7030_splits"
    split.mkdir()
    (split / "cartwheel_test_split1.txt").write_text("#20_Rhythm_goo_0.avi 1 \na_1.avi 2 \nb.avi 0 \n")
    (split / "brush_hair_test_split1.txt").write_text("c d.avi 2 \n")
    (split / "brush_hair_test_split2.txt").write_text("c d.avi 1 \n")
    videos = touch(tmp_path / "hmdb51", "cartwheel/#20_Rhythm_goo_0.avi", "brush_hair/c d.avi", "cartwheel/b.avi")
    train, test = read_split(split, videos, "train"), read_split(split, videos, "test")
    assert (train.names, train.labels.tolist()) == (["cartwheel/#20_Rhythm_goo_0.avi"], [1])
    assert train.classes == ["brush_hair", "cartwheel"]
    assert (test.names, test.labels.tolist(), test.missing) == (["brush_hair/c d.avi"], [0], ("cartwheel/a_1.avi",))
    assert read_split(split, videos, "train", number=2).names == ["brush_hair/c d.avi"]
    with pytest.raises(FileNotFoundError, match=r"number=3: .* has no \*_test_split3.txt"):
        read_split(split, videos, "train", number=3)
    (split / "cartwheel_test_split1.txt").write_text("a.avi 3\n")
    with pytest.raises(ValueError, match=r"a.avi 3: expected a file and 0, 1 or 2"):
        read_split(split, videos, "train")


HEADER = "label,youtube_id,time_start,time_end,split\n"


def test_kinetics(tmp_path):
    """The test part is the validation table; files lie in folders of split and class, with underscores or without."""
    tables = tmp_path / "annotations"
    tables.mkdir()
    (tables / "train.csv").write_text(HEADER + "archery,AAAAAAAAAAA,1,11,train\nbaby waking up,BBB,0,10,train\n")
    (tables / "validate.csv").write_text(HEADER + '"archery","-CCCCCCCCCC",5,15,validate\nyoga,D,5,15,validate\n')
    (tables / "test.csv").write_text("youtube_id,time_start,time_end,split\nE,5,15,test\n")
    (tables / "train.json").write_text("{}")  # the tables again, as they are published
    videos = touch(
        tmp_path / "kinetics",
        "train/archery/AAAAAAAAAAA_000001_000011.mp4",
        "train/baby_waking_up/BBB_000000_000010.mkv",
        "val/archery/-CCCCCCCCCC_000005_000015.mp4",
    )
    train, test = read_split(tables, videos, "train"), read_split(tables, videos, "test")
    assert train.names == [
        "train/archery/AAAAAAAAAAA_000001_000011.mp4",
        "train/baby_waking_up/BBB_000000_000010.mkv",
    ]
    assert (train.labels.tolist(), train.classes) == ([0, 1], ["archery", "baby waking up"])
    assert test.names == ["val/archery/-CCCCCCCCCC_000005_000015.mp4"]
    assert test.missing == ("yoga/D_000005_000015.mp4",)
    assert test.classes == ["archery", "yoga"]
    with pytest.raises(ValueError, match=r"number=2: expected 1, as only UCF101 and HMDB51 have several splits"):
        read_split(tables, videos, "train", number=2)
    with pytest.raises(ValueError, match=r"test.csv has no column label"):
        read_split(tables / "test.csv", videos, "test")


def test_one_table_of_kinetics(tmp_path):
    table = tmp_path / "k400.csv"
    table.write_text(HEADER + "archery,A,1,11,train\narchery,B,1,11,val\n")
    videos = touch(tmp_path / "v", "archery/A_000001_000011.mp4", "archery/B_000001_000011.mp4")
    assert read_split(table, videos, "train").names == ["archery/A_000001_000011.mp4"]
    assert read_split(table, videos, "test").names == ["archery/B_000001_000011.mp4"]
    table.write_text(HEADER + "archery,A,1,11,train\n")
    with pytest.raises(ValueError, match=r"k400.csv has rows of train; expected validation or validate or val or test"):
        read_split(table, videos, "test")


@pytest.fixture
def something(tmp_path):
    """Return a folder as published: templates with brackets, and labels without."""
    split = tmp_path / "labels"
    split.mkdir()
    classes = {"Holding something next to something": "1", "Approaching something with your camera": "0"}
    (split / "something-something-v2-labels.json").write_text(json.dumps(classes))
    entry = {"id": "78687", "label": "holding potato next to vicks", "placeholders": ["potato", "vicks"]}
    train = [entry | {"template": "Holding [something] next to [something]"}]
    (split / "something-something-v2-train.json").write_text(json.dumps(train))
    validation = [{"id": "2", "template": "Approaching [something] with your camera"}, {"id": "3"} | train[0]]
    (split / "something-something-v2-validation.json").write_text(json.dumps(validation))
    (split / "something-something-v2-test.json").write_text(json.dumps([{"id": "1420"}]))
    return split


def test_something_something(something, tmp_path):
    videos = touch(tmp_path / "20bn-something-something-v2", "78687.webm", "2.mp4")
    train, test = read_split(something, videos, "train"), read_split(something, videos, "test")
    assert train.classes == ["Approaching something with your camera", "Holding something next to something"]
    assert (train.names, train.labels.tolist()) == (["78687.webm"], [1])
    assert (test.names, test.labels.tolist()) == (["2.mp4", "78687.webm"], [0, 1])
    (something / "something-something-v2-train.json").write_text('[{"id": "5", "template": "Eating [something]"}]')
    with pytest.raises(ValueError, match=r"id 5, template 'Eating \[something\]': expected an id and a template of"):
        read_split(something, videos, "train")
    (something / "something-something-v2-train.json").write_text("[")
    with pytest.raises(ValueError, match="is not JSON"):
        read_split(something, videos, "train")


def test_folders_of_frames(something, tmp_path):
    """A video that has been taken apart into images counts as its file."""
    videos = touch(tmp_path / "frames", "78687/000001.jpg", "78687/000002.jpg")
    assert read_split(something, videos, "train").names == ["78687"]


def test_wrong_arguments(ucf, tmp_path):
    videos = touch(tmp_path / "videos", "a.mp4")
    with pytest.raises(FileNotFoundError, match=r"has none of the 2 videos of .*trainlist01.txt, such as ApplyEyeMak"):
        read_split(ucf, videos, "train")
    with pytest.raises(ValueError, match="part='val': expected one of train, test"):
        read_split(ucf, videos, "val")
    with pytest.raises(FileNotFoundError, match=r"videos=.*nowhere: no such folder"):
        read_split(ucf, tmp_path / "nowhere", "train")
    with pytest.raises(ValueError, match=r"split=.*videos: expected the folder of UCF101's"):
        read_split(videos, videos, "train")
    with pytest.raises(ValueError, match=r"split=.*a.mp4: expected the folder of UCF101's"):
        read_split(videos / "a.mp4", videos, "train")


def test_a_table_beside_its_videos_is_a_list_file(tmp_path):
    """Without a folder of videos, a table names files beside it, and missing ones stay in the list."""
    (tmp_path / "train.csv").write_text(HEADER + "archery,A,1,11,train\nbow,B,1,11,train\n")
    touch(tmp_path, "archery/A_000001_000011.mp4")
    found = list_videos(tmp_path / "train.csv")
    assert found.names == ["archery/A_000001_000011.mp4", "bow/B_000001_000011.mp4"]
    assert found.missing == ()
