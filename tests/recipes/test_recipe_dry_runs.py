"""Each recipe passes --dry-run with its own views, losses and optimizer, on networks and images small enough."""

import sys
import tempfile
from types import ModuleType

import pytest

from helpers.videos import write_video
from helpers.vit import TinyViT
from sce_fast.cli import main
from sce_fast.recipes import RECIPES

ADAPTIVE = ("folder", "videos", "demo", "demo-video")
QUICK = ("imagenet-moco-v3",)
SIZES = {"imagenet-multi-crop": [32, 32, 24, 20, 16, 12], "imagenet-dino-crops": [32, 32, *[16] * 8]}
NAMES = [name for name in RECIPES if name not in ADAPTIVE]


@pytest.fixture(autouse=True)
def own_temporary_folder(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path_factory.mktemp("temporary")))


@pytest.fixture(scope="module")
def video_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    for i in range(8):
        write_video(folder / "ab"[i % 2] / str(i), "mpeg4", frames=12, size=(32, 40))
    return folder


@pytest.fixture
def timm(monkeypatch):
    """Install a stand-in for timm, whose networks are small."""
    module = ModuleType("timm")
    module.list_models, module.is_model = list, lambda name: name.endswith("_patch16_224")
    module.create_model = lambda name, pretrained, num_classes, **sizes: TinyViT()
    monkeypatch.setitem(sys.modules, "timm", module)


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in NAMES])
def test_recipes_pass_a_dry_run(name, photo_folder, video_folder, timm, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = video_folder if name.startswith("kinetics") else photo_folder
    config = RECIPES[name](data)
    sizes = SIZES.get(name, [32] if name != "cifar10" else [])
    parts = 16 if config.model.batch_norm == "shuffle" else 8  # two rows in each of the published eight groups
    options = ["--batch-size", str(parts), "--device", "cpu"]
    options += ["--views.sizes", *map(str, sizes)] if sizes else []
    if not config.model.backbone.startswith("timm:"):
        options += ["--model.width", "8"]
    hidden = ["32"] * len(config.model.projector_hidden)
    options += ["--model.projector-hidden", *hidden]
    if config.model.predictor_hidden:
        options += ["--model.predictor-hidden", "32"]
    if name.startswith("imagenet100"):  # whose classes the photographs lack
        options += ["--subset.classes", "None"]
    main(["train", name, "--data", str(data), "--dry-run", *options])
    text = capsys.readouterr().out
    model, loss = config.model, config.loss
    terms = model.key_views * (len(config.views.names) - 1) if model.symmetric else 1
    assert f"Loss: the mean of {terms} term{'s' if terms > 1 else ''}, " in text
    assert f"λ {loss.coefficient:g}; " in text
    assert ("no queue, and the other 7 keys of the view in the batch" in text) == (name == "imagenet-moco-v3")
    assert f"with {config.optimizer.name}, weight decay {config.optimizer.weight_decay:g}\n" in text
    assert f"Steps: {config.epochs:,} epochs of " in text
    assert "  step 2: loss " in text
    assert [path.name for path in tmp_path.iterdir()] == []
