"""The settings of the recipe `videos` as a function of videos, given settings and device."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.videos import write_video
from sce_fast.config import OptimizerConfig, TrainConfig
from sce_fast.config.subset import SubsetConfig
from sce_fast.recipes import videos
from sce_fast.recipes.adapt_videos import LARGE, FoundVideos, adapted_to_videos
from sce_fast.recipes.changes import changed
from sce_fast.recipes.kinetics import kinetics400_r3d50
from sce_fast.recipes.videos import survey


def config_for(found: FoundVideos, *, gpu: bool = False, **given) -> TrainConfig:
    return changed(videos("nowhere"), adapted_to_videos(found, given, gpu=gpu))


@pytest.mark.parametrize("gpu", [False, True])
def test_large_data_sets_get_the_papers_settings(gpu):
    papers = kinetics400_r3d50("nowhere", "runs/videos")
    for found in (FoundVideos(LARGE, 40, 10.0), FoundVideos(240_000, 340, 5.12)):
        config = config_for(found, gpu=gpu)
        for section in ("clips", "views", "model", "evaluation"):
            assert getattr(config, section) == getattr(papers, section)
        assert dataclasses.replace(config.loss, queue_size=65536) == papers.loss
        assert dataclasses.replace(config.optimizer, warmup_epochs=35) == papers.optimizer
        assert config.optimizer.warmup_epochs / config.epochs == 35 / 200
        assert (config.batch_size, config.accumulation, config.loss.queue_size) == (256, 4, 16384)
        assert config.precision == ("bfloat16" if gpu else "float32")


@given(
    count=st.integers(1, LARGE + 10),
    side=st.integers(1, 5000),
    seconds=st.floats(0.05, 5000),
    epochs=st.integers(1, 1000),
    gpu=st.booleans(),
    batch_size=st.none() | st.integers(1, 5000),
    symmetric=st.none() | st.booleans(),
    name=st.sampled_from([None, "sgd", "lars", "adamw"]),
)
def test_every_data_set_gets_a_valid_config(count, side, seconds, epochs, gpu, batch_size, symmetric, name):
    given = {"epochs": epochs}
    given |= {} if batch_size is None else {"batch_size": batch_size}
    given |= {} if symmetric is None else {"model": {"symmetric": symmetric}}
    given |= {} if name is None else {"optimizer": {"name": name}}
    config = config_for(FoundVideos(count, side, seconds), gpu=gpu, **given)  # checks every value
    keys = config.batch_size * (2 if config.model.symmetric else 1)
    assert config.loss.queue_size % keys == 0
    assert config.loss.queue_size <= max(count // 4 if count < LARGE else 16384, keys)
    assert config.rank_batch(1) <= max(64, config.batch_size if count < LARGE else 0)
    assert config.optimizer.warmup_epochs <= 0.175 * epochs
    assert batch_size is not None or config.batch_size <= count
    assert name is None or config.optimizer.name == name
    sampling = config.clips.sampling()
    assert sampling.frames == 8
    assert sampling.seconds == pytest.approx(min(2.56, seconds / 2), abs=1e-3)
    assert config.evaluation_view().crop <= max(side, 224)


def test_a_small_data_set_on_a_cpu_and_on_a_gpu():
    found = FoundVideos(videos=3074, side=240, seconds=3.0)
    config = config_for(found)
    assert (config.batch_size, config.loss.queue_size, config.accumulation) == (64, 192, 1)
    assert (config.views.names, config.views.sizes, config.views.brightness) == (("weak", "strong"), (64,), ())
    assert (config.model.backbone, config.model.width, config.model.small_input) == ("r3d18", 16, False)
    assert (config.optimizer.name, config.model.symmetric) == ("sgd", False)
    assert (config.clips.seconds, config.clips.temporal_difference) == (1.5, 0.0)
    assert config.evaluation_view().crop == config.evaluation_view().resize == 94
    on_gpu = config_for(found, gpu=True)
    assert (on_gpu.model.width, on_gpu.views.sizes, on_gpu.precision) == (64, (112,), "bfloat16")
    tiny = config_for(FoundVideos(videos=3074, side=48, seconds=3.0))
    assert (tiny.model.small_input, tiny.views.sizes) == (True, (32,))


def test_a_transformer_is_evaluated_at_the_size_of_its_views():
    """Another size need not be a whole number of its patches."""
    found = FoundVideos(videos=3074, side=240, seconds=3.0)
    for name, crop in (("vit_small_video", 64), ("s3d", 94)):
        config = config_for(found, model={"backbone": name})
        assert (config.views.sizes, config.evaluation_view().crop) == ((64,), crop)


def test_given_settings_stay_and_the_others_follow_them():
    found = FoundVideos(3074, 240, 3.0)
    config = config_for(
        found, epochs=20, batch_size=512, views={"sizes": 96, "hue": 0.1}, clips={"stride": 4},
        model={"backbone": "r3d50"}, optimizer=OptimizerConfig(name="adamw", base_learning_rate=1e-3, warmup_epochs=1),
    )  # fmt: skip
    assert (config.epochs, config.batch_size, config.views.sizes, config.views.hue) == (20, 512, (96,), (0.1,))
    assert (config.clips.stride, config.clips.sampling().seconds) == (4, None)
    assert (config.model.backbone, config.model.width, config.loss.queue_size) == ("r3d50", 64, 512)
    assert config.optimizer == OptimizerConfig(name="adamw", base_learning_rate=1e-3, warmup_epochs=1)
    large = config_for(FoundVideos(LARGE, 340, 10.0), batch_size=96)
    assert (large.accumulation, large.rank_batch(1)) == (2, 48)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"epochs": "3"}, "epochs='3': expected a whole number"),
        ({"clips": 3}, "clips=3: expected a ClipsConfig"),
        ({"clips": {"frames": 0}}, "clips.frames=0"),
        ({"clips": {"frame_rate": "x"}}, "clips.frame_rate='x': expected a number"),
        ({"views": {"sizes": "x"}}, "views.sizes='x': expected a whole number"),
        ({"model": {"backbone": "resnet18"}}, "model.backbone='resnet18' takes images"),
    ],
)
def test_wrong_settings_are_named(clip_folder, given, message):
    with pytest.raises((ValueError, TypeError), match=message):
        videos(clip_folder, **given)


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("videos")
    for i, frames in enumerate((20, 30, 60)):
        write_video(root / "films" / f"{i}.mp4", "mpeg4", frames=frames, size=(48, 64))
    (root / "films" / "bad.mp4").write_bytes(b"")
    return root


def test_the_recipe_says_what_it_found_and_chose(clip_folder, capsys):
    assert survey(clip_folder) == FoundVideos(4, 48, pytest.approx(1.2))
    config = videos(clip_folder, epochs=7, device="cpu")
    text = " ".join(capsys.readouterr().err.split())
    assert text.startswith("Found 4 videos, median shorter side 48 pixels, median length 1.2 s, in ")
    for chosen in (
        "r3d18 of width 16, clips of 8 frames (0.6 s) of 32 pixels",
        "batch 4",
        "queue 4",
        "sgd",
        "0.7 of 7",
    ):
        assert chosen in text
    assert dataclasses.replace(videos(clip_folder, **{"epochs": 7, "device": "cpu"}), seed=config.seed) == config


def test_the_recipe_follows_the_part_of_the_videos(clip_folder, tmp_path, capsys):
    (longest,) = (path.name for path in (clip_folder / "films").glob("2.*"))
    (tmp_path / "list.txt").write_text(f"{longest}\n")
    assert survey(clip_folder, None, SubsetConfig(files=tmp_path / "list.txt")) == FoundVideos(1, 48, 2.4)
    config = videos(clip_folder, subset={"share": 0.5}, device="cpu")
    assert "Found 2 videos" in capsys.readouterr().err
    assert (config.subset, config.batch_size) == (SubsetConfig(share=0.5), 2)
    (tmp_path / "list.txt").write_text("9.mp4\n")
    assert survey(clip_folder, None, SubsetConfig(files=tmp_path / "list.txt")) is None  # training names what is wrong


@pytest.mark.parametrize("name", ["nowhere", "empty", "list.txt"])
def test_without_readable_videos_nothing_is_chosen_or_said(tmp_path, capsys, name):
    (tmp_path / "empty").mkdir()
    (tmp_path / "list.txt").write_text("gone.mp4\n")
    assert survey(tmp_path / name) is None
    assert videos(tmp_path / name).model == kinetics400_r3d50("x").model
    assert capsys.readouterr().err == ""
