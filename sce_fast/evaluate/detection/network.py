"""Features of persons in clips by a 3D residual network, and linear heads that score each action by itself."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from sce_fast.backbones.resnet3d import ResNet3D
from sce_fast.distributed import world_size
from sce_fast.evaluate.detection.roi_align import roi_align
from sce_fast.evaluate.supervised.classifier import Classifier, average_over_ranks, kept_features
from sce_fast.util.layout import channels_last

BINS = 7  # of RoIAlign, along each side
MOST_PERSONS = 2**12  # in a key frame; only the numbers of dropout depend on it


@dataclass(frozen=True)
class PersonClips:
    """Clips with the boxes of the persons in their key frames."""

    clips: Tensor  # (N, 3, F, H, W)
    boxes: Tensor  # (n, 4) left, top, right, bottom in pixels of the clip
    rows: Tensor  # (n,) int64 number of each person's clip, ascending
    numbers: NDArray[np.int64]  # (n,) number of each person in a global batch of clips, on any number of ranks


class PersonFeatures(nn.Module):
    """The features of persons: maps of the backbone's last stage, averaged over time, in the boxes of the persons.

    The last stage keeps the resolution of the stage before: its stride becomes 1, and its spatial convolutions get a
    dilation of 2, so that trained weights still fit. RoIAlign cuts 7 × 7 bins out of the map of each box, and the
    largest value of each channel is the feature. This is SlowFast's head for AVA.

    Args:
        network: r3d18 or r3d50. Its last stage is changed in place.

    Raises:
        ValueError: the backbone is another one.

    Example:
        >>> features = PersonFeatures(build_backbone("r3d50"))
        >>> clips, boxes = torch.randn(1, 3, 8, 224, 224), torch.tensor([[0.0, 0.0, 100.0, 200.0]])
        >>> features(clips, boxes, torch.tensor([0])).shape
        torch.Size([1, 2048])
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        if not isinstance(network, ResNet3D):
            raise ValueError(f"backbone {type(network).__name__}: action detection expects r3d18 or r3d50")
        self.network = network
        self.dim = network.dim
        dilate(network.blocks[-1])
        self.stride = 1
        for name, module in network.named_modules():
            # A shortcut strides together with the branch beside it.
            if isinstance(module, nn.Conv3d | nn.MaxPool3d) and not name.endswith("branch1_conv"):
                stride = module.stride
                self.stride *= stride if isinstance(stride, int) else stride[-1]

    def forward(self, clips: Tensor, boxes: Tensor, rows: Tensor) -> Tensor:
        for block in self.network.blocks:
            clips = block(clips)
        with torch.autocast(clips.device.type, enabled=False):
            maps = clips.to(boxes.dtype).mean(2)
            return roi_align(maps, boxes, rows, stride=self.stride, bins=BINS).amax((2, 3))


def dilate(stage: nn.Module) -> None:
    """Give the convolutions of a stage stride 1, and those of 3 × 3 pixels a dilation of 2, in place.

    Example:
        >>> network = build_backbone("r3d50")
        >>> dilate(network.blocks[-1])  # 14 × 14 pixels of 224 × 224 instead of 7 × 7
    """
    for module in stage.modules():
        if isinstance(module, nn.Conv3d):
            module.stride = (1, 1, 1)
            if module.kernel_size[1:] == (3, 3):
                module.dilation, module.padding = (1, 2, 2), (module.kernel_size[0] // 2, 2, 2)


class Detector(Classifier):
    """Linear heads on the features of persons: a person may do several actions, so each has a sigmoid of its own.

    See Classifier for the arguments; the backbone is a PersonFeatures.
    """

    def step(  # type: ignore[override]
        self, parts: Iterable[tuple[PersonClips, Tensor]], *, number: int, steps_per_epoch: int
    ) -> Tensor:
        """Take one optimizer step of every head; return their losses (heads,).

        The loss is the mean binary cross-entropy over the persons of a global batch and all actions.

        Args:
            parts: `accumulation` pairs of clips and actions (n, A), each drawn when its turn comes.
            number: of the step, from 0.
            steps_per_epoch: for the schedule.
        """
        for learner in self.learners:
            learner.optimizer.zero_grad(set_to_none=True)
            for group in learner.optimizer.param_groups:
                group["lr"] = self.settings.rate(group["base"], number, steps_per_epoch)
        share, losses = 1 / self.settings.accumulation, []
        self.backbone.train(self.trains_backbone)
        for part, (inputs, actions) in enumerate(parts):
            features, actions = self._features(inputs), actions.to(self.device, self.dtype)
            if self.settings.dropout:
                features = features * self._kept(inputs, number, part)
            persons = self._persons_on_average(len(actions))
            own = [self._loss(learner.head(features), actions) / persons for learner in self.learners]
            guarded = [learner.guard.guarded(loss * share) for learner, loss in zip(self.learners, own, strict=True)]
            torch.stack(guarded).sum().backward()
            losses.append(torch.stack(own).detach())
        self.backbone.eval()
        average_over_ranks([p.grad for learner in self.learners for p in learner.parameters if p.grad is not None])
        for learner in self.learners:
            gradients = [p.grad for p in learner.parameters if p.grad is not None]
            learner.optimizer.step(skip=learner.guard.check(gradients, number))
        return torch.stack(losses).mean(0)

    @torch.no_grad()
    def scores(self, views: PersonClips) -> Tensor:  # type: ignore[override]
        """Return the probability (heads, n, A) of each action of each person."""
        features = self._features(views)
        return torch.stack([learner.head(features) for learner in self.learners]).sigmoid()

    def _features(self, inputs: PersonClips) -> Tensor:  # type: ignore[override]
        clips = inputs.clips.to(self.device, self.dtype, non_blocking=True, memory_format=channels_last(5))
        narrow = self.settings.precision == "bfloat16"
        with (
            torch.set_grad_enabled(self.trains_backbone and torch.is_grad_enabled()),
            torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=narrow),
        ):
            return self.backbone(clips, inputs.boxes.to(self.device, self.dtype), inputs.rows.to(self.device))

    def _kept(self, inputs: PersonClips, step: int, part: int) -> Tensor:
        """Return the factors (n, F) of the features: 0, or 1 / (1 − dropout)."""
        dim, dropout = self.learners[0].head.in_features, self.settings.dropout
        kept = kept_features(self.settings.seed, step, part, inputs.numbers, dim, dropout)
        return torch.from_numpy(kept / (1 - dropout)).to(self.device, self.dtype, non_blocking=True)

    def _persons_on_average(self, persons: int) -> Tensor:
        """Return the mean number of persons of the ranks, so that the mean of their gradients is that of one rank."""
        count = torch.tensor(float(persons), device=self.device, dtype=self.dtype)
        if world_size() > 1:
            dist.all_reduce(count)
        return count / world_size()

    @staticmethod
    def _loss(logits: Tensor, actions: Tensor) -> Tensor:
        return binary_cross_entropy_with_logits(logits, actions, reduction="none").mean(1).sum()
