"""The settings of the recipe `folder` as a function of images, given settings and device."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sce_fast.config import ModelConfig, OptimizerConfig, TrainConfig
from sce_fast.recipes import folder
from sce_fast.recipes.adapt import LARGE, Found, adapted
from sce_fast.recipes.changes import changed


def config_for(found: Found, *, gpu: bool = False, **given) -> TrainConfig:
    return changed(folder("nowhere"), adapted(found, given, gpu=gpu))


@pytest.mark.parametrize("gpu", [False, True])
def test_large_data_sets_get_the_papers_settings(gpu):
    papers = folder("nowhere")
    assert papers.model == ModelConfig()
    assert papers.optimizer == OptimizerConfig(base_learning_rate=0.6)
    assert papers.views.sizes == (224,)
    for found in (Found(LARGE, 40), Found(1_281_167, 375)):
        assert config_for(found, gpu=gpu) == papers


@given(
    images=st.integers(1, LARGE + 10),
    side=st.integers(1, 5000),
    epochs=st.integers(1, 1000),
    gpu=st.booleans(),
    batch_size=st.none() | st.integers(1, 5000),
    symmetric=st.none() | st.booleans(),
    name=st.sampled_from([None, "sgd", "lars", "adamw"]),
)
def test_every_data_set_gets_a_valid_config(images, side, epochs, gpu, batch_size, symmetric, name):
    given = {"epochs": epochs}
    given |= {} if batch_size is None else {"batch_size": batch_size}
    given |= {} if symmetric is None else {"model": {"symmetric": symmetric}}
    given |= {} if name is None else {"optimizer": {"name": name}}
    config = config_for(Found(images, side), gpu=gpu, **given)  # checks every value
    keys = config.batch_size * (2 if config.model.symmetric else 1)
    assert config.loss.queue_size % keys == 0
    assert config.loss.queue_size <= max(images // 4, keys)
    assert config.epochs == epochs
    assert config.optimizer.warmup_epochs <= epochs / 10
    assert batch_size is not None or config.batch_size <= images
    assert name is None or config.optimizer.name == name
    assert config.evaluation_view().crop <= max(side, 224)


def test_a_small_data_set_on_a_cpu_and_on_a_gpu():
    found = Found(images=3074, side=64)
    config = config_for(found)
    assert (config.batch_size, config.loss.queue_size) == (64, 192)
    assert (config.views.names, config.views.sizes) == (("weak", "strong"), (48,))
    assert (config.optimizer.name, config.model.symmetric) == ("sgd", False)
    assert config.evaluation_view().crop == config.evaluation_view().resize == 64
    on_gpu = config_for(found, gpu=True)
    assert (on_gpu.model.backbone, on_gpu.model.width, on_gpu.model.small_input) == ("resnet18", 64, True)
    photographs = Found(images=3074, side=500)
    assert config_for(photographs).views.sizes == (96,)
    on_gpu = config_for(photographs, gpu=True)
    assert (on_gpu.model.backbone, on_gpu.model.small_input, on_gpu.views.sizes) == ("resnet50", False, (224,))
    assert on_gpu.evaluation == folder("nowhere").evaluation


def test_a_short_run_has_a_teacher_that_follows_faster():
    momenta = [config_for(Found(1438, 40), epochs=epochs).model.momentum for epochs in (1, 30, 100, 1000)]
    assert momenta == sorted(momenta)
    assert momenta[0] == 0.9
    assert momenta[1] == pytest.approx(1 - 1 / (0.03 * 30 * 44), abs=1e-4)  # batches of 32
    assert momenta[3] == 0.99


def test_given_settings_stay_and_the_others_follow_them():
    config = config_for(
        Found(3074, 64), epochs=20, batch_size=512, views={"sizes": 96}, model=ModelConfig(backbone="resnet34"),
        optimizer={"name": "adamw"}, loss={"target_temperature": 0.06},
    )  # fmt: skip
    assert (config.epochs, config.batch_size, config.views.sizes) == (20, 512, (96,))
    assert config.model == ModelConfig(backbone="resnet34")  # a whole section is given, so nothing in it is chosen
    assert config.loss.queue_size == 1024  # two views give keys, so this is one step
    assert config.loss.target_temperature == 0.06
    assert (config.optimizer.base_learning_rate, config.optimizer.weight_decay) == (5e-4, 0.05)
    assert config.optimizer.warmup_epochs == 2
    large = config_for(Found(LARGE, 400), epochs=20, batch_size=16384, optimizer={"name": "adamw"})
    assert (large.optimizer.base_learning_rate, large.optimizer.warmup_epochs) == (5e-4, 2)
    assert large.loss.queue_size == 32768
    named = config_for(Found(3074, 40), model={"backbone": "timm:vit_tiny_patch16_224"})
    assert (named.model.width, named.model.small_input) == (64, False)  # what timm networks take
    assert named.views.sizes == (32,)  # whole patches
    assert named.evaluation_view().crop == 32
    named = config_for(Found(3074, 40), model={"backbone": "resnet34"})
    assert (named.model.width, named.model.small_input) == (64, True)
    assert named.evaluation_view().crop == 40


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"epochs": "3"}, "epochs='3': expected a whole number"),
        ({"batch_size": 0}, "batch_size=0: expected at least 1"),
        ({"epoch": 3}, "unknown setting 'epoch'; did you mean epochs"),
        ({"model": 3}, "model=3: expected a ModelConfig"),
        ({"views": {"sizes": "x"}}, "views.sizes='x': expected a whole number"),
        ({"model": {"key_views": None}}, "model.key_views=None: expected a whole number"),
    ],
)
def test_wrong_settings_are_named(photo_folder, given, message):
    with pytest.raises((ValueError, TypeError), match=message):
        folder(photo_folder, **given)


def test_the_recipe_says_what_it_found_and_chose(photo_folder, capsys):
    config = folder(photo_folder, epochs=7, device="cpu")
    text = " ".join(capsys.readouterr().err.split())
    assert text.startswith("Found 24 images, median shorter side ")
    assert "to train on a CPU" in text
    for chosen in ("resnet18 of width", "batch 8", "queue 8", "sgd", "warm-up of 0.7 of 7 epochs", "Options override"):
        assert chosen in text
    assert dataclasses.replace(folder(photo_folder, **{"epochs": 7, "device": "cpu"}), seed=config.seed) == config


@pytest.mark.parametrize("name", ["nowhere", "empty", "list.txt"])
def test_without_readable_images_nothing_is_chosen_or_said(tmp_path, capsys, name):
    (tmp_path / "empty").mkdir()
    (tmp_path / "list.txt").write_text("gone.jpg\n")
    assert folder(tmp_path / name).model == ModelConfig()
    assert capsys.readouterr().err == ""
