"""The Kinetics recipes: every published value, written down independently of the recipes."""

import dataclasses

import pytest

from sce_fast.data.image.augment import Augmentation
from sce_fast.data.video.clips import ClipSampling
from sce_fast.recipes import RECIPES, device

FINAL = {"jitter": (0.8, 0.8, 0.4, 0.2), "difference": 0.2, "tau_m": 0.05}
HALF = {"jitter": (0.4, 0.4, 0.2, 0.1), "difference": 0.0, "tau_m": 0.07}
STANDARD, SMALL = {"frames": 8, "seconds": 2.56, "size": 224}, {"frames": 16, "seconds": 1.28, "size": 112}
PUBLISHED = {
    "kinetics200-r3d18-baseline": {**HALF, **STANDARD, "backbone": "r3d18", "hidden": 1024, "queue": 32768},
    "kinetics200-r3d18": {**FINAL, **STANDARD, "backbone": "r3d18", "hidden": 1024, "queue": 32768},
    "kinetics200-r3d18-small": {**HALF, **SMALL, "backbone": "r3d18", "hidden": 1024, "queue": 32768},
    "kinetics400-r3d18": {**FINAL, **STANDARD, "backbone": "r3d18", "hidden": 1024, "queue": 65536},
    "kinetics400-r3d18-small": {**FINAL, **SMALL, "backbone": "r3d18", "hidden": 1024, "queue": 65536},
    "kinetics400-r3d50": {**FINAL, **STANDARD, "backbone": "r3d50", "hidden": 4096, "queue": 65536},
    "kinetics400-r3d50-16": {**FINAL, **STANDARD, "frames": 16, "backbone": "r3d50", "hidden": 4096, "queue": 65536},
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_recipes_have_the_published_settings(name):
    config, published = RECIPES[name]("kinetics"), PUBLISHED[name]
    assert config.clips.sampling() == ClipSampling(
        frames=published["frames"], seconds=published["seconds"], temporal_difference=published["difference"]
    )
    brightness, contrast, saturation, hue = published["jitter"]
    first = Augmentation(
        size=published["size"], scale=(0.2, 0.766), ratio=(3 / 4, 4 / 3), flip=0.5, jitter=0.8, brightness=brightness,
        contrast=contrast, saturation=saturation, hue=hue, grayscale=0.2, blur=1.0, blur_sigma=(0.1, 2.0), solarize=0.0,
        mean=(0.45,) * 3, std=(0.225,) * 3,
    )  # fmt: skip
    assert config.views.augmentations() == (first, dataclasses.replace(first, blur=0.1, solarize=0.2))
    model, loss, optimizer = config.model, config.loss, config.optimizer
    assert (model.backbone, model.width, model.small_input) == (published["backbone"], 64, False)
    assert model.projector_hidden == (published["hidden"],) * 2
    assert (model.dim, model.projector_norm, model.predictor_hidden) == (256, "all", published["hidden"])
    assert (model.symmetric, model.key_views, model.batch_norm) == (True, 2, "sync")
    assert (model.momentum, model.momentum_schedule) == (0.99, "cosine")
    assert (loss.temperature, loss.target_temperature, loss.coefficient) == (0.1, published["tau_m"], 0.5)
    assert loss.queue_size == published["queue"]
    assert (optimizer.name, optimizer.momentum, optimizer.weight_decay) == ("lars", 0.9, 1e-6)
    assert (config.epochs, config.batch_size, optimizer.warmup_epochs) == (200, 512, 35)
    assert config.learning_rate == pytest.approx(4.8)


def test_every_kinetics_recipe_is_checked():
    assert {name for name in RECIPES if name.startswith("kinetics")} == PUBLISHED.keys()


def test_precision_is_half_on_a_gpu_and_a_choice_of_the_user(monkeypatch):
    recipe = RECIPES["kinetics400-r3d50"]
    assert recipe("kinetics", device="cpu").precision == "float32"
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert device.has_gpu("auto")
    assert not device.has_gpu("cpu")
    assert recipe("kinetics").precision == "float16"
    assert recipe("kinetics", device="cpu").precision == "float32"
    assert recipe("kinetics", precision="bfloat16").precision == "bfloat16"


def test_strides_and_image_networks_are_settings_like_others():
    recipe = RECIPES["kinetics400-r3d18"]
    assert recipe("kinetics", clips={"stride": 8}).clips.sampling() == ClipSampling(
        frames=8, seconds=None, stride=8, temporal_difference=0.2
    )
    with pytest.raises(ValueError, match=r"clips.seconds=3: expected None with clips.stride=8, which replaces it"):
        recipe("kinetics", clips={"stride": 8, "seconds": 3})
    with pytest.raises(ValueError, match=r"clips.frames=8: expected 0, since model.backbone='resnet50' takes images"):
        recipe("kinetics", model={"backbone": "resnet50"})
