"""Features of persons in clips by a 3D residual network, and linear heads that score each action by itself."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from sce_fast.backbones.resnet3d import ResNet3D
from sce_fast.distributed import Ranks, world_size
from sce_fast.evaluate.detection.roi_align import roi_align
from sce_fast.evaluate.supervised.classifier import Classifier
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

    def __len__(self) -> int:
        return len(self.clips)


@dataclass(frozen=True)
class PersonRows:
    """The features of the persons in the key frames of clips, computed before."""

    features: Tensor  # (n, F)
    numbers: NDArray[np.int64]  # (n,) as in PersonClips
    clips: int  # N

    def __len__(self) -> int:
        return self.clips


DetectorInputs = PersonClips | PersonRows


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


def numbers_in_batch(rows: NDArray[np.int64], places: NDArray[np.int64], clips: int, ranks: Ranks) -> NDArray[np.int64]:
    """Return the numbers (n,) of persons in a global batch; see PersonClips.

    Args:
        rows: (n,) number of each person's clip among this rank's.
        places: (n,) number of each person in its key frame.
        clips: of each rank's batch.
        ranks: that share the batch.
    """
    return (ranks.rank * clips + rows) * MOST_PERSONS + places


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

    See Classifier for the arguments; the backbone is a PersonFeatures, or nn.Identity() if all inputs are PersonRows.
    """

    @torch.no_grad()
    def features(self, inputs: DetectorInputs) -> Tensor:
        """Return the features (n, F) of persons as the heads read them."""
        return self._features(inputs)

    @torch.no_grad()
    def scores(self, views: DetectorInputs) -> Tensor:
        """Return the probability (heads, n, A) of each action of each person."""
        features = self._features(views)
        return torch.stack([learner.head(features) for learner in self.learners]).sigmoid()

    def _forward(self, inputs: DetectorInputs) -> Tensor:
        if isinstance(inputs, PersonRows):
            return inputs.features.to(self.device, self.dtype, non_blocking=True)
        clips = inputs.clips.to(self.device, self.dtype, non_blocking=True, memory_format=channels_last(5))
        boxes, rows = inputs.boxes.to(self.device, self.dtype), inputs.rows.to(self.device)
        features: Tensor = self.backbone(clips, boxes, rows)
        return features

    def _numbers(self, inputs: DetectorInputs) -> NDArray[np.int64]:
        return inputs.numbers

    def _losses(self, features: Tensor, labels: Tensor) -> list[Tensor]:
        """Return for each head the mean binary cross-entropy over the persons of the global batch and all actions."""
        actions = labels.to(self.dtype)
        persons = self._persons_on_average(len(actions))
        return [
            binary_cross_entropy_with_logits(learner.head(features), actions, reduction="none").mean(1).sum() / persons
            for learner in self.learners
        ]

    def _persons_on_average(self, persons: int) -> Tensor:
        """Return the mean number of persons of the ranks, so that the mean of their gradients is that of one rank."""
        count = torch.tensor(float(persons), device=self.device, dtype=self.dtype)
        if world_size() > 1:
            dist.all_reduce(count)
        return count / world_size()
