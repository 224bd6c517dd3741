"""A run without a queue, with joint passes and an average for evaluation: what it keeps, evaluates and exports."""

import copy
import dataclasses
import json
import shutil

import pytest
import torch
from torch import nn

from helpers.runs import assert_same_run, final_tensors, small_config
from sce_fast.cli import main
from sce_fast.config import replace, to_json
from sce_fast.export import export, open_backbone
from sce_fast.method.average import update_average
from sce_fast.train import Trainer
from sce_fast.train.checkpoint import checkpoints
from sce_fast.train.step import TrainingStep


@pytest.fixture(scope="module")
def run(photo_folder, tmp_path_factory):
    """Return the trainer of a finished run, and the networks that its evaluations used."""
    config = small_config(photo_folder, tmp_path_factory.mktemp("runs") / "run", epochs=2, keep_checkpoints=9)
    config = replace(
        config, loss={"queue_size": 0, "batch_keys": True}, model={"evaluation_momentum": 0.5, "mutual_pass": True},
        optimizer={"name": "sgd", "base_learning_rate": 3.0},
    )  # fmt: skip
    trainer, evaluated = Trainer(config), []
    original = trainer.evaluation.knn_top1
    trainer.evaluation.knn_top1 = lambda network: (evaluated.append(network), original(network))[1]
    trainer.train()
    return trainer, evaluated


def test_the_average_is_evaluated_saved_and_exported(run, tmp_path):
    trainer, evaluated = run
    average = trainer.training_step.average
    assert [network is average for network in evaluated] == [True, True]  # at the start and at the end
    assert not average.training
    tensors = final_tensors(trainer.config.out)
    assert not any(name.startswith("queue.") for name in tensors)
    path = export(trainer.config.out, out=tmp_path / "backbone.safetensors")
    for opened in (open_backbone(trainer.config.out), open_backbone(path)):
        for name, t in opened.network.state_dict().items():
            assert torch.equal(t, tensors[f"average.{name}"])
    conv = "conv1.weight"
    student, teacher = (tensors[f"model.{name}.{conv}"] for name in ("backbone", "momentum_backbone"))
    assert not torch.equal(tensors[f"average.{conv}"], student)
    assert not torch.equal(tensors[f"average.{conv}"], teacher)
    assert torch.equal(open_backbone(trainer.config.out, momentum=True).network.state_dict()[conv], teacher)


@pytest.mark.parametrize(("weights", "prefix"), [("student", "model.backbone"), ("average", "average")])
def test_either_is_exported(run, tmp_path, weights, prefix):
    folder, out = run[0].config.out, tmp_path / "backbone.safetensors"
    main(["export", str(folder), "--out", str(out), "--weights", weights])
    tensors = final_tensors(folder)
    for name, t in open_backbone(out).network.state_dict().items():
        assert torch.equal(t, tensors[f"{prefix}.{name}"])
    with pytest.raises(ValueError, match=f"weights='{weights}': \\S*backbone.safetensors is a file and holds one"):
        open_backbone(out, weights=weights)
    with pytest.raises(ValueError, match=f"momentum=True, weights='{weights}': expected one of both"):
        open_backbone(folder, momentum=True, weights=weights)


def test_a_run_without_an_average_has_none_to_export(tmp_path):
    config = small_config(tmp_path, tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(to_json(config)))
    with pytest.raises(ValueError, match=r"weights='average': \S* keeps none"):
        export(tmp_path, out=tmp_path / "x.safetensors", weights="average")


@pytest.mark.parametrize("step", [pytest.param(2, marks=pytest.mark.slow), 4])
def test_it_resumes_with_the_same_bits(run, tmp_path, step):
    whole = run[0].config
    part = dataclasses.replace(whole, out=tmp_path / "part", resume=True)
    shutil.copytree(whole.out, part.out)
    (part.out / "summary.json").unlink(missing_ok=True)
    for path in checkpoints(part.out / "checkpoints"):
        if int(path.name.removeprefix("step_")) > step:
            shutil.rmtree(path)
    trainer = Trainer(part)
    assert trainer.state.progress.step == step
    trainer.train()
    assert_same_run(part.out, whole.out)


def test_a_masked_step_moves_no_average(photo_folder, tmp_path):
    config = replace(small_config(photo_folder, tmp_path), model={"evaluation_momentum": 0.5})
    step = TrainingStep(config, torch.device("cpu"))
    views = [torch.randn(8, 3, 32, 32) for _ in range(2)]
    numbers = {"learning_rate": 1.0, "momentum": 0.9}
    step([views], number=0, **numbers)
    before = copy.deepcopy(step.average)
    step([[views[0].fill_(torch.nan), views[1]]], number=1, **numbers)
    assert int(step.guard.failed_step) == 1
    for one, other in zip(step.average.parameters(), before.parameters(), strict=True):
        assert torch.equal(one, other)


def test_an_average_follows_weights_and_statistics_and_copies_counters():
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    average = copy.deepcopy(network)
    start = copy.deepcopy(network.state_dict())
    network(torch.randn(8, 3))
    nn.init.normal_(network[0].weight)
    update_average(average, network, 0.75)
    for name, value in average.state_dict().items():
        now = network.state_dict()[name]
        expected = 0.75 * start[name] + 0.25 * now if now.is_floating_point() else now
        torch.testing.assert_close(value, expected)
    assert int(average[1].num_batches_tracked) == 1
    update_average(average, network, 0.75, skip=torch.tensor(True))
    torch.testing.assert_close(average[0].weight, 0.75 * start["0.weight"] + 0.25 * network[0].weight)
