"""The recipes of the papers' image runs: every published value, written down independently of the recipes."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest

from sce_fast.cli import Recipe
from sce_fast.config import OptimizerConfig, TrainConfig
from sce_fast.config.subset import SubsetConfig
from sce_fast.data.image.augment import Augmentation, EvaluationView
from sce_fast.recipes import RECIPES
from sce_fast.recipes.published import PUBLISHED

JITTER = {"jitter": 0.8, "brightness": 0.4, "contrast": 0.4, "hue": 0.1, "grayscale": 0.2, "blur_sigma": (0.1, 2.0)}
WEAK = Augmentation(size=224, scale=(0.2, 1.0), ratio=(3 / 4, 4 / 3), flip=0.5)
STRONG = dataclasses.replace(WEAK, **JITTER, saturation=0.4, blur=0.5)
ALPHA = dataclasses.replace(WEAK, **JITTER, saturation=0.2, blur=1.0)
BETA = dataclasses.replace(ALPHA, blur=0.1, solarize=0.2)
GAMMA = dataclasses.replace(ALPHA, blur=0.5, solarize=0.2)
FIVE_CROPS = (192, (0.172, 0.86)), (160, (0.143, 0.715)), (128, (0.114, 0.571)), (96, (0.086, 0.429))

CHANNELS = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2009, 0.1984, 0.2023)),
    "stl10": ((0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)),
    "tiny-imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
SMALL = {  # size of the views, teacher momentum, queue
    "cifar10": (32, 0.99, 4096),
    "cifar100": (32, 0.99, 4096),
    "stl10": (96, 0.996, 16384),
    "tiny-imagenet": (64, 0.996, 16384),
}
IMAGENET = {  # epochs, base learning rate, weight decay
    "imagenet-100-epochs": (100, 0.6, 1e-6),
    "imagenet-200-epochs": (200, 0.3, 1e-6),
    "imagenet-300-epochs": (300, 0.3, 1e-6),
    "imagenet-1000-epochs": (1000, 0.3, 1.5e-6),
    "imagenet-multi-crop": (200, 0.3, 1e-6),
    "imagenet-dino-crops": (200, 0.3, 1e-6),
    "imagenet-moco-v3": (100, 0.6, 1e-6),
}
ABLATIONS = {"imagenet100": 0.5, "imagenet100-infonce": 1.0, "imagenet100-ressl": 0.0, "imagenet-asymmetric": 0.5}  # λ
VITS = ("imagenet-vit-small", "imagenet-vit-base")


def some(settings: object, *names: str) -> tuple[Any, ...]:
    return tuple(getattr(settings, name) for name in names)


def heads(config: TrainConfig) -> tuple[Any, ...]:
    return some(config.model, "projector_hidden", "dim", "projector_norm", "predictor_hidden", "predictor_norm")


@pytest.mark.parametrize("name", SMALL)
def test_small_images(name):
    config, (size, momentum, queue) = RECIPES[name]("data"), SMALL[name]
    mean, std = CHANNELS[name]
    weak, strong = (dataclasses.replace(view, size=size, mean=mean, std=std) for view in (WEAK, STRONG))
    assert config.views.augmentations() == (weak, strong)
    assert some(config, "epochs", "batch_size", "learning_rate", "kind") == (200, 256, 0.06, "images")
    assert some(config.model, "backbone", "width", "small_input", "symmetric") == ("resnet18", 64, True, False)
    assert heads(config) == ((512,), 128, "hidden", 0, "hidden")
    assert some(config.model, "momentum", "momentum_schedule") == (momentum, "constant")
    assert some(config.model, "batch_norm", "batch_norm_groups", "mutual_pass") == ("shuffle", 8, False)
    assert some(config.loss, "temperature", "target_temperature", "coefficient") == (0.1, 0.05, 0.5)
    assert some(config.loss, "queue_size", "batch_keys") == (queue, False)
    assert config.optimizer == OptimizerConfig(
        name="sgd", base_learning_rate=0.06, momentum=0.9, weight_decay=5e-4, warmup_epochs=5
    )
    assert config.evaluation_view() == EvaluationView(resize=size, crop=size, mean=mean, std=std)  # the whole image


def test_small_images_are_evaluated_as_the_settings_say():
    for changes, expected in (
        ({"evaluation": {"crop": 24}}, (32, 24)),
        ({"evaluation": {"crop": 40}}, (40, 40)),
        ({"evaluation": {"resize": 37, "crop": 28}}, (37, 28)),
        ({"views": {"sizes": 48}}, (48, 48)),
    ):
        config = RECIPES["cifar10"]("data", **changes)
        assert some(config.evaluation_view(), "resize", "crop") == expected, changes
    typed = ["--data", "x", "--evaluation.resize", "37", "--evaluation.train", "a", "--evaluation.test", "b"]
    config, _ = Recipe(RECIPES["cifar10"]).parse("sce-fast", typed)
    assert some(config.evaluation, "resize", "crop", "train", "test") == (37, 32, Path("a"), Path("b"))


@pytest.mark.parametrize("name", IMAGENET)
def test_imagenet(name):
    config, (epochs, rate, decay) = RECIPES[name]("data"), IMAGENET[name]
    assert some(config, "epochs", "batch_size", "learning_rate") == (epochs, 4096, pytest.approx(rate * 16))
    assert config.optimizer == OptimizerConfig(
        name="lars", base_learning_rate=rate, momentum=0.9, weight_decay=decay, warmup_epochs=10
    )
    assert some(config.model, "backbone", "width", "small_input") == ("resnet50", 64, False)
    assert some(config.model, "symmetric", "key_views", "batch_norm") == (True, 2, "sync")
    assert some(config.model, "momentum", "momentum_schedule") == (0.99, "cosine")
    like_moco = name == "imagenet-moco-v3"
    assert heads(config) == ((4096,) if like_moco else (4096, 4096), 256, "all", 4096, "all" if like_moco else "hidden")
    assert config.model.mutual_pass == (name == "imagenet-dino-crops")
    targets = some(config.loss, "temperature", "coefficient", "queue_size", "batch_keys")
    assert targets == ((1.0, 1.0, 0, True) if like_moco else (0.1, 0.5, 65536, False))
    assert config.loss.target_temperature == 0.07
    views = (ALPHA, BETA)
    if name == "imagenet-multi-crop":
        views += tuple(dataclasses.replace(GAMMA, size=size, scale=scale) for size, scale in FIVE_CROPS)
    if name == "imagenet-dino-crops":
        large = (dataclasses.replace(view, scale=(0.14, 1.0)) for view in views)
        views = (*large, *[dataclasses.replace(GAMMA, size=96, scale=(0.05, 0.14))] * 8)
    assert config.views.augmentations() == views


@pytest.mark.parametrize("name", ABLATIONS)
def test_ablations(name):
    config = RECIPES[name]("data")
    assert config.views.augmentations() == (WEAK, STRONG)
    assert some(config, "epochs", "batch_size", "learning_rate") == (200, 512, pytest.approx(0.3))
    assert some(config.model, "backbone", "symmetric", "momentum", "momentum_schedule", "batch_norm") == (
        "resnet50", False, 0.996, "constant", "shuffle"
    )  # fmt: skip
    assert heads(config) == ((4096,), 256, "none", 0, "hidden")
    assert some(config.loss, "temperature", "coefficient", "queue_size") == (0.1, ABLATIONS[name], 65536)
    assert some(config.optimizer, "name", "weight_decay", "warmup_epochs") == ("sgd", 1e-4, 10)


@pytest.mark.parametrize("name", VITS)
def test_transformers(name):
    config = RECIPES[name]("data")
    assert config.model.backbone == f"timm:{name.removeprefix('imagenet-').replace('-', '_')}_patch16_224"
    assert heads(config) == ((4096, 4096), 256, "none", 4096, "none")
    assert some(config.model, "head_activation", "projector_bias", "predictor_bias") == ("gelu", True, True)
    assert config.optimizer == OptimizerConfig(
        name="adamw", base_learning_rate=1.5e-4, weight_decay=0.1, weight_decay_excludes=(), warmup_epochs=40
    )
    assert some(config, "epochs", "batch_size", "learning_rate") == (300, 4096, pytest.approx(2.4e-3))


def test_every_recipe_is_checked():
    checked = {*SMALL, *IMAGENET, *ABLATIONS, *VITS}
    others = {"folder", "videos", "demo", "demo-video"}
    assert {name for name in RECIPES if not name.startswith("kinetics")} == checked | others


@pytest.mark.parametrize("name", RECIPES)
def test_docstrings_tell_what_the_table_tells(name):
    text, published = " ".join(str(RECIPES[name].__doc__).split()), PUBLISHED[name]
    if published.figure:
        assert re.search(rf"Published.*: (about )?{re.escape(published.figure)}%", text)
    else:
        assert not re.search(r"Published.*%", text)
    settings, figure = "settings" in published.unverified, "figure" in published.unverified
    assert bool(re.search(r"\bUnverified[:,]", text)) == settings
    assert ("Published, but unverified here: " in text) == figure


def test_the_table_has_every_recipe():
    assert PUBLISHED.keys() == RECIPES.keys()


def test_the_page_has_every_recipe_with_its_figure():
    page = (Path(__file__).parents[2] / "docs" / "recipes.md").read_text()
    for name, published in PUBLISHED.items():
        rows = [line for line in page.splitlines() if f"`{name}`" in line]
        assert rows, name
        assert not published.figure or any(f"{published.figure}%" in row for row in rows), name
    assert set(re.findall(r"sce(?:-|_)fast train ([\w-]+)", page)) <= RECIPES.keys()
    (example,) = re.findall(r"^```python\n(.*?)^```", page, flags=re.MULTILINE | re.DOTALL)
    names: dict[str, Any] = {}
    exec(example, names)
    assert names["config"].learning_rate == pytest.approx(1.2)


def test_the_pages_commands_are_understood():
    page = (Path(__file__).parents[2] / "docs" / "recipes.md").read_text().replace("\\\n", " ")
    commands = re.findall(r"^sce-fast train (.*?)(?: +#.*)?$", page, flags=re.MULTILINE)
    parsed = {}
    for command in commands:
        name, *arguments = command.split()
        parsed[name], _ = Recipe(RECIPES[name]).parse("sce-fast", arguments)
    assert len(commands) == 4
    assert [view.solarize for view in parsed["imagenet-200-epochs"].views.augmentations()] == [0, 0.2, 0, 0]
    assert some(parsed["cifar10"].loss, "coefficient_warmup_epochs", "coefficient_end") == (10, 0.2)


def test_the_classes_of_imagenet100_may_be_others():
    for name in ("imagenet100", "imagenet100-infonce", "imagenet100-ressl"):
        for given, classes in (([], Path("imagenet100")), (["None"], None), (["own.txt"], Path("own.txt"))):
            option = ["--subset.classes", *given] if given else []
            config, _ = Recipe(RECIPES[name]).parse("sce-fast", ["--data", "x", *option])
            assert config.subset == SubsetConfig(classes=classes)
    assert RECIPES["imagenet-asymmetric"]("x").subset == SubsetConfig()


def test_lists_may_be_empty_on_the_command_line():
    command = ["--data", "x", "--model.projector-hidden", "--optimizer.weight-decay-excludes"]
    recipe = Recipe(RECIPES["imagenet-200-epochs"])
    config, _ = recipe.parse("sce-fast", [*command, "--epochs", "50"])
    assert (config.model.projector_hidden, config.optimizer.weight_decay_excludes) == ((), ())
    config, _ = recipe.parse(
        "sce-fast", [*command, "bias", "pos_embed", "--optimizer.nesterov", "--optimizer.name", "sgd"]
    )
    assert some(config.optimizer, "weight_decay_excludes", "nesterov") == (("bias", "pos_embed"), True)
    assert recipe.parse("sce-fast", ["--data", "x"])[0].optimizer.weight_decay_excludes is None
