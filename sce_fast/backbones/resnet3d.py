"""R3D-18 and Slow R3D-50 for clips, of any width, without a classifier and with pytorchvideo's parameter names.

Both keep the number of frames: only stages 3 and 4 have temporal kernels, and no layer has a temporal stride.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from sce_fast.backbones.convolutional import init_convolutions, require_width

Size = tuple[int, int, int]  # time, height, width
TEMPORAL_SIZES = (1, 1, 3, 3)  # of conv_a in each stage


def conv(inputs: int, outputs: int, kernel: Size, stride: int = 1) -> nn.Conv3d:
    """Return a convolution without bias that keeps the number of frames and strides in space alone."""
    padding = (kernel[0] // 2, kernel[1] // 2, kernel[2] // 2)
    return nn.Conv3d(inputs, outputs, kernel, (1, stride, stride), padding=padding, bias=False)


class BasicBranch(nn.Module):
    """Convolutions t×3×3 and 1×3×3; the first one has the stride."""

    expansion = 1

    def __init__(self, inputs: int, planes: int, time: int, stride: int) -> None:
        super().__init__()
        self.conv_a = conv(inputs, planes, (time, 3, 3), stride)
        self.norm_a = nn.BatchNorm3d(planes)
        self.act_a = nn.ReLU(inplace=True)
        self.conv_b = conv(planes, planes, (1, 3, 3))
        self.norm_b = nn.BatchNorm3d(planes)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm_b(self.conv_b(self.act_a(self.norm_a(self.conv_a(x)))))

    @property
    def last_norm(self) -> nn.BatchNorm3d:
        return self.norm_b


class BottleneckBranch(nn.Module):
    """Convolutions t×1×1, 1×3×3 and 1×1×1; the second one has the stride."""

    expansion = 4

    def __init__(self, inputs: int, planes: int, time: int, stride: int) -> None:
        super().__init__()
        self.conv_a = conv(inputs, planes, (time, 1, 1))
        self.norm_a = nn.BatchNorm3d(planes)
        self.act_a = nn.ReLU(inplace=True)
        self.conv_b = conv(planes, planes, (1, 3, 3), stride)
        self.norm_b = nn.BatchNorm3d(planes)
        self.act_b = nn.ReLU(inplace=True)
        self.conv_c = conv(planes, planes * self.expansion, (1, 1, 1))
        self.norm_c = nn.BatchNorm3d(planes * self.expansion)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act_a(self.norm_a(self.conv_a(x)))
        x = self.act_b(self.norm_b(self.conv_b(x)))
        return self.norm_c(self.conv_c(x))

    @property
    def last_norm(self) -> nn.BatchNorm3d:
        return self.norm_c


class Block(nn.Module):
    """A residual block: branch 1 is the shortcut, branch 2 the convolutions."""

    def __init__(
        self, branch: type[BasicBranch] | type[BottleneckBranch], inputs: int, planes: int, time: int, stride: int
    ) -> None:
        super().__init__()
        outputs = planes * branch.expansion
        projects = stride != 1 or inputs != outputs
        self.branch1_conv = conv(inputs, outputs, (1, 1, 1), stride) if projects else None
        self.branch1_norm = nn.BatchNorm3d(outputs) if projects else None
        self.branch2 = branch(inputs, planes, time, stride)
        self.activation = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x
        if self.branch1_conv is not None and self.branch1_norm is not None:
            shortcut = self.branch1_norm(self.branch1_conv(x))
        return self.activation(shortcut + self.branch2(x))


class Stem(nn.Module):
    """A 1×7×7 convolution with stride 2 and max-pooling; for small frames 1×3×3 without stride or pooling."""

    def __init__(self, width: int, small_input: bool) -> None:
        super().__init__()
        self.conv = conv(3, width, (1, 3, 3)) if small_input else conv(3, width, (1, 7, 7), 2)
        self.norm = nn.BatchNorm3d(width)
        self.activation = nn.ReLU(inplace=True)
        self.pool = nn.Identity() if small_input else nn.MaxPool3d((1, 3, 3), (1, 2, 2), padding=(0, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(self.activation(self.norm(self.conv(x))))


class Stage(nn.Module):
    """The residual blocks of one resolution."""

    def __init__(self, blocks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.res_blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.res_blocks:
            x = block(x)
        return x


class ResNet3D(nn.Module):
    """A residual network from clips (N, 3, T, H, W) to features (N, dim), averaged over time and space.

    Convolutions are initialised as in He et al., ICCV 2015 (fan-out). The last normalisation of each block starts with
    γ = 0, so that every block starts as the identity; this is pytorchvideo's initialisation, which the published runs
    used.

    Args:
        branch: BasicBranch or BottleneckBranch.
        depths: blocks in each of the four stages.
        width: channels of the first stage; 64 is the published network.
        small_input: use a 1×3×3 stem with stride 1 and without max-pooling, for frames of about 32 pixels.

    Raises:
        ValueError: width is below 1.
    """

    def __init__(
        self,
        branch: type[BasicBranch] | type[BottleneckBranch],
        depths: tuple[int, int, int, int],
        width: int = 64,
        small_input: bool = False,
    ) -> None:
        super().__init__()
        require_width(width)
        self.blocks = nn.ModuleList([Stem(width, small_input)])
        inputs = width
        for stage, (depth, time) in enumerate(zip(depths, TEMPORAL_SIZES, strict=True)):
            blocks = []
            for i in range(depth):
                blocks.append(Block(branch, inputs, width * 2**stage, time, stride=2 if stage > 0 and i == 0 else 1))
                inputs = width * 2**stage * branch.expansion
            self.blocks.append(Stage(blocks))
        self.dim = inputs
        init_convolutions(self)
        for module in self.modules():
            if isinstance(module, Block):
                nn.init.zeros_(module.branch2.last_norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x.mean((2, 3, 4))


def r3d18(width: int = 64, small_input: bool = False) -> ResNet3D:
    """Build the R3D-18 of the papers' smaller video runs: 20.0 million parameters at width 64, dim = 8 · width."""
    return ResNet3D(BasicBranch, (2, 2, 2, 2), width, small_input)


def r3d50(width: int = 64, small_input: bool = False) -> ResNet3D:
    """Build a Slow R3D-50: 31.6 million parameters at width 64, dim = 32 · width."""
    return ResNet3D(BottleneckBranch, (3, 4, 6, 3), width, small_input)
