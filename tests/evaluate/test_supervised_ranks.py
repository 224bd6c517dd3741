"""Supervised evaluations on two ranks and on one: the same results up to the order of sums."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from helpers import ranks
from helpers.backbones import write_backbone
from helpers.images import write_png
from sce_fast.evaluate.supervised.classifier import Classifier
from sce_fast.evaluate.supervised.settings import SupervisedSettings


@pytest.fixture(scope="module")
def shades(tmp_path_factory) -> Path:
    """Return a folder with a backbone and labelled images in two overlapping classes, reddish and bluish."""
    root, random = tmp_path_factory.mktemp("shades"), np.random.default_rng(0)
    for part, count in (("train", 12), ("test", 11)):
        for name, shift in (("blue", (-40, 0, 40)), ("red", (40, 0, -40))):
            for i in range(count):
                colour = 128 + np.array(shift) + random.normal(0, 20, 3)
                pixels = np.clip(random.normal(colour, 30, (32, 32, 3)), 0, 255)
                write_png(root / part / name / f"{part}{i:02d}.png", pixels.astype(np.uint8))
    write_backbone(root / "backbone.safetensors")
    return root


def words(shades, out, command, *more):
    sets = ["--train", shades / "train", "--test", shades / "test", "--device", "cpu", "--loader-threads", 1]
    common = ["--precision", "float64", "--epochs", 3, "--batch-size", 8, "--scaling", "none", "--evaluate-every", 1]
    return ["evaluate", command, shades / "backbone.safetensors", *sets, *common, "--out", out, *more]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "more", "tolerance"),
    [
        ("linear", ["--learning-rates", 0.1, 0.05, "--epochs", 6, "--accumulation", 2], 1e-12),
        ("semi-supervised", ["--share", 1, "--learning-rate", 0.1, "--milestones", 2], 1e-9),
    ],
)
def test_one_and_two_ranks_agree(shades, tmp_path, command, more, tolerance):
    for count in (1, 2):
        codes = ranks.command(
            words(shades, tmp_path / f"{count}", command, *more), tmp_path / f"told{count}", ranks=count
        )
        assert codes == [0] * count, (tmp_path / f"told{count}.0").read_text()
    one, two = (load_file(tmp_path / name / "classifier.safetensors") for name in ("1", "2"))
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        assert (tensor.double() - two[name].double()).abs().max() <= tolerance, name
    results = [json.loads((tmp_path / name / "results.json").read_text()) for name in ("1", "2")]
    assert results[0] == results[1]
    assert 0.5 < results[0]["rows"][-1]["top1"] <= 1
    assert (tmp_path / "told2.1").read_text() == ""  # the first rank alone prints


def on_each_rank(group, folder):
    """Train two steps with batch statistics of each rank's rows; write what is tested and the gradients' effect."""
    settings = SupervisedSettings(
        epochs=1, batch_size=8, learning_rates=(0.1,), backbone_learning_rate=0.1, batch_norm="local"
    )
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    classifier = Classifier(backbone, 4, 2, settings, torch.device("cpu"), group)
    for number in range(2):
        inputs, labels = (1 + group.rank) * torch.randn(4, 3) + group.rank, torch.tensor([0, 1, 0, 1])
        classifier.step([(inputs, labels)], number=number, steps_per_epoch=2)
    torch.save(classifier.weights(), folder / f"before{group.rank}")
    classifier.share_statistics()
    torch.save(classifier.weights(), folder / f"after{group.rank}")


@pytest.mark.slow
def test_ranks_test_with_the_statistics_of_the_first(tmp_path):
    ranks.run_in_group(on_each_rank, tmp_path, ranks=2)
    read = {name: torch.load(tmp_path / name, weights_only=True) for name in ("before0", "before1", "after0", "after1")}
    for name, tensor in read["after0"].items():
        assert torch.equal(tensor, read["after1"][name]), name
        assert torch.equal(tensor, read["before0"][name]), name
        assert torch.equal(tensor, read["before1"][name]) == ("running" not in name), name


@pytest.mark.slow
def test_an_evaluation_on_two_ranks_resumes_with_the_same_bits(shades, tmp_path):
    more = ["--learning-rates", 0.05, 0.2, "--checkpoint-every", 1]
    assert ranks.command(words(shades, tmp_path / "whole", "linear", *more), tmp_path / "told", ranks=2) == [0, 0]
    broken = words(shades, tmp_path / "broken", "linear", *more)
    codes = ranks.command(broken, tmp_path / "stopped", fault=stop_at_the_fourth_step, ranks=2)
    assert codes == [75, 75], (tmp_path / "stopped.0").read_text()
    assert "Stopped by " in (tmp_path / "stopped.0").read_text()
    assert ranks.command([*broken, "--resume"], tmp_path / "resumed", ranks=2) == [0, 0]
    for name in ("results.json", "classifier.safetensors", "table.txt"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "broken" / name).read_bytes()


def stop_at_the_fourth_step():
    """Send SIGTERM to the second rank alone."""
    import os
    import signal

    from sce_fast.evaluate.supervised.classifier import Classifier

    step = Classifier.step

    def stopping(self, parts, *, number, steps_per_epoch):
        if number == 3 and os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, parts, number=number, steps_per_epoch=steps_per_epoch)

    Classifier.step = stopping
