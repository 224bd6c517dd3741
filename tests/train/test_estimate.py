"""The estimate of time and memory before the first step."""

import pytest
import torch

from helpers.runs import small_config
from sce_fast.config import LossConfig
from sce_fast.train import Trainer, train
from sce_fast.train import estimate as estimate_module
from sce_fast.train.estimate import duration, estimate
from sce_fast.train.step import TrainingStep

CPU = torch.device("cpu")


def test_an_estimate_counts_what_is_there_and_changes_nothing(photo_folder, tmp_path):
    step = TrainingStep(small_config(photo_folder, tmp_path, loss=LossConfig(queue_size=1000)), CPU)
    before = {f"{n}.{k}": t.clone() for n, module in step.modules.items() for k, t in module.state_dict().items()}
    random = torch.get_rng_state()
    found = estimate(step)
    for name, module in step.modules.items():
        for key, tensor in module.state_dict().items():
            assert torch.equal(tensor, before[f"{name}.{key}"]), f"{name}.{key}"
    assert torch.equal(torch.get_rng_state(), random)
    assert all(p.grad is None for p in step.parameters)
    student = sum(p.numel() for p in step.parameters)
    teacher = sum(p.numel() for p in step.model.parameters()) - student
    assert found.state_bytes == 4 * (3 * student + teacher)  # weights, gradients, velocities
    assert found.queue_bytes == 4 * 1000 * 8
    # Each convolution keeps its input: two views of 8 images, 32 × 32 pixels, 8 channels, five times in stage one.
    assert found.activation_bytes > 2 * 5 * 4 * 8 * 8 * 32 * 32
    assert found.step_seconds > 0
    text = found.describe(1000)
    assert text.startswith("Estimate: ")
    assert "1000 steps in" in text


def test_activations_grow_with_the_batch(photo_folder, tmp_path):
    sizes = [
        estimate(TrainingStep(small_config(photo_folder, tmp_path, batch_size=n), CPU)).activation_bytes for n in (4, 8)
    ]
    assert sizes[1] == pytest.approx(2 * sizes[0], rel=0.1)


def test_a_run_tells_its_estimate_before_the_first_step(photo_folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sce_fast.train.trainer.ESTIMATE_FROM", 9)
    train(small_config(photo_folder, tmp_path / "run"))
    lines = capsys.readouterr().err.splitlines()
    (place,) = (i for i, line in enumerate(lines) if line.startswith("Estimate: "))
    assert ", 9 steps in " in lines[place]
    assert place < next(i for i, line in enumerate(lines) if line.startswith("Training: "))


def test_memory_that_does_not_suffice_is_told_with_what_helps(photo_folder, tmp_path, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(estimate_module, "_saved_bytes", full)
    config = small_config(photo_folder, tmp_path / "run", epochs=17)
    with pytest.raises(MemoryError, match=r"8 images of \[32, 32\] pixels do not fit .*raise --accumulation, or lower"):
        Trainer(config).train()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(12.4, "12 s"), (200, "3 min 20 s"), (3000, "50 min"), (18_720, "5 h 12 min"), (183_600, "2 d 3 h")],
)
def test_durations(seconds, text):
    assert duration(seconds) == text
