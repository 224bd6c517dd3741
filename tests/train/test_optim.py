import math

import pytest
import torch
from torch import nn

from sce_fast.train.optim import LARS, SGD, AdamW, build_optimizer
from sce_fast.train.schedules import learning_rate, momentum


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


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
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


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_adamw_is_that_of_torch(memory_format):
    """In float64, with weight decay for the matrices only, over changes of the learning rate and masked steps."""
    parameters, _ = layered(memory_format)
    parameters = [nn.Parameter(p.detach().double()) for p in parameters]
    others = [nn.Parameter(p.detach().clone()) for p in parameters]
    ours = AdamW(parameters, lr=0.2, beta1=0.8, beta2=0.99, weight_decay=0.05)
    groups = [{"params": [others[0], others[2]]}, {"params": [others[1]], "weight_decay": 0.0}]
    theirs = torch.optim.AdamW(groups, lr=0.2, betas=(0.8, 0.99), weight_decay=0.05)
    for step in range(12):
        skip, rate = step % 4 == 1, 0.2 / (step + 1)
        for p, other in zip(parameters, others, strict=True):
            p.grad = torch.randn_like(p)
            other.grad = p.grad.clone()
        for optimizer in (ours, theirs):
            for group in optimizer.param_groups:
                group["lr"] = rate
        ours.step(skip=torch.tensor(skip))
        if not skip:
            theirs.step()
        torch.testing.assert_close(parameters, others, rtol=1e-13, atol=1e-13)
    assert all(ours.state[p]["step"] == 9 for p in parameters)


@pytest.mark.parametrize("spoiled_first", [False, True])
@pytest.mark.parametrize("name", ["sgd", "lars", "adamw"])
def test_a_masked_step_changes_no_bit(name, spoiled_first):
    parameters, gradients = layered(torch.channels_last)
    with torch.no_grad():
        parameters[0][0, 0] = -0.0 if name == "adamw" else 0.0
    optimizer = build_optimizer(nn.ParameterList(parameters), name, lr=0.2, momentum=0.9, weight_decay=0.01)

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


@pytest.mark.parametrize("name", ["sgd", "lars", "adamw"])
def test_a_step_that_is_not_masked_is_the_plain_one(name):
    parameters, gradients = layered(torch.contiguous_format)
    parameters = [nn.Parameter(p.detach().double()) for p in parameters]
    others = [nn.Parameter(p.detach().clone()) for p in parameters]
    settings = dict(lr=0.1, momentum=0.9, weight_decay=0.01)
    optimizers = [build_optimizer(nn.ParameterList(ps), name, **settings) for ps in (parameters, others)]
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
        optimizer = build_optimizer(model, name, lr=0.1, momentum=0.9, weight_decay=0.0)
        assert isinstance(optimizer, kind)
        assert len(optimizer.param_groups[0]["params"]) == 2
    with pytest.raises(ValueError, match="optimizer='adam'"):
        build_optimizer(model, "adam", lr=0.1, momentum=0.9, weight_decay=0.0)
    with pytest.raises(ValueError, match="weight_decay=-1"):
        build_optimizer(model, "lars", lr=0.1, momentum=0.9, weight_decay=-1)


def test_learning_rate_warms_up_and_falls_to_zero():
    rates = [learning_rate(t, base=2.0, warmup_steps=5, total_steps=25) for t in range(26)]
    assert rates[:6] == [0.0, 0.5, 1.0, 1.5, 2.0, 2.0]
    assert rates[15] == pytest.approx(1.0)
    assert rates[25] == pytest.approx(0.0, abs=1e-15)
    assert rates[5:] == sorted(rates[5:], reverse=True)


@pytest.mark.parametrize("warmup", [0, 1])
def test_no_warm_up_starts_at_the_base_rate(warmup):
    assert learning_rate(0, base=2.0, warmup_steps=warmup, total_steps=10) == 2.0
    assert learning_rate(9, base=2.0, warmup_steps=warmup, total_steps=10) < 0.2
    assert learning_rate(0, base=2.0, warmup_steps=warmup, total_steps=1) == 2.0


def test_momentum_schedules():
    assert momentum(7, base=0.99, schedule="constant", total_steps=10) == 0.99
    values = [momentum(t, base=0.9, schedule="cosine", total_steps=11) for t in range(11)]
    assert values[0] == pytest.approx(0.9)
    assert values[5] == pytest.approx(0.95)
    assert values[10] == 1.0
    assert values[3] == pytest.approx(1 - 0.1 * (math.cos(0.3 * math.pi) + 1) / 2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: learning_rate(11, base=1.0, warmup_steps=0, total_steps=10), "step=11"),
        (lambda: learning_rate(0, base=1.0, warmup_steps=11, total_steps=10), "warmup_steps=11"),
        (lambda: momentum(0, base=0.9, schedule="linear", total_steps=10), "schedule='linear'"),
    ],
)
def test_bad_schedules_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
