"""RoIAlign (He et al., ICCV 2017): feature maps of boxes, by torchvision where it imports and otherwise by ours."""

from functools import cache
from typing import Any

import torch
from torch import Tensor


def roi_align(maps: Tensor, boxes: Tensor, rows: Tensor, *, stride: float, bins: int = 7) -> Tensor:
    """Return the mean features (n, C, bins, bins) of boxes, with half-pixel alignment and an adaptive sampling grid.

    Args:
        maps: (N, C, H, W) feature maps.
        boxes: (n, 4) left, top, right, bottom in pixels of the network's input.
        rows: (n,) int64 number of each box's map, ascending.
        stride: pixels of the input for each pixel of a map.
        bins: cells of the result along each side.

    Example:
        >>> boxes, rows = torch.tensor([[0.0, 0.0, 64.0, 128.0]]), torch.tensor([0])
        >>> roi_align(torch.randn(1, 2048, 14, 14), boxes, rows, stride=16).shape
        torch.Size([1, 2048, 7, 7])
    """
    theirs = _torchvisions()
    if theirs is None:
        return plain_roi_align(maps, boxes, rows, stride=stride, bins=bins)
    numbered = torch.cat([rows[:, None].to(boxes), boxes], dim=1).to(maps)
    return theirs(maps, numbered, bins, spatial_scale=1 / stride, sampling_ratio=0, aligned=True)


def plain_roi_align(maps: Tensor, boxes: Tensor, rows: Tensor, *, stride: float, bins: int = 7) -> Tensor:
    """Return what roi_align returns, by matrix products.

    A bin is the mean of bilinear samples on a grid. Its weights are products of weights along the two sides, so each
    box is one product of a matrix (bins, H), its map, and a matrix (W, bins).
    """
    corners = boxes / stride - 0.5
    down = _weights(corners[:, 1], corners[:, 3], maps.shape[2], bins).to(maps)  # (n, bins, H)
    across = _weights(corners[:, 0], corners[:, 2], maps.shape[3], bins).to(maps)  # (n, bins, W)
    counts = torch.bincount(rows, minlength=len(maps)).tolist()
    parts = zip(maps, down.split(counts), across.split(counts), strict=True)
    return torch.cat([torch.einsum("nph,chw,nqw->ncpq", d, one, a) for one, d, a in parts])


def _weights(start: Tensor, end: Tensor, size: int, bins: int) -> Tensor:
    """Return the weight (n, bins, size) of each pixel in each bin along one side.

    Args:
        start, end: (n,) of the boxes, in pixels of the map whose centres are whole numbers.
        size: of the map.
        bins: number of bins.
    """
    length = (end - start) / bins
    samples = torch.ceil(length).clamp(min=0)  # of each bin; a box without area has none, and its features are 0
    number = torch.arange(int(samples.max()) if len(samples) else 0, device=start.device)
    inside = (number + 0.5) * (length / samples.clamp(min=1))[:, None]  # (n, samples)
    first = start[:, None] + torch.arange(bins, device=start.device) * length[:, None]  # (n, bins)
    places = first[:, :, None] + inside[:, None]  # (n, bins, samples)
    counts = (number < samples[:, None])[:, None] & (places >= -1) & (places <= size)
    pixels = torch.arange(size, device=start.device)
    near = 1 - (places.clamp(0, size - 1)[..., None] - pixels).abs()  # (n, bins, samples, size)
    shares = counts / samples.clamp(min=1)[:, None, None]
    return (near.clamp(min=0) * shares[..., None]).sum(2)


@cache
def _torchvisions() -> Any:
    """Return torchvision's roi_align, or None if torchvision is missing or was built for another torch."""
    try:
        from torchvision.ops import roi_align as theirs
    except (ImportError, RuntimeError, OSError):  # RuntimeError: its operators are missing
        return None
    return theirs
