"""Which parameters get weight decay, and how their learning rates fall with depth."""

import pytest
from torch import nn

from helpers.vit import TinyViT
from sce_fast.backbones import build_backbone
from sce_fast.config import ModelConfig, OptimizerConfig
from sce_fast.method.build import build_model
from sce_fast.train.optim import build_optimizer
from sce_fast.train.parameter_groups import layer_scales, parameter_groups

HEADS = {"projector_hidden": (8,), "dim": 4, "predictor_hidden": 8}


def model_of(backbone: nn.Module) -> nn.Module:
    return build_model(ModelConfig(**HEADS), backbone=backbone, shapes=[(3, 16, 16)])


def undecayed(model: nn.Module, **settings: object) -> set[str]:
    """Return the names of the trainable parameters without weight decay."""
    config = OptimizerConfig(name="adamw", base_learning_rate=0.001, weight_decay=0.05, **settings)
    groups = parameter_groups(model, config)
    names = {id(p): name for name, p in model.named_parameters()}
    assert sorted(id(p) for group in groups for p in group["params"]) == sorted(
        id(p) for p in model.parameters() if p.requires_grad
    )
    assert {group["weight_decay"] for group in groups} <= {0.0, 0.05}
    return {names[id(p)] for group in groups if group["weight_decay"] == 0 for p in group["params"]}


def test_excludes_are_kinds_and_parts_of_names():
    model = model_of(TinyViT())
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    vectors = {name for name, p in trainable.items() if p.dim() == 1}
    norms = {"backbone.norm", "backbone.blocks.0.norm1", "backbone.blocks.1.norm1", "projector.1", "projector.4",
             "predictor.1"}  # fmt: skip
    in_norms = {name for name in trainable if name.rpartition(".")[0] in norms}
    assert undecayed(model) == undecayed(model, weight_decay_excludes=("vectors",)) == vectors
    assert undecayed(model, weight_decay_excludes=()) == set()
    assert undecayed(model, weight_decay_excludes=("norm",)) == in_norms
    biases = {name for name in trainable if name.endswith(".bias")}
    assert undecayed(model, weight_decay_excludes=("bias", "pos_embed")) == biases | {"backbone.pos_embed"}
    with pytest.raises(
        ValueError, match=r"optimizer.weight_decay_excludes='pos_embd': expected vectors, bias, norm, or"
    ):
        undecayed(model, weight_decay_excludes=("pos_embd",))


def test_sgd_and_lars_decay_everything_they_can_unless_told():
    model = model_of(build_backbone("resnet18", width=8))
    for name in ("sgd", "lars"):
        (group,) = parameter_groups(model, OptimizerConfig(name=name, weight_decay=0.1))
        assert (group["weight_decay"], group["lr_scale"]) == (0.1, 1.0)
    settings = OptimizerConfig(name="sgd", weight_decay=0.1, weight_decay_excludes=("norm", "bias"))
    assert [group["weight_decay"] for group in parameter_groups(model, settings)] == [0.1, 0.0]


def test_rates_fall_with_depth():
    """With two blocks: embeddings ½³, blocks ½² and ½, the norm after them and the heads 1."""
    model = model_of(TinyViT())
    scales = layer_scales(model, 0.5)
    for name, scale in scales.items():
        expected = {"backbone.blocks.0": 0.25, "backbone.blocks.1": 0.5, "backbone.norm": 1.0}
        assert scale == next((e for start, e in expected.items() if name.startswith(f"{start}.")), 0.125), name
    assert {"backbone.cls_token", "backbone.pos_embed", "backbone.patch_embed.proj.weight"} <= scales.keys()
    settings = OptimizerConfig(name="adamw", base_learning_rate=0.001, layer_decay=0.5)
    optimizer = build_optimizer(model, settings, lr=0.1)
    found = {id(p): group["lr_scale"] for group in optimizer.param_groups for p in group["params"]}
    for name, p in model.named_parameters():
        if p.requires_grad:
            assert found[id(p)] == scales.get(name, 1.0), name


@pytest.mark.parametrize(
    ("name", "layers"), [("resnet18", 8), ("resnet50", 16), ("r3d18", 9)]
)  # the stem of an R3D is called blocks.0
def test_convolutional_networks_have_layers_too(name, layers):
    model = nn.ModuleDict({"backbone": build_backbone(name, width=8)})
    found = sorted(set(layer_scales(model, 0.5).values()))
    assert found == [0.5**n for n in range(layers + (name != "r3d18"), 0, -1)]


def test_a_network_without_layers_is_refused():
    model = nn.ModuleDict({"backbone": nn.Sequential(nn.Flatten(), nn.Linear(12, 3))})
    with pytest.raises(ValueError, match=r"optimizer.layer_decay=0.75: expected 1 with a Sequential"):
        layer_scales(model, 0.75)
