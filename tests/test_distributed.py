"""Two ranks train as one rank does, stop together, and resume together."""

import dataclasses
import itertools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from helpers import ranks
from helpers.runs import final_tensors, small_config
from sce_fast.config import EvaluationConfig, LossConfig, OptimizerConfig
from sce_fast.data.index import index_images
from sce_fast.method.batch_norm import GroupedBatchNorm, SyncBatchNorm, grouped, synchronized
from sce_fast.train import Trainer, train
from sce_fast.train.step import TrainingStep

CPU = torch.device("cpu")
SYNC = dataclasses.replace(small_config(Path(), Path()).model, batch_norm="sync")


def use_a_smooth_activation():
    """Replace ReLU: at its kink a gradient depends on the last bit of a sum, and sums over ranks differ there."""
    nn.ReLU = nn.SiLU


def train_and_record(config, record):
    """Train; write the pixels that each step of this rank saw."""
    use_a_smooth_activation()
    seen, original = [], TrainingStep.__call__

    def step(self, parts, **settings):
        def noted():
            for views in parts:
                seen.append(torch.stack(views))
                yield views

        return original(self, noted(), **settings)

    TrainingStep.__call__ = step
    train(config)
    torch.save(seen, f"{record}.{os.environ.get('RANK', 0)}")


@pytest.mark.slow
@pytest.mark.parametrize(("accumulation", "steps"), [(1, 51), (2, 17)])
def test_two_ranks_train_as_one(photo_folder, tmp_path, accumulation, steps):
    """In float64 over many steps: the same pixels, weights within 1e-8, keys in the same order.

    Views of 16 pixels would be faster, but leave batch norm so few values that rounding grows beyond 1e-8.
    """
    changes = dict(
        epochs=steps, batch_size=24, loss=LossConfig(queue_size=96, target_temperature=0.07), precision="float64",
        model=SYNC, checkpoint_every=100, accumulation=accumulation, loader_threads=1,
        optimizer=OptimizerConfig(base_learning_rate=0.1, warmup_epochs=1),
        evaluation=EvaluationConfig(
            train=photo_folder, test=photo_folder, every=steps // 2, resize=40, crop=32, neighbours=3
        ),
    )  # fmt: skip
    for count in (1, 2):
        config = small_config(photo_folder, tmp_path / f"run{count}", **changes)
        ranks.run(train_and_record, config, tmp_path / f"seen{count}", ranks=count)
    one, first, second = (torch.load(tmp_path / name) for name in ("seen1.0", "seen2.0", "seen2.1"))
    assert len(one) == steps * accumulation
    for whole, part0, part1 in zip(one, first, second, strict=True):
        assert torch.equal(whole, torch.cat([part0, part1], dim=1))
    tensors, others = (final_tensors(tmp_path / f"run{count}") for count in (1, 2))
    for name, tensor in tensors.items():
        if not name.startswith("random."):
            torch.testing.assert_close(others[name], tensor, rtol=1e-8, atol=1e-8, msg=lambda m, n=name: f"{n}: {m}")
    assert not torch.equal(tensors["queue.keys"][0], tensors["queue.keys"][1])
    logs = [
        [json.loads(line) for line in (tmp_path / f"run{count}" / "log.jsonl").read_text().splitlines()]
        for count in (1, 2)
    ]
    assert [line["step"] for line in logs[0]] == [line["step"] for line in logs[1]]
    for line, other in zip(*logs, strict=True):
        assert line.keys() == other.keys()
        if line["event"] == "train":
            assert other["loss"] == pytest.approx(line["loss"], rel=1e-8)
        else:
            assert other["top1"] == line["top1"]


def gradients_of_one_step(group, config, result):
    use_a_smooth_activation()
    trainer = Trainer(config, group)
    trainer.training_step(trainer._batches([]), number=0, learning_rate=0.1, momentum=0.9)
    if group.is_first:
        torch.save([p.grad for p in trainer.training_step.parameters], result)


def test_two_ranks_in_float32_have_the_gradients_of_one_in_float64(photo_folder, tmp_path):
    """Within 1e-5. (One process in float32 differs more, through torch's own batch norm: 1e-5 to 4e-5.)"""
    changes = dict(
        batch_size=24, model=dataclasses.replace(SYNC, projector_norm="none"), loader_threads=1,
        loss=LossConfig(queue_size=96, temperature=1.0, target_temperature=1.0),
    )  # fmt: skip
    for count, precision in ((1, "float64"), (2, "float32")):
        config = small_config(photo_folder, tmp_path / f"run{count}", precision=precision, **changes)
        ranks.run_in_group(gradients_of_one_step, config, tmp_path / f"gradients{count}", ranks=count)
    one, two = (
        torch.cat([g.double().flatten() for g in torch.load(tmp_path / f"gradients{count}")]) for count in (1, 2)
    )
    assert (one - two).norm() <= 1e-5 * one.norm()


SHAPES = ((6, 4), (6, 4, 3, 5), (6, 4, 2, 3, 2))


def normalize_rows(group, result):
    outputs = []
    for kind, shape in zip((nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d), SHAPES, strict=True):
        torch.manual_seed(3)
        layer, x, weights = kind(4).double(), torch.randn(shape).double(), torch.randn(shape).double()
        nn.init.uniform_(layer.weight)
        nn.init.uniform_(layer.bias)
        layer = synchronized(layer, CPU)
        assert isinstance(layer, SyncBatchNorm)
        own = x.chunk(group.size)[group.rank].clone().requires_grad_()
        for _ in range(2):
            y = layer(own)
        (y * weights.chunk(group.size)[group.rank]).sum().backward()
        gradients = [torch.stack(group.gather_tensors(p.grad)).sum(0) for p in layer.parameters()]
        whole = [torch.cat(group.gather_tensors(t.detach())) for t in (y, own.grad)]
        outputs.append([*whole, *gradients, layer.running_mean, layer.running_var])
    if group.is_first:
        torch.save(outputs, result)


def test_synchronized_batch_norm_is_that_of_one_process(tmp_path):
    for count in (1, 2, 3):
        ranks.run_in_group(normalize_rows, tmp_path / f"{count}", ranks=count)
    one = torch.load(tmp_path / "1")
    for count in (2, 3):
        for outputs, expected in zip(torch.load(tmp_path / f"{count}"), one, strict=True):
            torch.testing.assert_close(outputs, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("kind", "shape"), [(nn.BatchNorm2d, (3, 3)), (nn.BatchNorm3d, (2, 3, 3))])
def test_grouped_batch_norm_is_that_of_several_gpus(kind, shape):
    x = torch.randn(8, 4, *shape, dtype=torch.float64)
    layers = [kind(4).double() for _ in range(2)]
    whole = grouped(nn.Sequential(kind(4)), 2).double()
    assert isinstance(whole[0], GroupedBatchNorm)
    expected = torch.cat([layer(part) for layer, part in zip(layers, x.chunk(2), strict=True)])
    torch.testing.assert_close(whole(x), expected)
    for name in ("running_mean", "running_var"):
        mean = torch.stack([getattr(layer, name) for layer in layers]).mean(0)
        torch.testing.assert_close(getattr(whole[0], name), mean)
    whole.eval()
    expected = nn.functional.batch_norm(x[:1], whole[0].running_mean, whole[0].running_var)
    torch.testing.assert_close(whole(x[:1]), expected)
    with pytest.raises(ValueError, match="7 rows: expected a multiple of the 2 groups"):
        whole.train()(x[:7])


class BatchNormAct(nn.BatchNorm2d):
    """A layer like timm's: normalisation with an activation."""

    def forward(self, x):
        return super().forward(x).relu()


@pytest.mark.parametrize("replace", [lambda net: synchronized(net, CPU), lambda net: grouped(net, 2)])
def test_a_layer_that_does_more_than_batch_norm_is_not_replaced(replace):
    with pytest.raises(ValueError, match=r"layer 1 is a BatchNormAct.*expected model.batch_norm=local"):
        replace(nn.Sequential(nn.Conv2d(3, 4, 3), BatchNormAct(4)))


def keys_of_one_step(group, config, result):
    trainer = Trainer(config, group)
    trainer.training_step(trainer._batches([]), number=0, learning_rate=0.1, momentum=0.9)
    if group.is_first:
        torch.save(trainer.training_step.queue.keys, result)


@pytest.mark.slow
def test_shuffled_batch_norm_makes_the_same_keys_on_any_ranks(photo_folder, tmp_path):
    """Four groups on one process, or two on each of two ranks, of each view or of both views in a joint pass.

    The projector has no batch norm of its own.
    """
    model = dataclasses.replace(SYNC, batch_norm="shuffle", batch_norm_groups=4, projector_norm="none")
    queues = {}
    for count, groups, joint in (
        (1, 4, False),
        (2, 4, False),
        (1, 2, False),
        (2, 2, False),
        (1, 4, True),
        (2, 4, True),
    ):
        config = small_config(
            photo_folder, tmp_path / f"run{count}{groups}{joint}", precision="float64", loader_threads=1,
            model=dataclasses.replace(model, batch_norm_groups=groups, mutual_pass=joint),
        )  # fmt: skip
        ranks.run_in_group(keys_of_one_step, config, tmp_path / "queue", ranks=count)
        queues[count, groups, joint] = torch.load(tmp_path / "queue")
    different = [queues[1, 4, False], queues[1, 2, False], queues[1, 4, True]]
    others = [queues[2, 4, False], queues[2, 2, False], queues[2, 4, True]]
    for keys, of_two_ranks in zip(different, others, strict=True):
        torch.testing.assert_close(keys, of_two_ranks, rtol=1e-12, atol=1e-12)
    for one, other in itertools.combinations(different, 2):
        assert not torch.allclose(one, other, atol=1e-3)
    with pytest.raises(ValueError, match=r"model.batch_norm_groups=4: expected a multiple of the 3 ranks"):
        TrainingStep(
            small_config(photo_folder, tmp_path / "x", batch_size=9, model=model), CPU,
            dataclasses.replace(Trainer(small_config(photo_folder, tmp_path / "y")).ranks, size=3),
        )  # fmt: skip
    odd = dataclasses.replace(model, batch_norm_groups=3)
    with pytest.raises(ValueError, match=r"model.batch_norm_groups=3: expected a divisor of the 8 images"):
        TrainingStep(small_config(photo_folder, tmp_path / "x", model=odd), CPU)


def spoil_and_train(group, config, bad_rank, bad_step, result):
    """Train with a NaN among the pixels of one rank at one step."""
    original = TrainingStep.__call__
    rank = int(os.environ.get("RANK", 0))

    def step(self, parts, *, number, **settings):
        def spoiled():
            for views in parts:
                if number == bad_step and rank == bad_rank:
                    views[0][0, 0, 0, 0] = float("nan")
                yield views

        return original(self, spoiled(), number=number, **settings)

    TrainingStep.__call__ = step
    trainer = Trainer(config, group)
    try:
        trainer.train()
    except RuntimeError as error:
        state = {f"{n}.{k}": v for n, m in trainer.training_step.modules.items() for k, v in m.state_dict().items()}
        torch.save((str(error), state), f"{result}.{rank}")


@pytest.mark.parametrize("precision", ["float32", pytest.param("float16", marks=pytest.mark.slow)])
def test_a_loss_that_is_not_finite_stops_all_ranks_before_damage(photo_folder, tmp_path, precision):
    """The flag is read at step 9 and names step 6: on every rank nothing has changed since step 5."""
    config = small_config(
        photo_folder, tmp_path / "run", precision=precision, log_every=9, checkpoint_every=5, loader_threads=1,
        evaluation=EvaluationConfig(),
    )  # fmt: skip
    ranks.run_in_group(spoil_and_train, config, 1, 5, tmp_path / "result", ranks=2)
    (message, state), (other_message, other) = (torch.load(tmp_path / f"result.{rank}") for rank in range(2))
    assert "step 6: the loss of rank 1 is not finite" in message == other_message
    saved = final_tensors(tmp_path / "run")
    frozen = [name for name in state if "running" not in name and "num_batches" not in name and "guard" not in name]
    for name in frozen:
        assert torch.equal(state[name], saved[name]), name
    for name in (n for n in frozen):
        assert torch.equal(other[name], state[name]), name
    names = (tmp_path / "run" / "not_finite_step_00000006.txt").read_text().splitlines()
    assert len(names) == 8
    index = index_images(photo_folder)
    assert {line.split("\t")[0] for line in names} == {"rank 0", "rank 1"}
    assert {line.split("\t")[1] for line in names} <= set(index.listing.names)


ORPHAN = """
import os, sys, time
import sce_fast
parent = os.getppid()
print(os.getpid(), flush=True)
while os.getppid() == parent:
    time.sleep(0.01)
import torch
from sce_fast.distributed import process_group
with process_group(torch.device("cpu")):
    pass
"""


@pytest.mark.slow
def test_a_rank_whose_torchrun_dies_while_it_starts_ends():
    """It would wait for the other ranks for hours. Here torchrun is a process that starts one of two ranks."""
    environment = {"TORCHELASTIC_RUN_ID": "1", "WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "127.0.0.1"}
    environment["MASTER_PORT"] = "9"  # nobody listens
    start = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {ORPHAN!r}])"
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    torchrun = subprocess.Popen([sys.executable, "-c", start], env={**os.environ, **environment}, **pipes)
    rank = int(torchrun.stdout.readline())
    torchrun.kill()
    try:
        _, told = torchrun.communicate(timeout=60)  # until the rank, too, has closed the pipes
    except subprocess.TimeoutExpired:
        os.kill(rank, signal.SIGKILL)
        raise
    assert "RuntimeError: torchrun ended while this rank was starting" in told


@pytest.mark.slow
def test_what_the_first_rank_refuses_all_refuse(photo_folder, tmp_path):
    config = small_config(photo_folder, tmp_path / "run", loader_threads=1)
    ranks.run(train, config, ranks=2)
    assert ranks.join(ranks.start(train, config, ranks=2)) == [1, 1]  # a finished run, no --resume


def test_another_number_of_ranks_goes_on_with_a_warning(photo_folder, tmp_path):
    config = small_config(photo_folder, tmp_path / "run", loader_threads=1)
    ranks.run(train, config)  # with one thread
    torch.set_num_threads(2)
    with pytest.warns(UserWarning, match="will not have the same bits: threads 1 then, 2 now"):
        Trainer(dataclasses.replace(config, resume=True))


def test_a_batch_that_ranks_cannot_share_is_named(photo_folder, tmp_path):
    config = small_config(photo_folder, tmp_path, batch_size=6, loss=LossConfig(queue_size=40, target_temperature=0.07))
    with pytest.raises(ValueError, match=r"batch_size=6: expected a multiple of ranks=4 · accumulation=1"):
        config.rank_batch(4)
    with pytest.raises(ValueError, match=r"batch_size=6: expected a multiple of ranks=1 · accumulation=4"):
        dataclasses.replace(config, accumulation=4)
