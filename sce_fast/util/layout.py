"""The layout of tensors in memory for convolutions."""

import torch
from torch import nn

# dimensions → format of channels_last; a benchmark replaces them
FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}


def channels_last(dimensions: int) -> torch.memory_format:
    """Return the format that keeps the channels of a pixel together, for tensors of images (4) or clips (5 dimensions).

    Tensors of other dimensions keep their format.
    """
    return FORMATS.get(dimensions, torch.preserve_format)


def to_channels_last(module: nn.Module) -> nn.Module:
    """Lay out the weights of 2D and 3D convolutions with channels last, in place.

    nn.Module.to(memory_format=…) takes one format, and fails if a network has both kinds of convolutions.
    """
    for tensor in (*module.parameters(), *module.buffers()):
        tensor.data = tensor.data.to(memory_format=channels_last(tensor.dim()))
    return module
