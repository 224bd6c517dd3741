"""The training step on clips: shapes, memory layout, batch statistics, estimates and checks."""

import pytest
import torch
from torch import nn

from helpers.runs import small_config
from sce_fast.config import TrainConfig, replace
from sce_fast.method.batch_norm import GroupedBatchNorm, SyncBatchNorm, synchronized
from sce_fast.method.build import build_model
from sce_fast.train.estimate import _saved_bytes, memory
from sce_fast.train.preflight import require_runnable
from sce_fast.train.step import TrainingStep

CPU = torch.device("cpu")


def clip_config(tmp_path, **changes) -> TrainConfig:
    model = {"backbone": "r3d18", **changes.pop("model", {})}
    config = small_config(tmp_path / "videos", tmp_path / "run", **changes)
    return replace(config, clips={"frames": 4}, model=model)


class OverFrames(nn.Module):
    """A network of 2D and 3D convolutions: images one by one, then along time."""

    def __init__(self) -> None:
        super().__init__()
        self.space, self.norm = nn.Conv2d(3, 8, 3, stride=4), nn.BatchNorm2d(8)
        self.time = nn.Conv3d(8, 12, (3, 1, 1))

    def forward(self, clips: torch.Tensor) -> torch.Tensor:
        frames = self.norm(self.space(clips.transpose(1, 2).flatten(0, 1))).relu()
        return self.time(frames.unflatten(0, (len(clips), -1)).transpose(1, 2)).mean((2, 3, 4))


@pytest.mark.parametrize("backbone", [None, OverFrames], ids=["r3d18", "own"])
@pytest.mark.parametrize("settings", [{}, {"batch_norm": "shuffle", "batch_norm_groups": 4}], ids=["local", "shuffle"])
def test_a_step_on_clips_trains(tmp_path, backbone, settings):
    config = clip_config(tmp_path, model=settings)
    step = TrainingStep(config, CPU, backbone=None if backbone is None else backbone())
    require_runnable(step)
    before = [p.detach().clone() for p in step.parameters]
    keys = step.queue.keys.clone()
    views = [torch.randn(8, 3, 4, 32, 32) for _ in range(2)]
    measures = step([views], number=0, learning_rate=0.1, momentum=0.99)
    assert measures["loss"].isfinite()
    assert int(step.guard.failed_step) == -1
    changed = [not torch.equal(p, old) for p, old in zip(step.parameters, before, strict=True)]
    assert sum(changed) > len(changed) / 2  # γ = 0 at the start holds back the gradients of some layers
    assert (step.queue.keys != keys).any(1).sum() == 16
    for p in step.model.parameters():
        if p.dim() == 5:
            assert p.is_contiguous(memory_format=torch.channels_last_3d)
        if p.dim() == 4:
            assert p.is_contiguous(memory_format=torch.channels_last)


def test_rows_that_share_statistics_are_those_of_the_setting(tmp_path):
    """Shuffling makes groups in 3D networks too, unlike the official code."""
    model = build_model(clip_config(tmp_path, model={"batch_norm": "shuffle"}).model)
    of_keys = [m for m in model.momentum_backbone.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert {type(m) for m in of_keys} == {GroupedBatchNorm}
    assert not any(isinstance(m, GroupedBatchNorm) for m in model.backbone.modules())
    assert not any(isinstance(m, GroupedBatchNorm) for m in model.momentum_projector.modules())
    synced = synchronized(build_model(clip_config(tmp_path).model), CPU)
    norms = [m for m in synced.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert {type(m) for m in norms} == {SyncBatchNorm}


def test_keys_of_groups_depend_on_their_own_group(tmp_path):
    torch.manual_seed(0)
    model = build_model(clip_config(tmp_path, model={"batch_norm": "shuffle", "projector_norm": "none"}).model)
    clips = torch.randn(16, 3, 4, 16, 16)
    other = torch.cat([clips[:2], torch.randn(14, 3, 4, 16, 16)])
    assert torch.equal(model.encode_key(clips)[:2], model.encode_key(other)[:2])  # 8 groups of two rows
    assert not torch.allclose(model.encode_key(clips)[2:], model.encode_key(other)[2:], atol=1e-3)


@pytest.mark.slow
def test_the_activations_of_clips_follow_from_a_few(tmp_path):
    step = TrainingStep(clip_config(tmp_path, batch_size=20), CPU)
    found = memory(step).activations
    assert found == pytest.approx(_saved_bytes(step, step.model, 20), rel=0.02)
    images = TrainingStep(small_config(tmp_path, tmp_path / "run", batch_size=20), CPU)
    assert found > 3 * memory(images).activations  # four frames


def test_a_network_that_does_not_take_clips_is_refused(tmp_path):
    config, own = clip_config(tmp_path, model={"backbone": "own"}), nn.Conv2d(3, 4, 3)
    with pytest.raises(ValueError, match=r"Conv2d does not take clips \(2, 3, 4, 32, 32\)"):
        TrainingStep(config, CPU, backbone=own)
    own.dim = 4  # so that only the trial shows it
    message = "model.backbone='own' does not take clips of 4 frames of 32 pixels in precision='float32' on cpu"
    with pytest.raises(ValueError, match=message):
        require_runnable(TrainingStep(config, CPU, backbone=own))
