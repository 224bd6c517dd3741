"""X3D-M for clips (Feichtenhofer, CVPR 2020), without a classifier and with pytorchvideo's parameter names.

Its blocks are inverted bottlenecks: the 3×3×3 convolution is depthwise and wider than the block. All layers keep the
number of frames.
"""

from torch import Tensor, nn

from sce_fast.backbones.convolutional import init_convolutions
from sce_fast.backbones.resnet3d import Stage, conv
from sce_fast.backbones.scaling import scaled

CHANNELS, DEPTHS, FEATURES = (24, 48, 96, 192), (3, 5, 11, 7), 2048  # of the four stages; of the head
EXPANSION, SQUEEZE = 2.25, 1 / 16  # channels inside a block, and of its gate as a share of those


def pointwise(inputs: int, outputs: int, stride: int = 1) -> nn.Conv3d:
    return conv(inputs, outputs, (1, 1, 1), stride)


class Stem(nn.Module):
    """A 1×3×3 convolution and a depthwise 5×1×1 convolution. pytorchvideo calls the one in space conv_t."""

    def __init__(self, width: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Sequential()
        self.conv.add_module("conv_t", conv(3, width, (1, 3, 3), stride))
        self.conv.add_module("conv_xy", nn.Conv3d(width, width, (5, 1, 1), padding=(2, 0, 0), groups=width, bias=False))
        self.norm = nn.BatchNorm3d(width)
        self.activation = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.norm(self.conv(x)))


class Gate(nn.Module):
    """Squeeze-and-excitation: each channel times a number in (0, 1) that follows from all channels' means."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        squeezed = channels * SQUEEZE
        few = max(8, int(squeezed + 4) // 8 * 8)
        few += 8 if few < 0.9 * squeezed else 0
        self.block = nn.Sequential(
            nn.Conv3d(channels, few, 1), nn.ReLU(inplace=True), nn.Conv3d(few, channels, 1), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * self.block(x.mean((2, 3, 4), keepdim=True))


class Bottleneck(nn.Module):
    """Convolutions 1×1×1, depthwise 3×3×3 and 1×1×1; the second one has the stride, and a gate in every other block."""

    def __init__(self, inputs: int, outputs: int, stride: int, gated: bool) -> None:
        super().__init__()
        inner = int(EXPANSION * outputs)
        self.conv_a = pointwise(inputs, inner)
        self.norm_a = nn.BatchNorm3d(inner)
        self.act_a = nn.ReLU(inplace=True)
        self.conv_b = nn.Conv3d(inner, inner, 3, (1, stride, stride), padding=1, groups=inner, bias=False)
        self.norm_b = nn.Sequential(nn.BatchNorm3d(inner), Gate(inner) if gated else nn.Identity())
        self.act_b = nn.SiLU()
        self.conv_c = pointwise(inner, outputs)
        self.norm_c = nn.BatchNorm3d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act_a(self.norm_a(self.conv_a(x)))
        x = self.act_b(self.norm_b(self.conv_b(x)))
        return self.norm_c(self.conv_c(x))


class Block(nn.Module):
    """A residual block: branch 1 is the shortcut, branch 2 the convolutions.

    As in pytorchvideo, a shortcut between equal numbers of channels has no normalisation.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, gated: bool) -> None:
        super().__init__()
        differ = inputs != outputs
        self.branch1_conv = pointwise(inputs, outputs, stride) if differ or stride != 1 else nn.Identity()
        self.branch1_norm = nn.BatchNorm3d(outputs) if differ else nn.Identity()
        self.branch2 = Bottleneck(inputs, outputs, stride, gated)
        self.activation = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.branch1_norm(self.branch1_conv(x)) + self.branch2(x))


class ProjectedPool(nn.Module):
    """A 1×1×1 convolution, the mean over time and space, and a convolution to the features."""

    def __init__(self, inputs: int, inner: int, outputs: int) -> None:
        super().__init__()
        self.pre_conv = pointwise(inputs, inner)
        self.pre_norm = nn.BatchNorm3d(inner)
        self.pre_act = nn.ReLU(inplace=True)
        self.post_conv = pointwise(inner, outputs)
        self.post_act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pre_act(self.pre_norm(self.pre_conv(x)))
        return self.post_act(self.post_conv(x.mean((2, 3, 4), keepdim=True)))


class Head(nn.Module):
    """What pytorchvideo's head has before its classifier."""

    def __init__(self, inputs: int, inner: int, outputs: int) -> None:
        super().__init__()
        self.pool = ProjectedPool(inputs, inner, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(x).flatten(1)


class X3D(nn.Module):
    """An X3D-M from clips (N, 3, T, H, W) to features (N, dim), which the head computes from their mean.

    Convolutions are initialised as in He et al., ICCV 2015 (fan-out). The last normalisation of each block starts with
    γ = 0, so that every block starts as the identity; this is pytorchvideo's initialisation of its networks.

    Args:
        width: 64 is the published network, with 24 channels in the first stage; all channels scale with it.
        small_input: use a stem without stride, for frames of about 32 pixels.

    Raises:
        ValueError: width is below 1.
    """

    def __init__(self, width: int = 64, small_input: bool = False) -> None:
        super().__init__()
        channels = [scaled(count, width) for count in CHANNELS]
        inputs = channels[0]
        self.blocks = nn.ModuleList([Stem(inputs, 1 if small_input else 2)])
        for depth, outputs in zip(DEPTHS, channels, strict=True):
            blocks = []
            for i in range(depth):
                blocks.append(Block(inputs, outputs, 1 if i else 2, gated=i % 2 == 0))
                inputs = outputs
            self.blocks.append(Stage(blocks))
        self.dim = scaled(FEATURES, width)
        self.blocks.append(Head(inputs, int(EXPANSION * inputs), self.dim))
        init_convolutions(self)
        for module in self.modules():
            if isinstance(module, Bottleneck):
                nn.init.zeros_(module.norm_c.weight)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


def x3d_m(width: int = 64, small_input: bool = False) -> X3D:
    """Build an X3D-M: 2,974,674 parameters at width 64, dim = 32 · width."""
    return X3D(width, small_input)
