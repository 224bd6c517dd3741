"""Vision transformers for clips, without a classifier and with the parameter names of VideoMAE's classifiers.

A clip is cut into tubelets of 2 × 16 × 16 pixels. Every tubelet attends to all others, over time and space at once.
"""

import re

import torch
from torch import Tensor, nn
from torch.nn import functional as F

DEPTH = 12  # blocks
FINAL_NORM = re.compile(r"(^|\.)norm\.(weight|bias)$")


class Attention(nn.Module):
    """Attention of all tokens to all tokens. Queries and values have a bias, keys have none."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_bias, self.v_bias = nn.Parameter(torch.zeros(dim)), nn.Parameter(torch.zeros(dim))
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        qkv = F.linear(x, self.qkv.weight, bias).unflatten(2, (3, self.heads, -1))
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """Two layers with a GELU between them."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """Attention and MLP, each with a normalisation before it and a shortcut around both."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(dim, eps=1e-6), Attention(dim, heads)
        self.norm2, self.mlp = nn.LayerNorm(dim, eps=1e-6), MLP(dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class PatchEmbed(nn.Module):
    """A linear map of each tubelet."""

    def __init__(self, dim: int, tubelet: tuple[int, int, int]) -> None:
        super().__init__()
        self.proj = nn.Conv3d(3, dim, tubelet, tubelet)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)


class VideoTransformer(nn.Module):
    """A transformer from clips (N, 3, T, H, W) to features (N, dim): the normalised mean of its tokens.

    The positions of tokens are fixed sines and cosines, as in VideoMAE (Tong et al., NeurIPS 2022), of a number that
    counts columns first, then rows, then time. They have no parameters, so the network takes clips of any number of
    frames and any size. Weights start as in VideoMAE's classifiers: linear layers N(0, 0.02²), truncated.

    Args:
        heads: number of attention heads.
        width: channels of a head; 64 is the published network.
        small_input: cut clips into tubelets of 2 × 4 × 4 pixels, for frames of about 32 pixels.

    Raises:
        ValueError: width is odd or below 2; in forward, the clips are no whole number of tubelets.
    """

    def __init__(self, heads: int, width: int = 64, small_input: bool = False) -> None:
        super().__init__()
        if width < 2 or width % 2:
            raise ValueError(f"width={width}: expected an even number of at least 2")
        self.dim = heads * width
        self.tubelet = (2, 4, 4) if small_input else (2, 16, 16)
        self.patch_embed = PatchEmbed(self.dim, self.tubelet)
        self.blocks = nn.ModuleList(Block(self.dim, heads) for _ in range(DEPTH))
        self.fc_norm = nn.LayerNorm(self.dim, eps=1e-6)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        if any(size % step for size, step in zip(x.shape[2:], self.tubelet, strict=True)):
            frames, height, width = self.tubelet
            raise ValueError(
                f"clips {tuple(x.shape)}: expected multiples of {frames} frames, and of {height} × {width} pixels"
            )
        x = self.patch_embed(x)
        x = x + positions(x.shape[1], self.dim, x.device).to(self.fc_norm.weight.dtype)
        for block in self.blocks:
            x = block(x)
        return self.fc_norm(x.mean(1))

    @staticmethod
    def own_name(name: str) -> str:
        """Return the name here of a tensor in a file of VideoMAE; most names are the same.

        A network from VideoMAE's pretraining normalises each token at its end. Here the mean of the tokens is
        normalised, with those parameters.

        Example:
            >>> VideoTransformer.own_name("encoder.norm.weight"), VideoTransformer.own_name("blocks.0.norm1.bias")
            ('encoder.fc_norm.weight', 'blocks.0.norm1.bias')
        """
        return FINAL_NORM.sub(r"\1fc_norm.\2", name)


def positions(count: int, dim: int, device: torch.device | None = None) -> Tensor:
    """Return the encodings (count, dim) of positions 0, 1, … in float64: sines and cosines in turn (Vaswani et al.)."""
    rates = 10000 ** (-torch.arange(0, dim, 2, dtype=torch.float64, device=device) / dim)
    angles = torch.arange(count, dtype=torch.float64, device=device)[:, None] * rates
    return torch.stack([angles.sin(), angles.cos()], 2).flatten(1)


def vit_small_video(width: int = 64, small_input: bool = False) -> VideoTransformer:
    """Build VideoMAE's ViT-S: 21,879,936 parameters at width 64, dim = 6 · width."""
    return VideoTransformer(6, width, small_input)


def vit_base_video(width: int = 64, small_input: bool = False) -> VideoTransformer:
    """Build VideoMAE's ViT-B: 86,227,200 parameters at width 64, dim = 12 · width."""
    return VideoTransformer(12, width, small_input)
