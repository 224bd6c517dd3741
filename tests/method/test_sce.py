"""SCE: which view passes through which network, and the momentum update."""

import copy

import pytest
import torch

from sce_fast import SCE
from sce_fast.backbones import build_backbone
from sce_fast.config import ModelConfig
from sce_fast.method.build import build_model
from sce_fast.method.heads import predictor, projector


def small_model(**settings):
    return SCE(build_backbone("resnet18", width=4, small_input=True), projector(32, (16,), 8, norm="all"), **settings)


def views(count, n=4, size=16):
    return [torch.randn(n, 3, size, size) for _ in range(count)]


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
    """A second view must not change the result of the first."""
    model = small_model()
    first, second = views(2)
    alone = copy.deepcopy(model).encode_query(first)
    query, _ = model([first, 100 * second])
    assert torch.equal(query[0], alone)
    assert model.momentum_backbone.bn1.training


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
        (lambda: small_model(key_views=1), "key_views=1"),
        (lambda: small_model()(views(1)), "1 views, expected at least 2"),
    ],
)
def test_bad_settings_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
