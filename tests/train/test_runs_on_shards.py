"""Runs on tar shards: they end with the bits of runs on files, also after an interruption, and on part of the data."""

import gzip
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from helpers.runs import assert_same_run, assert_same_tensors, small_config
from helpers.shards import tar_folder, write_tar
from sce_fast.config import EvaluationConfig, from_json, replace, to_json
from sce_fast.data.class_lists import CLASS_LISTS
from sce_fast.data.index import index_images
from sce_fast.data.subset import subset
from sce_fast.recipes import folder
from sce_fast.recipes.imagenet100 import imagenet100
from sce_fast.tools.embed import embed
from sce_fast.train import train
from sce_fast.train.data import open_data
from sce_fast.train.step import TrainingStep


@pytest.fixture(scope="module")
def shards(photo_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    tar_folder(photo_folder, folder, shards=12)
    return folder


def stop_before(monkeypatch, number, act):
    original = TrainingStep.__call__

    def step(self, parts, *, number=0, **settings):
        if number == stopped:
            act()
        return original(self, parts, number=number, **settings)

    stopped = number
    monkeypatch.setattr(TrainingStep, "__call__", step)


def interrupt():
    raise KeyboardInterrupt


@pytest.mark.slow
def test_a_run_on_shards_resumes_with_the_same_bits(photo_folder, shards, tmp_path, monkeypatch):
    part = small_config(shards, tmp_path / "part", evaluation=EvaluationConfig())
    with monkeypatch.context() as patch:
        stop_before(patch, 5, interrupt)
        with pytest.raises(KeyboardInterrupt):
            train(part)
    train(replace(part, resume=True))
    files = small_config(photo_folder, tmp_path / "files", evaluation=EvaluationConfig())
    train(files)
    assert_same_run(part.out, files.out)
    listed = json.loads(gzip.decompress((part.out / "images.json.gz").read_bytes()))
    assert [name for name, _ in listed] == list(index_images(shards).listing.names)
    features = embed(part.out, shards, device="cpu")
    assert features.exists()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:(?s).*files cannot be used", "ignore:epochs=")
def test_a_shard_that_vanishes_stays_set_aside(shards, tmp_path, monkeypatch):
    data = shutil.copytree(shards, tmp_path / "data")
    config = small_config(data, tmp_path / "run", evaluation=EvaluationConfig())
    with monkeypatch.context() as patch:
        patch.setattr("sce_fast.data.sources.reading.OPEN_FILES", 0)  # an open file stays readable
        stop_before(patch, 1, (data / "part-004.tar").unlink)
        train(config)
    bad = (config.out / "bad_files.txt").read_text()
    assert bad == "".join(f"{data}/{name}\tmissing\n" for name in index_images(shards).listing.names[8:10])
    longer = replace(config, resume=True, epochs=4, stretch_schedule=True)
    train(longer)  # the shard is still gone, which the run knows
    write_tar(data / "part-013.tar", [("new.jpg", (data / "part-000.tar").read_bytes()[:100])])
    with pytest.raises(ValueError, match=r"1 new: part-013.tar!new.jpg"):
        train(replace(longer, epochs=5))


@pytest.mark.filterwarnings("ignore:epochs=")
def test_a_list_of_images_in_one_line_is_read_as_before(shards, tmp_path):
    config = small_config(shards, tmp_path / "run", epochs=1, evaluation=EvaluationConfig())
    train(config)
    path = config.out / "images.json.gz"
    path.write_bytes(gzip.compress(json.dumps(json.loads(gzip.decompress(path.read_bytes()))).encode()))
    train(replace(config, resume=True, epochs=2, stretch_schedule=True))


def test_a_run_on_part_of_the_data(photo_folder, tmp_path):
    (tmp_path / "classes.txt").write_text("temple\n")
    chosen = {"classes": tmp_path / "classes.txt", "per_class": 9, "seed": 3}
    config = small_config(photo_folder, tmp_path / "run", epochs=1)
    config = replace(config, subset=chosen)
    index = open_data(config)
    assert len(index) == 9
    assert index.listing.classes == ["temple"]
    assert index.labels.tolist() == [0] * 9
    assert set(index.listing.names) < {name for name in index_images(photo_folder).listing.names if "temple" in name}
    assert train(config).samples == 9
    with pytest.raises(ValueError, match=r"subset.seed: 3 then, 4 now"):
        train(replace(config, resume=True, subset={"seed": 4}))
    assert from_json(json.loads(json.dumps(to_json(config)))) == config
    adapted = folder(photo_folder, subset={"share": 0.5})
    assert adapted.batch_size == 8  # for 12 images, not for 24


def test_parts_of_shards_are_those_of_files(photo_folder, shards):
    files, packed = index_images(photo_folder), index_images(shards)
    for settings in ({"share": 0.3}, {"per_class": 4, "seed": 7}):
        parts = [subset(index, **settings) for index in (files, packed)]
        assert np.array_equal(parts[0].sizes, parts[1].sizes)
        assert parts[0].labels.tolist() == parts[1].labels.tolist()


def test_imagenet100_is_a_list_of_classes(photo_folder):
    assert len(set(CLASS_LISTS["imagenet100"])) == 100
    assert imagenet100(photo_folder).subset.classes == Path("imagenet100")
    with pytest.raises(ValueError, match=r"imagenet100 names classes that .* lacks: n01558993, n01692333"):
        subset(index_images(photo_folder), classes="imagenet100")


def test_the_same_files_in_tables_give_the_same_run(photo_folder, shards, tmp_path):
    pytest.importorskip("pyarrow")
    from helpers.shards import write_table

    index = index_images(photo_folder)
    write_table(tmp_path / "data" / "train.parquet", [index.files.content(i).tobytes() for i in range(24)], [0] * 24)
    runs = [small_config(data, tmp_path / name, epochs=1, evaluation=EvaluationConfig()) for name, data in
            (("tar", shards), ("table", tmp_path / "data"))]  # fmt: skip
    for config in runs:
        train(config)
    assert_same_tensors(runs[0].out, runs[1].out)
