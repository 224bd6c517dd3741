"""S3D for clips (Xie et al., ECCV 2018), without a classifier and with torchvision's parameter names.

Its convolutions over time and space are separated as in R(2+1)D, and its blocks are Inception's. The number of frames
falls to an eighth.
"""

import re

import torch
from torch import Tensor, nn

from sce_fast.backbones.convolutional import init_convolutions
from sce_fast.backbones.scaling import scaled

# Channels of a block's branches: 1×1×1; 1×1×1 and 3×3×3; the same, narrower; 1×1×1 after a pool.
Channels = tuple[int, int, int, int, int, int]
# Blocks of the stages after the second, third and fourth pool.
THIRD: tuple[Channels, ...] = ((64, 96, 128, 16, 32, 32), (128, 128, 192, 32, 96, 64))
FOURTH: tuple[Channels, ...] = (
    (192, 96, 208, 16, 48, 64), (160, 112, 224, 24, 64, 64), (128, 128, 256, 24, 64, 64), (112, 144, 288, 32, 64, 64),
    (256, 160, 320, 32, 128, 128),
)  # fmt: skip
FIFTH: tuple[Channels, ...] = ((256, 160, 320, 32, 128, 128), (384, 192, 384, 48, 128, 128))
# Modules in the code of SCE → their numbers in `features`.
SCE_NUMBERS = {
    "Conv_1a": 0, "Conv_2b": 2, "Conv_2c": 3, "Mixed_3b": 5, "Mixed_3c": 6, "Mixed_4b": 8, "Mixed_4c": 9,
    "Mixed_4d": 10, "Mixed_4e": 11, "Mixed_4f": 12, "Mixed_5b": 14, "Mixed_5c": 15,
}  # fmt: skip
SCE_BLOCKS = (0, 1, 4, 7, 13)  # where block1 to block5 of that code begin, which hold the same modules once more
# The layers of a convolution in the files of other programs → torchvision's.
LAYERS = {
    "conv": "0", "bn": "1", "conv_s": "0.0", "bn_s": "0.1", "conv_t": "1.0", "bn_t": "1.1", "conv1": "0.0",
    "bn1": "0.1", "conv2": "1.0", "bn2": "1.1",
}  # fmt: skip
OTHER_NAME = re.compile(
    r"^(?P<prefix>(?:.*\.)?)(?:base\.(?P<base>\d+)|block(?P<block>[1-5])\.(?P<index>\d+)|"
    rf"(?P<name>{'|'.join(SCE_NUMBERS)}))"
    rf"\.(?P<branch>(?:branch\d\.\d\.)?)(?P<layer>{'|'.join(LAYERS)})\.(?P<tensor>\w+)$"
)


class Convolution(nn.Sequential):
    """A convolution that keeps the size but for its stride, a normalisation and a ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: tuple[int, int, int], stride: tuple[int, int, int]) -> None:
        padding = (kernel[0] // 2, kernel[1] // 2, kernel[2] // 2)
        super().__init__(
            nn.Conv3d(inputs, outputs, kernel, stride, padding=padding, bias=False),
            nn.BatchNorm3d(outputs, eps=1e-3),
            nn.ReLU(inplace=True),
        )


def pointwise(inputs: int, outputs: int) -> Convolution:
    return Convolution(inputs, outputs, (1, 1, 1), (1, 1, 1))


def separated(inputs: int, outputs: int) -> nn.Sequential:
    """Return a convolution in space and one in time."""
    return nn.Sequential(
        Convolution(inputs, outputs, (1, 3, 3), (1, 1, 1)), Convolution(outputs, outputs, (3, 1, 1), (1, 1, 1))
    )


class Inception(nn.Module):
    """Four branches, whose channels are joined."""

    def __init__(self, inputs: int, channels: Channels, width: int) -> None:
        super().__init__()
        one, narrow1, wide1, narrow2, wide2, pooled = (scaled(count, width) for count in channels)
        self.branch0 = pointwise(inputs, one)
        self.branch1 = nn.Sequential(pointwise(inputs, narrow1), separated(narrow1, wide1))
        self.branch2 = nn.Sequential(pointwise(inputs, narrow2), separated(narrow2, wide2))
        self.branch3 = nn.Sequential(nn.MaxPool3d(3, 1, padding=1), pointwise(inputs, pooled))
        self.outputs = one + wide1 + wide2 + pooled

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.branch0(x), self.branch1(x), self.branch2(x), self.branch3(x)], 1)


def inceptions(inputs: int, width: int, stage: tuple[Channels, ...]) -> list[Inception]:
    """Return the blocks of a stage with the published channels scaled to a width."""
    blocks: list[Inception] = []
    for channels in stage:
        blocks.append(Inception(blocks[-1].outputs if blocks else inputs, channels, width))
    return blocks


class HalvingPool(nn.Module):
    """A 2×2×2 max-pool with stride 2, which leaves an axis of length 1 as it is, so that short clips pass."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.max_pool3d(x, [min(2, size) for size in x.shape[2:]])


class S3D(nn.Module):
    """An S3D from clips (N, 3, T, H, W) to features (N, dim), averaged over time and space.

    Convolutions are initialised as in He et al., ICCV 2015 (fan-out), as in the code of SCE. The normalisations have
    ε = 0.001, as the public checkpoints; their running statistics have torch's momentum 0.1, as in the code of SCE,
    since the published 0.001 leaves them behind in short runs.

    Args:
        width: channels of the first convolution; 64 is the published network, and all channels scale with it.
        small_input: use a first convolution of 7×3×3 with a stride in time alone, and no pool after it, for frames of
            about 32 pixels.

    Raises:
        ValueError: width is below 1.
    """

    def __init__(self, width: int = 64, small_input: bool = False) -> None:
        super().__init__()
        first, second = scaled(64, width), scaled(192, width)
        side, stride = (3, 1) if small_input else (7, 2)
        pool = nn.MaxPool3d((1, 3, 3), (1, 2, 2), padding=(0, 1, 1))
        third = inceptions(second, width, THIRD)
        fourth = inceptions(third[-1].outputs, width, FOURTH)
        fifth = inceptions(fourth[-1].outputs, width, FIFTH)
        self.features = nn.Sequential(
            nn.Sequential(
                Convolution(3, first, (1, side, side), (1, stride, stride)),
                Convolution(first, first, (7, 1, 1), (2, 1, 1)),
            ),
            nn.Identity() if small_input else pool,
            pointwise(first, first),
            separated(first, second),
            pool,
            *third,
            nn.MaxPool3d(3, 2, padding=1),
            *fourth,
            HalvingPool(),
            *fifth,
        )
        self.dim = fifth[-1].outputs
        init_convolutions(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.features(x).mean((2, 3, 4))

    @staticmethod
    def own_name(name: str) -> str:
        """Return the name here of a tensor in a file of kylemin's S3D or of the code of SCE; other names stay.

        Example:
            >>> S3D.own_name("module.base.5.branch1.1.conv_s.weight")
            'module.features.5.branch1.1.0.0.weight'
            >>> S3D.own_name("trunk.Mixed_3b.branch1.1.conv1.weight")
            'trunk.features.5.branch1.1.0.0.weight'
        """
        if (match := OTHER_NAME.match(name)) is None:
            return name
        if match["base"]:
            number = int(match["base"])
        elif match["name"]:
            number = SCE_NUMBERS[match["name"]]
        else:
            number = SCE_BLOCKS[int(match["block"]) - 1] + int(match["index"])
        # A branch of one convolution is no sequence in torchvision.
        branch = "branch0." if match["branch"] == "branch0.0." else match["branch"]
        return f"{match['prefix']}features.{number}.{branch}{LAYERS[match['layer']]}.{match['tensor']}"


def s3d(width: int = 64, small_input: bool = False) -> S3D:
    """Build an S3D: 7,910,048 parameters at width 64, dim = 16 · width for a width that is a multiple of 8."""
    return S3D(width, small_input)
