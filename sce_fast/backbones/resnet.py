"""ResNets and wide ResNets of any width, without a classifier and with torchvision's parameter names."""

from torch import Tensor, nn

from sce_fast.backbones.convolutional import init_convolutions, require_width


def conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)


class BasicBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut (He et al., CVPR 2016)."""

    expansion = 1

    def __init__(self, inputs: int, planes: int, stride: int, widening: int = 1) -> None:
        super().__init__()
        if widening != 1:
            raise ValueError(f"widening={widening}: expected 1 with blocks of two 3×3 convolutions")
        self.conv1 = conv(inputs, planes, 3, stride)
        self.bn1 = nn.BatchNorm2d(planes)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = conv(planes, planes, 3)
        self.bn2 = nn.BatchNorm2d(planes)
        self.downsample = shortcut(inputs, planes * self.expansion, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return self.relu(y + (x if self.downsample is None else self.downsample(x)))


class Bottleneck(nn.Module):
    """Convolutions 1×1, 3×3 and 1×1, and a shortcut. As in torchvision, the 3×3 convolution has the stride.

    widening multiplies the channels of the 3×3 convolution.
    """

    expansion = 4

    def __init__(self, inputs: int, planes: int, stride: int, widening: int = 1) -> None:
        super().__init__()
        inner = planes * widening
        self.conv1 = conv(inputs, inner, 1)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = conv(inner, inner, 3, stride)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = conv(inner, planes * self.expansion, 1)
        self.bn3 = nn.BatchNorm2d(planes * self.expansion)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = shortcut(inputs, planes * self.expansion, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return self.relu(y + (x if self.downsample is None else self.downsample(x)))


def shortcut(inputs: int, outputs: int, stride: int) -> nn.Sequential | None:
    if stride == 1 and inputs == outputs:
        return None
    return nn.Sequential(conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))


class ResNet(nn.Module):
    """A residual network from images (N, 3, H, W) to pooled features (N, dim).

    Args:
        block: BasicBlock or Bottleneck.
        depths: blocks in each of the four stages.
        width: channels of the first stage; 64 is the published network.
        small_input: use a 3×3 stem with stride 1 and without max-pooling, for images of about 32 pixels.
        widening: factor of the channels inside the blocks, for Bottleneck.

    Raises:
        ValueError: width is below 1, or widening is given with BasicBlock.
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        depths: tuple[int, int, int, int],
        width: int = 64,
        small_input: bool = False,
        widening: int = 1,
    ) -> None:
        super().__init__()
        require_width(width)
        self.conv1 = conv(3, width, 3) if small_input else conv(3, width, 7, 2)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.Identity() if small_input else nn.MaxPool2d(3, 2, padding=1)
        inputs = width
        for stage, depth in enumerate(depths):
            planes = width * 2**stage
            blocks = []
            for i in range(depth):
                blocks.append(block(inputs, planes, 2 if stage > 0 and i == 0 else 1, widening))
                inputs = planes * block.expansion
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.dim = inputs
        init_convolutions(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for stage in range(1, 5):
            x = self.get_submodule(f"layer{stage}")(x)
        return self.avgpool(x).flatten(1)


def resnet18(width: int = 64, small_input: bool = False) -> ResNet:
    """Build a ResNet-18: 11,176,512 parameters at width 64, dim = 8 · width."""
    return ResNet(BasicBlock, (2, 2, 2, 2), width, small_input)


def resnet34(width: int = 64, small_input: bool = False) -> ResNet:
    """Build a ResNet-34: 21,284,672 parameters at width 64, dim = 8 · width."""
    return ResNet(BasicBlock, (3, 4, 6, 3), width, small_input)


def resnet50(width: int = 64, small_input: bool = False) -> ResNet:
    """Build a ResNet-50: 23,508,032 parameters at width 64, dim = 32 · width."""
    return ResNet(Bottleneck, (3, 4, 6, 3), width, small_input)


def resnet101(width: int = 64, small_input: bool = False) -> ResNet:
    """Build a ResNet-101: 42,500,160 parameters at width 64, dim = 32 · width."""
    return ResNet(Bottleneck, (3, 4, 23, 3), width, small_input)


def resnet152(width: int = 64, small_input: bool = False) -> ResNet:
    """Build a ResNet-152: 58,143,808 parameters at width 64, dim = 32 · width."""
    return ResNet(Bottleneck, (3, 8, 36, 3), width, small_input)


def wide_resnet50_2(width: int = 64, small_input: bool = False) -> ResNet:
    """Build a ResNet-50 with blocks twice as wide inside (Zagoruyko & Komodakis, BMVC 2016).

    It has 66,834,240 parameters at width 64, and dim = 32 · width. A width of 128 instead widens everything.
    """
    return ResNet(Bottleneck, (3, 4, 6, 3), width, small_input, widening=2)


def wide_resnet101_2(width: int = 64, small_input: bool = False) -> ResNet:
    """Build a ResNet-101 with blocks twice as wide inside: 124,837,696 parameters at width 64, dim = 32 · width."""
    return ResNet(Bottleneck, (3, 4, 23, 3), width, small_input, widening=2)
