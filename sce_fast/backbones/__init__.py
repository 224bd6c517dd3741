"""Backbones by name: networks of this package, and any timm network as "timm:NAME".

Importing this package does not load torch, so that configs can check names.
"""

import importlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from sce_fast.util.names import pick

if TYPE_CHECKING:
    from torch import nn

# name → module with a function of this name
RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "wide_resnet50_2", "wide_resnet101_2")
IMAGE_BACKBONES = dict.fromkeys(RESNETS, "sce_fast.backbones.resnet")
VIDEO_TRANSFORMERS = dict.fromkeys(("vit_small_video", "vit_base_video"), "sce_fast.backbones.video_transformer")
CLIP_BACKBONES = {
    **dict.fromkeys(("r3d18", "r3d50"), "sce_fast.backbones.resnet3d"),
    "r2plus1d18": "sce_fast.backbones.r2plus1d",
    "s3d": "sce_fast.backbones.s3d",
    "x3d_m": "sce_fast.backbones.x3d",
    **VIDEO_TRANSFORMERS,
}
BACKBONES = IMAGE_BACKBONES | CLIP_BACKBONES
TIMM = "timm:"
OWN = "own"  # the name of a module that the caller has built


def takes_clips(name: str) -> bool | None:
    """Return whether a backbone takes clips (N, 3, T, H, W) rather than images; None for own modules and unknown names.

    Example:
        >>> takes_clips("r3d18"), takes_clips("resnet18"), takes_clips("own")
        (True, False, None)
    """
    if name in CLIP_BACKBONES:
        return True
    return False if name in IMAGE_BACKBONES or name.startswith(TIMM) else None


def build_backbone(name: str, *, width: int = 64, small_input: bool = False, sizes: Sequence[int] = ()) -> "nn.Module":
    """Build a backbone from images (N, 3, H, W), or from clips (N, 3, T, H, W), to features (N, dim).

    The dimension is the network's attribute `dim`.

    Args:
        name: a name in BACKBONES, or "timm:NAME" for a timm network for images, without its classifier.
        width: channels of the first stage of a ResNet, R3D or R(2+1)D, or of an attention head of a ViT for clips. S3D
            and X3D scale all their channels by width / 64. The published networks have width 64.
        small_input: use the stem for images or frames of about 32 pixels: for a ViT for clips, patches of 4 pixels.
        sizes: sides of the images in pixels, for timm networks that are built for certain sizes: first the size of the
            position embeddings; () for the network's default.

    Raises:
        ValueError: the name is unknown, or a timm network was given a width or small_input.
        ImportError: timm is needed but not installed.

    Example:
        >>> build_backbone("resnet18", width=16, small_input=True).dim
        128
        >>> build_backbone("r3d18")(torch.randn(2, 3, 8, 112, 112)).shape
        torch.Size([2, 512])
    """
    if name == OWN:
        raise ValueError(
            f"backbone {OWN!r} is a module that was passed to train(); only Python code can pass it again: "
            "train(config, backbone=…), open_backbone(path, backbone=…)"
        )
    if name.startswith(TIMM):
        if (width, small_input) != (64, False):
            raise ValueError(f"{name!r} takes neither width={width} nor small_input={small_input}")
        from sce_fast.backbones.timm import timm_backbone

        return timm_backbone(name.removeprefix(TIMM), sizes)
    module = importlib.import_module(pick("backbone", name, BACKBONES, also="timm:NAME"))
    return getattr(module, name)(width=width, small_input=small_input)
