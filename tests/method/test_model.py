import copy

import pytest
import torch
from torch import nn

from sce_fast import SCE
from sce_fast.backbones import build_backbone
from sce_fast.config import ModelConfig
from sce_fast.method.build import build_model
from sce_fast.method.heads import mlp, predictor, projector


def small_model(**settings):
    return SCE(build_backbone("resnet18", width=4, small_input=True), projector(32, (16,), 8, norm="all"), **settings)


def views(count, n=4, size=16):
    return [torch.randn(n, 3, size, size) for _ in range(count)]


@pytest.mark.parametrize(
    ("name", "parameters", "dim"),
    [("resnet18", 11_176_512, 512), ("resnet34", 21_284_672, 512), ("resnet50", 23_508_032, 2048)],
)
def test_backbones_have_the_published_size(name, parameters, dim):
    with torch.device("meta"):
        backbone = build_backbone(name)
        shapes = {k: tuple(v.shape) for k, v in backbone.state_dict().items()}
        assert backbone(torch.empty(2, 3, 224, 224)).shape == (2, dim)
    assert sum(p.numel() for p in backbone.parameters()) == parameters
    assert backbone.dim == dim
    # torchvision's names and shapes
    assert shapes["conv1.weight"] == (64, 3, 7, 7)
    assert shapes["layer2.0.downsample.0.weight"][2:] == (1, 1)
    assert "layer2.0.downsample.1.running_var" in shapes
    assert shapes["layer4.1.conv2.weight"] == (512, 512, 3, 3)
    assert ("layer1.0.downsample.0.weight" in shapes) == (name == "resnet50")
    assert not any(key.startswith("fc") for key in shapes)


def test_feature_maps_have_the_published_sizes():
    """Strides: 224 → 112 → 56, then 56, 28, 14, 7; the small stem keeps 32 up to the second stage."""
    for small_input, size, expected in ((False, 224, [56, 28, 14, 7]), (True, 32, [32, 16, 8, 4])):
        backbone = build_backbone("resnet18", width=4, small_input=small_input)
        found = []
        for stage in range(1, 5):
            backbone.get_submodule(f"layer{stage}").register_forward_hook(
                lambda _module, _inputs, output, found=found: found.append(output.shape[-1])
            )
        backbone(torch.randn(2, 3, size, size))
        assert found == expected


def test_bottleneck_strides_in_its_3x3():
    backbone = build_backbone("resnet50", width=4)
    assert backbone.layer2[0].conv2.stride == (2, 2)
    assert backbone.layer2[0].conv1.stride == (1, 1)


def test_heads_are_the_published_ones():
    imagenet = projector(2048, (4096, 4096), 256, norm="all")
    kinds = [type(layer) for layer in imagenet]
    block = [nn.Linear, nn.BatchNorm1d, nn.ReLU]
    assert kinds == [*block, *block, nn.Linear, nn.BatchNorm1d]
    assert all(layer.bias is None for layer in imagenet if isinstance(layer, nn.Linear))
    assert not imagenet[-1].affine
    assert imagenet[1].affine

    cifar = projector(512, (512,), 128, norm="hidden")
    assert [type(layer) for layer in cifar] == [*block, nn.Linear]
    assert cifar[0].bias is None
    assert cifar[-1].bias is not None

    plain = projector(2048, (4096,), 256, norm="none")
    assert [type(layer) for layer in plain] == [nn.Linear, nn.ReLU, nn.Linear]
    assert plain[0].bias is not None

    head = predictor(256, 4096)
    assert [type(layer) for layer in head] == [*block, nn.Linear]
    assert head[0].bias is None
    assert head[-1].bias is None


def test_symmetric_and_asymmetric_shapes():
    query, key = small_model(predictor=predictor(8, 16))(views(2))
    assert query.shape == key.shape == (2, 4, 8)
    query, key = small_model(symmetric=False)(views(3))
    assert query.shape == (2, 4, 8)
    assert key.shape == (4, 8)
    query, key = small_model()([*views(2), *views(4, size=8)])  # multi-crop
    assert query.shape == (6, 4, 8)
    assert key.shape == (2, 4, 8)
    torch.testing.assert_close(query.norm(dim=-1), torch.ones(6, 4))
    assert not key.requires_grad


def test_asymmetric_target_is_the_first_view():
    model, both = small_model(symmetric=False), views(2)
    fresh = copy.deepcopy(model)
    query, key = model(both)
    assert torch.equal(key, fresh.encode_key(both[0]))
    assert torch.equal(query[0], fresh.encode_query(both[1]))


def test_momentum_network_is_a_copy_without_gradient():
    model = small_model()
    for student, teacher in zip(model.backbone.parameters(), model.momentum_backbone.parameters(), strict=True):
        assert torch.equal(student, teacher)
        assert student is not teacher
        assert not teacher.requires_grad
    query, _ = model(views(2))
    query.sum().backward()
    assert all(p.grad is None for p in model.momentum_backbone.parameters())


def test_momentum_update_mixes_parameters_and_leaves_buffers():
    model = small_model()
    model(views(2))
    with torch.no_grad():
        for p in model.backbone.parameters():
            p.add_(1)
    before = {k: v.clone() for k, v in model.momentum_backbone.state_dict().items()}
    model.update_momentum(0.9)
    student = model.backbone.state_dict()
    names = {name for name, _ in model.momentum_backbone.named_parameters()}
    for name, value in model.momentum_backbone.state_dict().items():
        expected = 0.9 * before[name] + 0.1 * student[name] if name in names else before[name]
        torch.testing.assert_close(value, expected)


def test_each_view_has_its_own_batch_statistics():
    """A second view must not change what the first gives."""
    model = small_model()
    first, second = views(2)
    alone = copy.deepcopy(model).encode_query(first)
    query, _ = model([first, 100 * second])
    assert torch.equal(query[0], alone)
    assert model.momentum_backbone.bn1.training


def test_unit_rows_of_long_float16_rows():
    from sce_fast.util.rows import unit_rows

    long_row = torch.full((1, 64), 1000.0, dtype=torch.float16)  # its square is beyond float16
    torch.testing.assert_close(unit_rows(long_row).norm(dim=1), torch.ones(1))


def test_query_and_key_are_float32_under_autocast():
    model, both = small_model(), views(2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model.projector(model.backbone(both[0])).dtype == torch.bfloat16
        query, key = model(both)
    assert query.dtype == key.dtype == torch.float32
    torch.testing.assert_close(query.norm(dim=-1), torch.ones(2, 4))


def test_build_model_follows_the_config():
    config = ModelConfig(backbone="resnet18", width=8, projector_hidden=(32, 32), dim=16, predictor_hidden=24)
    model = build_model(config)
    assert model.projector[0].in_features == 64
    assert model.predictor[0].out_features == 24
    assert build_model(ModelConfig(backbone="resnet18", predictor_hidden=0)).predictor is None


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: build_backbone("resnet19"), "unknown backbone 'resnet19'.*did you mean 'resnet18'"),
        (lambda: build_backbone("resnet18", width=0), "width=0"),
        (lambda: build_backbone("timm:resnet18", width=32), "takes neither width=32"),
        (lambda: projector(8, (8,), 8, norm="batch"), "norm='batch'"),
        (lambda: mlp((8,), hidden_norm=True), r"sizes=\(8,\)"),
        (lambda: small_model(key_views=1), "key_views=1"),
        (lambda: small_model()(views(1)), "1 views, expected at least 2"),
    ],
)
def test_bad_settings_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
