"""The estimates of memory and time at the start of a run."""

import pytest
import torch

from helpers.runs import small_config
from sce_fast.config import EvaluationConfig, LossConfig, replace
from sce_fast.train import Trainer, train
from sce_fast.train.estimate import Memory, Pace, _saved_bytes, duration, memory
from sce_fast.train.step import TrainingStep

CPU = torch.device("cpu")


def test_an_estimate_counts_what_is_there_and_changes_nothing(photo_folder, tmp_path):
    step = TrainingStep(small_config(photo_folder, tmp_path, loss=LossConfig(queue_size=1000)), CPU)
    before = {f"{n}.{k}": t.clone() for n, module in step.modules.items() for k, t in module.state_dict().items()}
    random = torch.get_rng_state()
    found = memory(step)
    for name, module in step.modules.items():
        for key, tensor in module.state_dict().items():
            assert torch.equal(tensor, before[f"{name}.{key}"]), f"{name}.{key}"
    assert torch.equal(torch.get_rng_state(), random)
    assert all(p.grad is None for p in step.parameters)
    student = sum(p.numel() for p in step.parameters)
    teacher = sum(p.numel() for p in step.model.parameters()) - student
    assert found.state == 4 * (3 * student + teacher)  # weights, gradients, velocities
    assert found.queue == 4 * 1000 * 8
    # Each convolution keeps its input: two views of 8 images, 32 × 32 pixels, 8 channels, five times in stage one.
    assert found.activations > 2 * 5 * 4 * 8 * 8 * 32 * 32


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_activations_of_a_batch_follow_from_a_few_images(photo_folder, tmp_path, precision):
    """With autocast, the weights' 16-bit copies do not grow with the batch."""
    step = TrainingStep(small_config(photo_folder, tmp_path, batch_size=20, precision=precision), CPU)
    assert memory(step).activations == pytest.approx(_saved_bytes(step, step.model, 20), rel=0.02)


def test_an_average_counts_and_no_queue_does_not(photo_folder, tmp_path):
    config = small_config(photo_folder, tmp_path)
    plain = TrainingStep(config, CPU)
    step = TrainingStep(
        replace(config, loss={"queue_size": 0, "batch_keys": True}, model={"evaluation_momentum": 0.99}), CPU
    )
    found = memory(step)
    average = sum(p.numel() for p in step.model.backbone.parameters())
    assert (found.queue, found.state) == (0, memory(plain).state + 4 * average)
    assert "queue" not in found.describe(1)


def test_memory_names_its_parts():
    text = Memory(state=300 * 2**20, activations=2000 * 2**20, queue=2**19).describe(2)
    parts = "activations 2,000 MiB, networks and optimizer 300 MiB, queue 0.5 MiB"
    assert text == f"Memory: about 2,300 MiB on each rank ({parts})"


def test_pace_leaves_out_the_first_step():
    """A step of 60 s that compiles, then steps of 0.5 s."""
    pace, seconds = Pace(660, CPU), [60 + 0.5 * i for i in range(20)]
    assert [pace.is_known(s) for s in seconds] == [i == 10 for i in range(20)]
    assert pace.step_seconds == pytest.approx(0.5, abs=1e-3)
    assert pace.describe() == "Time: about 5 min 30 s for 660 steps of 0.5 s"


@pytest.mark.parametrize(
    ("steps", "step_seconds", "known_after"), [(9, 1.0, 2), (2, 1.0, 2), (30, 1.0, 4), (660, 6, 3)]
)
def test_pace_takes_a_tenth_of_a_short_run_and_ten_seconds_of_a_long_one(steps, step_seconds, known_after):
    pace = Pace(steps, CPU)
    assert [i for i in range(1, steps + 1) if pace.is_known(i * step_seconds)] == [known_after]


def test_a_single_step_has_no_pace():
    assert not Pace(1, CPU).is_known(1.0)


def test_a_short_run_tells_its_estimates_too(photo_folder, tmp_path, capsys):
    train(small_config(photo_folder, tmp_path / "run", epochs=1, evaluation=EvaluationConfig()))
    lines = capsys.readouterr().err.splitlines()
    first = lines.index("24 images, 1 epoch of 3 steps of 8 images; resnet18 on cpu")
    assert lines[first + 1].startswith("Memory: about ")
    assert lines[first + 2].startswith("Training: ")
    (time_line,) = [line for line in lines if line.startswith("Time: about ")]
    assert " for 3 steps of " in time_line


def test_memory_that_does_not_suffice_is_told_with_what_helps(photo_folder, tmp_path, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(TrainingStep, "_differentiate", full)
    with pytest.raises(
        MemoryError, match=r"8 images with views of \[32, 32\] pixels do not fit .*raise --accumulation"
    ):
        Trainer(small_config(photo_folder, tmp_path / "run")).train()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (1.52, "1.5 s"),
        (12.4, "12 s"),
        (200, "3 min 20 s"),
        (3000, "50 min"),
        (18_720, "5 h 12 min"),
        (183_600, "2 d 3 h"),
    ],
)
def test_durations(seconds, text):
    assert duration(seconds) == text
