"""R(2+1)D-18 for clips (Tran et al., CVPR 2018), without a classifier and with torchvision's parameter names.

Every 3D convolution is one in space and one in time, with a normalisation and a ReLU between them. Stages 2 to 4 halve
the number of frames as well as the sides.
"""

from torch import Tensor, nn

from sce_fast.backbones.convolutional import init_convolutions, require_width
from sce_fast.backbones.resnet3d import conv


class Conv2Plus1D(nn.Sequential):
    """A 1×3×3 convolution, then a 3×1×1 convolution, each with the stride along its own axes."""

    def __init__(self, inputs: int, middle: int, outputs: int, stride: int = 1) -> None:
        super().__init__(
            nn.Conv3d(inputs, middle, (1, 3, 3), (1, stride, stride), padding=(0, 1, 1), bias=False),
            nn.BatchNorm3d(middle),
            nn.ReLU(inplace=True),
            nn.Conv3d(middle, outputs, (3, 1, 1), (stride, 1, 1), padding=(1, 0, 0), bias=False),
        )


class Block(nn.Module):
    """Two separated 3×3×3 convolutions and a shortcut; the first one has the stride.

    The channels between space and time are those with which the separated pair has about as many parameters as a full
    convolution. As in torchvision, both pairs have the number that belongs to the first one.
    """

    def __init__(self, inputs: int, planes: int, stride: int) -> None:
        super().__init__()
        middle = 27 * inputs * planes // (9 * inputs + 3 * planes)
        pair = Conv2Plus1D(inputs, middle, planes, stride)
        self.conv1 = nn.Sequential(pair, nn.BatchNorm3d(planes), nn.ReLU(inplace=True))
        self.conv2 = nn.Sequential(Conv2Plus1D(planes, middle, planes), nn.BatchNorm3d(planes))
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Sequential | None = None
        if stride != 1 or inputs != planes:
            self.downsample = nn.Sequential(nn.Conv3d(inputs, planes, 1, stride, bias=False), nn.BatchNorm3d(planes))

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(self.conv1(x))
        return self.relu(y + (x if self.downsample is None else self.downsample(x)))


class R2Plus1D(nn.Module):
    """An R(2+1)D from clips (N, 3, T, H, W) to features (N, dim), averaged over time and space.

    Convolutions are initialised as in He et al., ICCV 2015 (fan-out), as in torchvision.

    Args:
        depths: blocks in each of the four stages.
        width: channels of the first stage; 64 is the published network.
        small_input: use a stem of 1×3×3 and 3×1×1 without stride, for frames of about 32 pixels.

    Raises:
        ValueError: width is below 1.
    """

    def __init__(self, depths: tuple[int, int, int, int], width: int = 64, small_input: bool = False) -> None:
        super().__init__()
        require_width(width)
        middle = max(8, 45 * width // 64)
        kernel, stride = (3, 1) if small_input else (7, 2)
        self.stem = nn.Sequential(
            conv(3, middle, (1, kernel, kernel), stride),
            nn.BatchNorm3d(middle),
            nn.ReLU(inplace=True),
            conv(middle, width, (3, 1, 1)),
            nn.BatchNorm3d(width),
            nn.ReLU(inplace=True),
        )
        inputs = width
        for stage, depth in enumerate(depths):
            blocks = []
            for i in range(depth):
                blocks.append(Block(inputs, width * 2**stage, 2 if stage > 0 and i == 0 else 1))
                inputs = width * 2**stage
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
        self.dim = inputs
        init_convolutions(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for stage in range(1, 5):
            x = self.get_submodule(f"layer{stage}")(x)
        return x.mean((2, 3, 4))


def r2plus1d18(width: int = 64, small_input: bool = False) -> R2Plus1D:
    """Build torchvision's r2plus1d_18: 31,300,125 parameters at width 64, dim = 8 · width."""
    return R2Plus1D((2, 2, 2, 2), width, small_input)
