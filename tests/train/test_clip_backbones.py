"""Networks for clips in the training step, in a run, in the estimate of memory, and in the formats of export."""

import pytest
import torch

from helpers.runs import small_config, small_video_config
from sce_fast.backbones import CLIP_BACKBONES, build_backbone
from sce_fast.config import OptimizerConfig, replace
from sce_fast.evaluate import load_features
from sce_fast.export import FORMATS, Foreign, export, open_backbone
from sce_fast.tools.embed import embed
from sce_fast.train import Trainer, train
from sce_fast.train.estimate import memory
from sce_fast.train.parameter_groups import layer_scales
from sce_fast.train.preflight import require_runnable
from sce_fast.train.step import TrainingStep

NAMES = [name for name in CLIP_BACKBONES if name not in ("r3d18", "r3d50")]  # which have tests of their own


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_step_trains_and_its_memory_is_estimated(tmp_path, name):
    config = small_config(tmp_path / "videos", tmp_path / "run", batch_size=4)
    settings = OptimizerConfig(name="adamw", base_learning_rate=0.001, warmup_epochs=1)
    config = replace(config, clips={"frames": 4}, model={"backbone": name}, optimizer=settings)
    step = TrainingStep(config, torch.device("cpu"))
    require_runnable(step)
    found = memory(step)
    assert found.activations > found.state / 100
    before, keys = [p.detach().clone() for p in step.parameters], step.queue.keys.clone()
    views = [torch.randn(4, 3, 4, 32, 32) for _ in range(2)]
    for number in range(2):  # γ = 0 at the start holds back the first gradients of an X3D
        measures = step([views], number=number, learning_rate=0.01, momentum=0.99)
        assert measures["loss"].isfinite()
    changed = [not torch.equal(p, old) for p, old in zip(step.parameters, before, strict=True)]
    assert sum(changed) > 0.95 * len(changed)
    assert (step.queue.keys != keys).any(1).sum() == 16
    assert all(p.is_contiguous(memory_format=torch.channels_last_3d) for p in step.parameters if p.dim() == 5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "formats"),
    [
        ("r2plus1d18", ("safetensors", "torchvision")),
        ("s3d", ("torchvision",)),
        ("x3d_m", ("pytorchvideo",)),
        ("vit_small_video", ("safetensors", "onnx")),
    ],
)
def test_what_is_exported_gives_the_same_features(tmp_path, name, formats):
    torch.manual_seed(0)
    foreign = Foreign(backbone=name, width=8, small_input=True, frames=4, seconds=1.0)
    torch.save(build_backbone(name, width=8, small_input=True).state_dict(), tmp_path / "weights.pth")
    for form in formats:  # export reads what it has written, and compares its features
        out = tmp_path / f"exported{FORMATS[form].ending}"
        export(tmp_path / "weights.pth", out=out, format=form, backbone=foreign)
        if form == "safetensors":
            assert open_backbone(out).description.backbone == name
            assert open_backbone(out).description.clips["frames"] == 4
    wrong = "pytorchvideo" if "torchvision" in formats else "torchvision"
    with pytest.raises(ValueError, match=rf"format='{wrong}': expected an? \S+ .*, and \S+ holds {name}"):
        export(tmp_path / "weights.pth", out=tmp_path / "wrong.pth", format=wrong, backbone=foreign)


@pytest.mark.slow
def test_a_run_begins_with_published_weights_and_gives_features(video_folder, tmp_path):
    torch.manual_seed(0)
    published = {f"module.{key}": t for key, t in build_backbone("s3d", width=8, small_input=True).state_dict().items()}
    torch.save({"state_dict": published}, tmp_path / "s3d.pth")
    config = small_video_config(video_folder, tmp_path / "run", epochs=1, init=tmp_path / "s3d.pth")
    config = replace(config, model={"backbone": "s3d"}, clips={"frames": 8}, evaluation={"train": None, "test": None})
    start = Trainer(config).model.backbone.features[15].branch0[0].weight
    assert torch.equal(start, published["module.features.15.branch0.0.weight"])
    train(config)
    found = load_features(embed(config.out, video_folder)).features
    assert found.shape == (12, 128)
    assert found.isfinite().all()


@pytest.mark.parametrize(
    ("name", "layers"), [("r2plus1d18", 8 + 1), ("x3d_m", 26 + 2), ("vit_small_video", 12 + 1)]
)  # the stem and the head of an X3D are elements of its blocks; a ViT has embeddings
def test_rates_fall_from_layer_to_layer(name, layers):
    with torch.device("meta"):
        model = torch.nn.ModuleDict({"backbone": build_backbone(name, width=8)})
    scales = layer_scales(model, 0.5)
    assert min(scales.values()) == 0.5**layers
    first = next(iter(scales))
    assert scales[first] == min(scales.values())
