"""Trained steps equal a plain PyTorch loop, in float64 over 20 steps: candidates, passes, averages and schedules."""

from functools import cache

import pytest
import torch
from torch import Tensor

from helpers.steps import assert_same_steps, config_of_steps, plainly_trained, trained

MULTI_CROP = {"names": ("alpha", "beta", *["gamma"] * 4), "sizes": (12, 12, 11, 10, 9, 8)}  # ten terms
LIKE_DINO = {"names": ("alpha", "beta", *["gamma"] * 8), "sizes": (12, 12, *[8] * 8)}
NO_QUEUE = {"queue_size": 0, "batch_keys": True}
QUICK = {
    "batch keys of parts and queue": {"loss": {"batch_keys": True}, "accumulation": 2},
    "no queue, average": {"loss": NO_QUEUE, "model": {"evaluation_momentum": 0.9}},
    "joint multi-crop": {"views": LIKE_DINO, "model": {"mutual_pass": True}},
}
CASES = {
    **QUICK,
    "queue": {},
    "batch keys and queue": {"loss": {"batch_keys": True}},
    "asymmetric, no queue": {"loss": NO_QUEUE, "model": {"symmetric": False, "predictor_hidden": 0}},
    "joint views": {"model": {"mutual_pass": True}},
    "multi-crop": {"views": MULTI_CROP},
    "multi-crop, three keys, no queue": {"views": MULTI_CROP, "loss": NO_QUEUE, "model": {"key_views": 3}},
}


@cache
def steps(name: str) -> dict[str, Tensor]:
    return trained(config_of_steps(**CASES[name]))


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in CASES])
def test_steps_equal_a_plain_loop(name):
    config = config_of_steps(**CASES[name])
    assert_same_steps(steps(name), plainly_trained(config))
    assert ("queue.keys" in steps(name)) == (config.loss.queue_size > 0)
    assert ("average.0.weight" in steps(name)) == (config.model.evaluation_momentum > 0)


def test_steps_of_adamw_equal_a_plain_loop():
    """With its rates a hundredth: Adam moves each weight by about the rate."""
    config = config_of_steps(optimizer={"name": "adamw", "base_learning_rate": 0.001, "weight_decay": 0.1})
    assert_same_steps(trained(config, scale=0.01), plainly_trained(config, scale=0.01))


@pytest.mark.slow
def test_every_setting_changes_the_steps():
    """Otherwise a setting that neither loop heeds would pass."""
    for i, name in enumerate(CASES):
        for other in list(CASES)[:i]:
            assert not torch.allclose(steps(name)["losses"], steps(other)["losses"], atol=1e-4), (name, other)
