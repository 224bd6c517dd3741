"""Semi-supervised fine-tuning against known answers: two plain steps, and labels that cannot be learned."""

import copy
import dataclasses

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from sce_fast.evaluate.semi_supervised import PRESETS
from sce_fast.evaluate.supervised.batches import StoredBatches
from sce_fast.evaluate.supervised.classifier import Classifier
from sce_fast.evaluate.supervised.run import Setup, run_supervised

CPU = torch.device("cpu")


def backbone():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())


@pytest.mark.parametrize(("name", "head_rate", "backbone_rate"), [("1%", 5.0, 0.02), ("10%", 0.2, 0.01)])
def test_two_steps_are_those_of_sgd_with_two_groups(name, head_rate, backbone_rate):
    changes = {"epochs": 2, "batch_size": 8, "milestones": (1,), "precision": "float64"}
    settings = dataclasses.replace(PRESETS[name].settings, **changes)
    network = backbone()
    plain = copy.deepcopy(network).double().train()
    classifier = Classifier(network, 8, 3, settings, CPU)
    head = copy.deepcopy(classifier.learners[0].head)
    optimizer = torch.optim.SGD(
        [
            {"params": plain.parameters(), "lr": backbone_rate * 8 / 256},
            {"params": head.parameters(), "lr": head_rate * 8 / 256},
        ],
        momentum=0.9,
    )
    for number in range(2):
        images, labels = torch.randn(8, 3, 6, 6, dtype=torch.float64), torch.randint(3, (8,))
        if number:
            for group in optimizer.param_groups:
                group["lr"] *= 0.2
        loss = cross_entropy(head(plain(images)), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found = classifier.step([(images, labels)], number=number, steps_per_epoch=1)
        assert found.tolist() == pytest.approx([loss.item()], rel=1e-12)
    ours = {**network.state_dict(), **classifier.learners[0].head.state_dict()}
    theirs = {**plain.state_dict(), **head.state_dict()}
    assert ours.keys() == theirs.keys()
    for key, expected in theirs.items():
        assert (ours[key] - expected).abs().max() < 1e-12, key


def test_shuffled_labels_are_chance(tmp_path):
    settings = dataclasses.replace(
        PRESETS["10%"].settings, epochs=3, batch_size=64, milestones=(2,), evaluate_every=3, seed=3
    )
    labels = (torch.arange(512) % 8)[torch.randperm(512)]
    truth = torch.arange(4000) % 8
    train, test = (torch.randn(len(some), 3, 6, 6) for some in (labels, truth))
    batches = StoredBatches(train, labels, test, truth, batch_size=64, seed=3)
    setup = Setup("semi-supervised", backbone(), 8, list("abcdefgh"), batches, settings, {})
    (row,) = run_supervised(setup, tmp_path, device=CPU).rows
    assert row["top1"] == pytest.approx(1 / 8, abs=0.03)
    assert row["top5"] == pytest.approx(5 / 8, abs=0.04)
