"""The report's pictures: what they show, for runs with and without labels, and for logs of earlier versions."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.runs import small_config
from helpers.videos import number_of, write_video
from sce_fast.config import ClipsConfig, EvaluationConfig, ModelConfig, ViewsConfig
from sce_fast.data.index import index_images
from sce_fast.tools import neighbours, report
from sce_fast.tools.report import _pool, loss_curve, write_report
from sce_fast.train import train


@pytest.fixture
def drawn(monkeypatch):
    """Return the rows of images that are drawn, by file name."""
    rows_of, draw = {}, report.draw_rows

    def note(rows, path, **settings):
        rows_of[path.name] = rows
        return draw(rows, path, **settings)

    monkeypatch.setattr(report, "draw_rows", note)
    monkeypatch.setitem(report.QUERIES, "images", 4)
    return rows_of


def is_drawn(path):
    with Image.open(path) as picture:
        return np.array(picture.convert("L")).std() > 5


def test_neighbours_without_labels_come_from_the_images_of_the_run(photo_folder, tmp_path, drawn):
    """One image is there twice: the other one is its nearest neighbour, but no image is its own."""
    data = tmp_path / "data"
    data.mkdir()
    for i, path in enumerate(sorted(photo_folder.rglob("*.jpg"))[:10], start=1):
        shutil.copy(path, data / f"{i:02d}.jpg")
    shutil.copy(data / "10.jpg", data / "00.jpg")
    (data / "bad.jpg").write_bytes(b"")
    config = small_config(data, tmp_path / "run", evaluation=EvaluationConfig(), epochs=1)
    with pytest.warns(UserWarning, match="1 of 12 files cannot be used"):
        train(config)
    with pytest.warns(UserWarning, match="1 of 12 files cannot be used"):
        names = [path.name for path in write_report(config.out)]
    assert names == ["loss.png", "views.png", "neighbours.png"]
    assert all(is_drawn(config.out / name) for name in names)
    rows = drawn["neighbours.png"]
    assert [len(row) for row in rows] == [6] * 4
    for row in rows:
        similarities = [float(tile.text) for tile in row[1:]]
        assert similarities == sorted(similarities, reverse=True)
        assert row[0].text == ""
    assert [torch.equal(row[1].image, row[0].image) for row in rows] == [True, False, False, False]
    assert rows[0][1].text == "1.00"


@pytest.mark.slow
def test_neighbours_with_labels_have_their_classes(photo_folder, tmp_path, drawn):
    config = small_config(photo_folder, tmp_path / "run", epochs=1)
    train(config)
    assert [path.name for path in write_report(config.out)] == ["loss.png", "knn.png", "views.png", "neighbours.png"]
    rows = drawn["neighbours.png"]
    assert [row[0].text for row in rows] == ["flower"] * 2 + ["temple"] * 2
    for row in rows:
        assert row[1].text == f"1.00 {row[0].text}"  # train and test are the same folder here
        for tile in row[1:]:
            same = tile.text.split()[1] == row[0].text
            assert tile.color == (neighbours.SAME_CLASS if same else neighbours.OTHER_CLASS)


@pytest.mark.slow
def test_videos_appear_as_film_strips(tmp_path, drawn):
    """A strip of an evaluated video shows the frames of the clip in its middle, in order."""
    for i in range(8):
        codec = "h264" if i % 2 else "vp9"
        write_video(tmp_path / "data" / "ab"[i // 4] / str(i), codec, frames=20, size=(64, 64), seed=i)
    config = small_config(
        tmp_path / "data",
        tmp_path / "run",
        epochs=1,
        views=ViewsConfig(names=("alpha", "beta"), sizes=(32,)),
        clips=ClipsConfig(frames=4, stride=3, temporal_difference=0.2),
        model=ModelConfig(backbone="r3d18", width=8, projector_hidden=(16,), dim=8, predictor_hidden=16),
        evaluation=EvaluationConfig(
            train=tmp_path / "data", test=tmp_path / "data", resize=64, crop=64, clips=2, neighbours=3
        ),
    )
    train(config)
    assert [path.name for path in write_report(config.out)] == ["loss.png", "knn.png", "views.png", "neighbours.png"]
    assert all(is_drawn(config.out / name) for name in ("views.png", "neighbours.png"))
    pairs, rows = drawn["views.png"], drawn["neighbours.png"]
    assert [[tile.image.shape for tile in row] for row in pairs] == [[(32, 4 * 34 - 2, 3)] * 2] * 6
    assert [tile.heading for tile in pairs[0]] == ["view 0, alpha", "view 1, beta"]
    assert [len(row) for row in rows] == [1 + 3] * 8
    for row in rows:
        for tile in row:
            frames = [tile.image[:, start : start + 64].numpy() * 255 for start in range(0, 4 * 68 - 4, 68)]
            assert [number_of(frame) for frame in frames] == [5, 8, 11, 14]
        assert torch.equal(row[0].image, row[1].image)  # train and test are the same folder here
        assert row[1].text == f"1.00 {row[0].text}"


def test_a_pool_is_spread_over_the_images_and_leaves_out_bad_ones(photo_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "POOL", 4)
    (tmp_path / "data").mkdir()
    for path in photo_folder.rglob("*.jpg"):
        shutil.copy(path, tmp_path / "data")
    (tmp_path / "data" / "000.jpg").write_bytes(b"")
    pool = _pool(tmp_path, index_images(tmp_path / "data"))
    assert pool.listing.names == ["001.jpg", "006.jpg", "012.jpg", "018.jpg"]


def test_a_log_of_an_earlier_version_is_drawn(tmp_path):
    events = [{"event": "train", "step": step, "epoch": 0, "loss": 5.0 / step} for step in range(1, 4)]
    old, new, single = (tmp_path / f"{name}.png" for name in ("old", "new", "single"))
    assert is_drawn(loss_curve(events, old))
    loss_curve(events[:1], single)
    loss_curve(
        [{**event, "gradient_norm": None if event["step"] == 2 else 1.0, "images_per_second": 9} for event in events],
        new,
    )
    with Image.open(old) as before, Image.open(new) as after:
        assert after.height > 1.5 * before.height
