"""What all convolutional networks of this package share: the check of their width, and how their weights start."""

from torch import nn


def require_width(width: int) -> None:
    """Raise ValueError if a width is below 1."""
    if width < 1:
        raise ValueError(f"width={width}: expected at least 1")


def init_convolutions(network: nn.Module) -> None:
    """Draw the weights of a network's convolutions as in He et al., ICCV 2015 (fan-out); biases become 0."""
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.Conv3d)):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
