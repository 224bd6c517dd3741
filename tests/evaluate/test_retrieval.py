"""Retrieval of videos as `sce-fast evaluate retrieval` runs it: 30 views, published splits, feature files."""

import dataclasses

import pytest
import torch

from helpers import image_sets
from helpers.backbones import write_backbone
from helpers.clip_backbones import SAMPLING, write_clip_backbone, write_colour, write_colours
from sce_fast.data.video.augment import ClipEvaluationView
from sce_fast.data.video.index import index_videos
from sce_fast.evaluate import extract_features, load_features, retrieve
from sce_fast.evaluate.results import read_result
from sce_fast.export import Foreign, open_backbone
from sce_fast.tools import retrieval as module
from sce_fast.tools.evaluate import knn
from sce_fast.tools.retrieval import retrieval

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Return a folder with a bank of nine videos of three colours, six queries and an untrained R3D-18."""
    root = tmp_path_factory.mktemp("data")
    write_colours(root / "bank", videos=3)
    write_colours(root / "queries", videos=2, first=3)
    write_clip_backbone(root / "network.safetensors")
    return root


@pytest.fixture
def drawn(monkeypatch):
    """Return the rows of film strips that are drawn."""
    found, draw = [], module.draw_rows

    def note(rows, path, **settings):
        found.extend(rows)
        return draw(rows, path, **settings)

    monkeypatch.setattr(module, "draw_rows", note)
    return found


def test_thirty_views_of_a_constant_video_give_the_answer_of_one(tmp_path, data):
    write_colour(tmp_path / "grey.avi", (90, 120, 150), frames=40)
    index = index_videos(tmp_path)
    network = open_backbone(data / "network.safetensors").network
    one = ClipEvaluationView(resize=32, crop=32, sampling=SAMPLING)
    many = dataclasses.replace(one, clips=10, crops=3)
    single, mean = (extract_features(network, index, view, device=CPU) for view in (one, many))
    assert single.norm() > 0.1
    torch.testing.assert_close(mean, single, rtol=1e-5, atol=1e-6)


def test_videos_of_one_colour_find_each_other(data, tmp_path, capsys, drawn, monkeypatch):
    """An untrained network tells colours apart, so its recall is perfect; chance is 1/3 at rank 1."""
    sets = {"bank": data / "bank", "queries": data / "queries", "features": tmp_path / "features", "device": "cpu"}
    found = retrieval(data / "network.safetensors", **sets, out=tmp_path / "out")
    assert [row["features"] for row in found.rows] == ["backbone", "chance"]
    assert found.rows[0]["R@1"] == found.rows[0]["R@5"] == 1.0
    assert found.rows[1]["R@1"] == pytest.approx(1 / 3)
    assert found.rows[1]["R@5"] == pytest.approx(1 - (6 * 5 * 4 * 3 * 2) / (9 * 8 * 7 * 6 * 5))
    assert found.notes == ["R@10, R@15, R@20, R@25 left out: the bank has only 9 entries"]
    assert found.settings["view"]["clips"] == 10
    assert (found.settings["view"]["crops"], found.settings["view"]["crop"]) == (3, 32)
    assert read_result(tmp_path / "out") == found
    for name in ("recall.png", "neighbours.png"):
        assert (tmp_path / "out" / name).read_bytes().startswith(b"\x89PNG")
    assert "6 queries, 3 classes, features of 32 numbers over 10 clips × 3 crops" in capsys.readouterr().out
    assert [row[0].text for row in drawn] == ["blue"] * 2 + ["green"] * 2 + ["red"] * 2
    for row in drawn:
        assert len(row) == 4
        assert row[1].text.split()[1] == row[0].text
        assert row[0].image.shape == (32, 2 * 32 + 2, 3)
        colour = {"red": 0, "green": 1, "blue": 2}[row[1].text.split()[1]]
        assert row[1].image[:, :32].mean((0, 1)).argmax() == colour

    # The features are kept with names and labels, and are not computed again.
    files = sorted((tmp_path / "features").iterdir())
    bank, queries = (load_features(path) for path in files)
    assert [path.name.split("_")[0] for path in files] == ["bank", "queries"]
    assert (len(bank.names), len(queries.names), bank.classes) == (9, 6, ["blue", "green", "red"])
    monkeypatch.setattr("sce_fast.evaluate.store.extract_features", None)
    with pytest.raises(ValueError, match="holds results already; pass --resume"):
        retrieval(data / "network.safetensors", **sets, out=tmp_path / "out")
    again = retrieval(data / "network.safetensors", **sets, out=tmp_path / "out", resume=True)
    assert again.rows == found.rows

    # As feature files they give the same recall.
    from_files = retrieval(None, bank=files[0], queries=files[1], out=tmp_path / "of_files", device="cpu")
    assert from_files.rows == found.rows
    assert sorted(path.name for path in (tmp_path / "of_files").iterdir()) == [
        "recall.png",
        "results.json",
        "table.txt",
    ]


def test_wrong_and_random_classes_are_found_as_often_as_they_should_be(data, tmp_path):
    """Half of the queries have the class of another colour; then each query stands once for each class."""
    colours = sorted(path.name for path in (data / "queries").iterdir())
    lists = {"half": "", "random": ""}
    for number, colour in enumerate(colours):
        for i in (3, 4):
            wrong = colours[(number + 1) % 3]
            lists["half"] += f"queries/{colour}/{i}.avi\t{wrong if i == 3 else colour}\n"
            lists["random"] += "".join(f"queries/{colour}/{i}.avi\t{other}\n" for other in colours)
    for (name, lines), expected in zip(lists.items(), (1 / 2, 1 / 3), strict=True):
        queries = data / f"{name}.txt"
        queries.write_text(lines)
        sets = {"bank": data / "bank", "queries": queries, "features": tmp_path / "features", "device": "cpu"}
        settings = {"recall_at": (1, 3, 9), "clips": 1, "crops": 1, "out": tmp_path / name}
        found = retrieval(data / "network.safetensors", **sets, **settings)
        assert [found.rows[0][f"R@{k}"] for k in (1, 3, 9)] == pytest.approx([expected, expected, 1.0])


def test_published_splits(data, tmp_path, capsys):
    """UCF101's lists name the sets; a missing file is counted and named, in the results as well."""
    split = tmp_path / "ucfTrainTestlist"
    split.mkdir()
    (split / "classInd.txt").write_text("1 red\n2 green\n3 blue\n")
    (split / "trainlist02.txt").write_text("red/0.avi 1\ngreen/1.avi 2\nblue/2.avi 3\nred/gone.avi 1\n")
    (split / "testlist02.txt").write_text("red/2.avi\ngreen/2.avi\n")
    settings = {"recall_at": (1,), "clips": 1, "crops": 1, "out": tmp_path / "out", "device": "cpu"}
    published = module.PublishedSplit(split=split, videos=data / "bank", split_number=2)
    found = retrieval(data / "network.safetensors", published=published, features=tmp_path / "features", **settings)
    assert found.rows[0]["R@1"] == 1.0
    line = f"Warning: 1 of 4 files of {split / 'trainlist02.txt'} is missing and left out: red/gone.avi"
    assert found.notes == [line]
    assert line in capsys.readouterr().err
    names = ("bank_samples", "query_samples", "missing_bank", "missing_queries", "split_number")
    assert [found.settings[name] for name in names] == [3, 2, 1, 0, 2]

    settings = {"neighbours": (1,), "features": tmp_path / "features", "out": tmp_path / "knn", "device": "cpu"}
    of_knn = knn(data / "network.safetensors", published=published, **settings)
    assert (of_knn.rows[0]["top1"], of_knn.notes) == (1.0, [line])
    with pytest.raises(ValueError, match=r"split=.*, videos=None: expected both or neither"):
        knn(data / "network.safetensors", published=module.PublishedSplit(split=split))
    with pytest.raises(ValueError, match=r"split=.*: give a run or an exported backbone, too"):
        retrieval(None, published=published)


def test_results_do_not_depend_on_the_batch_size(data):
    index, view = index_videos(data / "queries"), ClipEvaluationView(resize=32, crop=32, sampling=SAMPLING, clips=3)
    bank = index_videos(data / "bank")
    network = open_backbone(data / "network.safetensors").network
    ones, fours = (
        [extract_features(network, i, view, device=CPU, batch_size=size) for i in (bank, index)] for size in (1, 4)
    )
    for one, four in zip(ones, fours, strict=True):
        torch.testing.assert_close(one, four, rtol=1e-5, atol=1e-6)
    labels = torch.as_tensor(bank.labels), torch.as_tensor(index.labels)
    found = [retrieve(b, labels[0], q, labels[1], at=(1, 5)).recall for b, q in (ones, fours)]
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"recall_at": (0,)}, r"at=\(0,\): expected one or more numbers"),
        ({"recall_at": (100,)}, r"recall_at=\(100,\): expected numbers up to 9, the size of the bank"),
        ({"crops": 2}, "crops=2: expected 1 or 3 crops"),
        ({"clips": 0}, "clips=0: expected at least 1 clip"),
        ({"queries": None}, r"bank=.*, queries=None: expected both or neither"),
        ({"bank": None, "queries": None}, r"names no evaluation folders: give --bank and --queries"),
        ({"published": module.PublishedSplit(split=module.Path("x"))}, "split=x: expected two sets or a split, not"),
    ],
)
def test_wrong_options(data, change, message):
    settings = {"bank": data / "bank", "queries": data / "queries", "device": "cpu"}
    with pytest.raises(ValueError, match=message):
        retrieval(data / "network.safetensors", **{**settings, **change})


def test_feature_files_need_no_options_of_a_backbone():
    files = {"bank": "bank.safetensors", "queries": "queries.safetensors"}
    options = {"clips": 3, "crops": 1, "size": 64, "frame_rate": 3.0, "features": "kept", "batch_size": 2}
    with pytest.raises(ValueError, match="expected none of them, since without a run, bank and queries are") as error:
        retrieval(None, **files, **options, foreign=Foreign(backbone="r3d50", frames=16), device="cpu")
    for name, value in {**options, "backbone": "r3d50", "frames": 16}.items():
        assert f"{name}={value}" in str(error.value)


def test_images_are_retrieved_by_their_centre_crops(tmp_path, data):
    """A backbone of images shows each image once; a split of videos is refused."""
    image_sets.class_folders(tmp_path / "mine", image_sets.coloured, images=6)
    write_backbone(tmp_path / "network.safetensors")
    sets = {"bank": tmp_path / "mine" / "train", "queries": tmp_path / "mine" / "test"}
    found = retrieval(tmp_path / "network.safetensors", **sets, recall_at=(1,), device="cpu")
    assert found.rows[0]["R@1"] > found.rows[1]["R@1"]
    assert "clips" not in found.settings["view"]
    assert "images in the bank" in found.title
    assert "clips" not in found.title
    assert (tmp_path / "network_evaluations" / "retrieval" / "neighbours.png").exists()
    split = tmp_path / "splits"
    split.mkdir()
    for name in ("red", "green"):
        (split / f"{name}_test_split1.txt").write_text("0.avi 1\n1.avi 2\n")
    with pytest.raises(ValueError, match=r"clips=10, frame_rate=30\.0: expected none of them, since the backbone"):
        retrieval(tmp_path / "network.safetensors", **sets, clips=10, frame_rate=30.0, device="cpu")
    published = module.PublishedSplit(split=split, videos=data / "bank")
    with pytest.raises(ValueError, match=r"splits lists videos, but the backbone takes images"):
        retrieval(tmp_path / "network.safetensors", published=published, device="cpu")
