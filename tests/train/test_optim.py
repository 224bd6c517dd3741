import math

import pytest
import torch
from torch import nn

from sce_fast.config import OptimizerConfig
from sce_fast.train.optim import LARS, SGD, AdamW, build_optimizer


def lars_by_hand(weights, gradients, velocities, lr, m, decay, trust):
    """Take one step in float64, parameter by parameter, in the order of the official code."""
    for i, (w, g) in enumerate(zip(weights, gradients, strict=True)):
        if w.dim() > 1:
            g = g + decay * w
            if w.norm() > 0 and g.norm() > 0:
                g = g * trust * w.norm() / g.norm()
        velocities[i] = m * velocities[i] + g
        weights[i] = w - lr * velocities[i]


def test_lars_follows_the_official_order():
    shapes = [(4, 3), (4,), (2, 3, 3, 3), (5, 2), (1,)]
    parameters = [nn.Parameter(torch.randn(shape, dtype=torch.float64)) for shape in shapes]
    parameters[3].data.zero_()  # a zero norm leaves the gradient unscaled
    weights = [p.detach().clone() for p in parameters]
    velocities = [torch.zeros_like(w) for w in weights]
    optimizer = LARS(parameters, lr=0.3, momentum=0.9, weight_decay=0.01)
    for step in range(4):
        gradients = [torch.randn_like(w) for w in weights]
        if step == 2:
            gradients[0].zero_()
        for p, g in zip(parameters, gradients, strict=True):
            p.grad = g.clone()
        optimizer.param_groups[0]["lr"] = lr = 0.3 / (step + 1)
        optimizer.step()
        lars_by_hand(weights, gradients, velocities, lr, 0.9, 0.01, 1e-3)
        for p, w in zip(parameters, weights, strict=True):
            torch.testing.assert_close(p.detach(), w, rtol=1e-12, atol=1e-12)


def layered(memory_format):
    """Return weights and gradients: a convolution with unequal strides, a vector and a matrix."""
    weights = [torch.randn(8, 4, 3, 3).to(memory_format=memory_format), torch.randn(8), torch.randn(6, 5)]
    return [nn.Parameter(w) for w in weights], [torch.randn(w.shape) for w in weights]


FORMATS = pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])


@FORMATS
def test_sgd_is_that_of_torch(memory_format):
    parameters, gradients = layered(memory_format)
    others = [nn.Parameter(p.detach().clone()) for p in parameters]
    ours = SGD(parameters, lr=0.2, momentum=0.9, weight_decay=0.01)
    theirs = torch.optim.SGD(others, lr=0.2, momentum=0.9, weight_decay=0.01, foreach=False)
    for _ in range(3):
        for p, other, g in zip(parameters, others, gradients, strict=True):
            p.grad, other.grad = g.clone(), g.clone()
        ours.step(skip=torch.tensor(False))
        theirs.step()
    torch.testing.assert_close(parameters, others, rtol=1e-6, atol=1e-6)


def groups_of(parameters, **of_vectors):
    """Return the matrices, and the vector with settings of its own."""
    return [{"params": [parameters[0], parameters[2]]}, {"params": [parameters[1]], **of_vectors}]


@FORMATS
@pytest.mark.parametrize("masks", [False, True])
@pytest.mark.parametrize("kind", ["sgd", "nesterov", "adamw"])
def test_groups_are_those_of_torch(kind, masks, memory_format):
    """In float64, with a group of its own rate and decay, over changes of the learning rate and masked steps."""
    parameters, _ = layered(memory_format)
    parameters = [nn.Parameter(p.detach().double()) for p in parameters]
    others = [nn.Parameter(p.detach().clone()) for p in parameters]
    mine, own = groups_of(parameters, weight_decay=0.0, lr_scale=0.25), groups_of(others, weight_decay=0.0)
    if kind == "adamw":
        ours = AdamW(mine, lr=0.2, beta1=0.8, beta2=0.99, weight_decay=0.05)
        theirs = torch.optim.AdamW(own, lr=0.2, betas=(0.8, 0.99), weight_decay=0.05)
    else:
        settings = dict(lr=0.2, momentum=0.8, weight_decay=0.05, nesterov=kind == "nesterov")
        ours, theirs = SGD(mine, **settings), torch.optim.SGD(own, **settings)
    for step in range(12):
        skip, rate = masks and step % 4 == 1, 0.2 / (step + 1)
        for p, other in zip(parameters, others, strict=True):
            p.grad = torch.randn_like(p)
            other.grad = p.grad.clone()
        for group, other_group, scale in zip(ours.param_groups, theirs.param_groups, (1, 0.25), strict=True):
            group["lr"], other_group["lr"] = rate, rate * scale
        ours.step(skip=torch.tensor(skip) if masks else None)
        if not skip:
            theirs.step()
        torch.testing.assert_close(parameters, others, rtol=1e-13, atol=1e-13)
    if kind == "adamw":
        assert all(ours.state[p]["step"] == (9 if masks else 12) for p in parameters)


def optimizer_of(parameters, name, **settings):
    base = {"nesterov": {"name": "sgd", "nesterov": True}, "adamw": {"name": "adamw", "base_learning_rate": 0.01}}
    config = OptimizerConfig(**{"name": name, "weight_decay": 0.01, **base.get(name, {}), **settings})
    return build_optimizer(nn.ParameterList(parameters), config, lr=0.2)


@pytest.mark.parametrize("spoiled_first", [False, True])
@pytest.mark.parametrize("name", ["sgd", "nesterov", "lars", "adamw"])
def test_a_masked_step_changes_no_bit(name, spoiled_first):
    parameters, gradients = layered(torch.channels_last)
    with torch.no_grad():
        parameters[0][0, 0] = -0.0 if name == "adamw" else 0.0
    optimizer = optimizer_of(parameters, name)

    def step(skip, spoil=None):
        for p, g in zip(parameters, gradients, strict=True):
            p.grad = g.clone()
            if spoil is not None:
                p.grad.view(-1)[0] = spoil
        optimizer.step(skip=skip)

    def everything():
        tensors = {f"{i}": p.detach().clone() for i, p in enumerate(parameters)}
        state = {f"{i}.{e}": t.clone() for i, p in enumerate(parameters) for e, t in optimizer.state[p].items()}
        return tensors, state

    step(torch.tensor(spoiled_first), spoil=math.nan if spoiled_first else None)  # a first step has no state yet
    before = everything()
    step(torch.tensor(True), spoil=math.nan)
    step(torch.tensor(True), spoil=math.inf)
    for now, then in zip(everything(), before, strict=True):
        assert now.keys() == then.keys()
        assert all(bits(now[name]) == bits(then[name]) for name in then)
    step(torch.tensor(False))
    assert not any(torch.equal(t, b) for now, then in zip(everything(), before, strict=True)
                   for t, b in zip(now.values(), then.values(), strict=True))  # fmt: skip


def bits(tensor):
    return tensor.numpy().tobytes()


@pytest.mark.parametrize("name", ["sgd", "nesterov", "lars", "adamw"])
def test_a_step_that_is_not_masked_is_the_plain_one(name):
    parameters, gradients = layered(torch.contiguous_format)
    parameters = [nn.Parameter(p.detach().double()) for p in parameters]
    others = [nn.Parameter(p.detach().clone()) for p in parameters]
    optimizers = [optimizer_of(ps, name) for ps in (parameters, others)]
    for _ in range(3):
        for p, other, g in zip(parameters, others, gradients, strict=True):
            p.grad, other.grad = g.double(), g.double()
        optimizers[0].step(skip=torch.tensor(False))
        optimizers[1].step()
    torch.testing.assert_close(parameters, others, rtol=1e-14, atol=1e-14)


def test_lars_passes_over_parameters_without_gradient():
    parameter = nn.Parameter(torch.ones(2, 2))
    LARS([parameter], lr=1.0).step()
    assert torch.equal(parameter.detach(), torch.ones(2, 2))


def test_optimizer_takes_only_what_is_trainable():
    model = nn.ModuleDict({"student": nn.Linear(2, 2), "teacher": nn.Linear(2, 2).requires_grad_(False)})
    for name, kind in (("sgd", SGD), ("lars", LARS), ("adamw", AdamW)):
        settings = OptimizerConfig(name=name, base_learning_rate=0.01, momentum=0.7, beta2=0.9, weight_decay=0.1)
        optimizer = build_optimizer(model, settings, lr=0.1)
        assert isinstance(optimizer, kind)
        groups = [(len(group["params"]), group["weight_decay"]) for group in optimizer.param_groups]
        assert groups == ([(1, 0.1), (1, 0.0)] if name == "adamw" else [(2, 0.1)])
        assert {group["lr"] for group in optimizer.param_groups} == {0.1}
        betas = [(group.get("beta1"), group.get("beta2"), group.get("momentum")) for group in optimizer.param_groups]
        assert set(betas) == {(0.7, 0.9, None) if name == "adamw" else (None, None, 0.7)}
    with pytest.raises(ValueError, match="weight_decay=-1"):
        LARS(model.parameters(), lr=0.1, weight_decay=-1)
