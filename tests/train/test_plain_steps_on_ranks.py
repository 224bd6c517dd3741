"""The steps of two ranks equal those of a plain PyTorch loop on one process, in float64 over 20 steps."""

from typing import Any

import pytest
import torch

from helpers import ranks
from helpers.steps import assert_same_steps, config_of_steps, plainly_trained, trained
from sce_fast.config import TrainConfig

CROPS = {"names": ("alpha", "beta", "gamma", "gamma"), "sizes": (12, 12, 8, 8)}
# `sync` shares batch statistics among all ranks. `local` is part of the comparison, since each rank has its own then.
CASES: dict[str, dict[str, Any]] = {
    "no queue, own statistics": {"loss": {"queue_size": 0, "batch_keys": True}},
    "joint multi-crop": {
        "views": CROPS,
        "loss": {"batch_keys": True},
        "model": {"batch_norm": "sync", "mutual_pass": True, "evaluation_momentum": 0.9},
    },
    "no queue, in parts": {
        "loss": {"queue_size": 0, "batch_keys": True}, "model": {"batch_norm": "sync"}, "accumulation": 2
    },
}  # fmt: skip


def train_all(group, configs: dict[str, TrainConfig], folder):
    for name, config in configs.items():
        torch.save(trained(config, group), folder / f"{name}.{group.rank}")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("steps")
    configs = {name: config_of_steps(**changes) for name, changes in CASES.items()}
    ranks.run_in_group(train_all, configs, folder, ranks=2)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_two_ranks_equal_a_plain_loop(folder, name):
    config = config_of_steps(**CASES[name])
    local = config.model.batch_norm == "local"
    plain = plainly_trained(config, ranks=2 if local else 1)
    first, second = (torch.load(folder / f"{name}.{rank}") for rank in range(2))
    assert_same_steps(first, plain, statistics=not local)
    for key in first:
        if not (local and ("running" in key or "average" in key)):
            assert torch.equal(first[key], second[key]), key
