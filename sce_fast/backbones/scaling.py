"""Channels of networks whose published numbers of channels belong to width 64."""

from sce_fast.backbones.convolutional import require_width


def scaled(channels: int, width: int) -> int:
    """Return a published number of channels for another width: a multiple of 8, and at least 8.

    oneDNN's 1×1 convolutions for AVX2 hang in the backward pass over fewer channels in channels-last layout.

    Raises:
        ValueError: width is below 1.

    Example:
        >>> scaled(208, 64), scaled(208, 16), scaled(24, 8)
        (208, 56, 8)
    """
    require_width(width)
    return max(8, int(channels * width / 512 + 0.5) * 8)
