"""Backbones by name: networks of this package, and any timm network as "timm:NAME"."""

from collections.abc import Callable, Sequence

from torch import nn

from sce_fast.backbones.resnet import resnet18, resnet34, resnet50
from sce_fast.backbones.timm import timm_backbone
from sce_fast.util.names import pick

BACKBONES: dict[str, Callable[..., nn.Module]] = {"resnet18": resnet18, "resnet34": resnet34, "resnet50": resnet50}
OWN = "own"  # the name of a module that the caller has built


def build_backbone(name: str, *, width: int = 64, small_input: bool = False, sizes: Sequence[int] = ()) -> nn.Module:
    """Build a backbone from images (N, 3, H, W) to features (N, dim), with `dim` as an attribute.

    Args:
        name: a name in BACKBONES, or "timm:NAME" for a timm network without its classifier.
        width: channels of a ResNet's first stage.
        small_input: use a ResNet's stem for images of about 32 pixels.
        sizes: sides of the images in pixels, for timm networks that are built for certain sizes: first the size of the
            position embeddings; () for the network's default.

    Raises:
        ValueError: the name is unknown, or a timm network was given a width or small_input.
        ImportError: timm is needed but not installed.

    Example:
        >>> build_backbone("resnet18", width=16, small_input=True).dim
        128
    """
    if name == OWN:
        raise ValueError(
            f"backbone {OWN!r} is a module that was passed to train(); only Python code can pass it again: "
            "train(config, backbone=…), open_backbone(path, backbone=…)"
        )
    if name.startswith("timm:"):
        if (width, small_input) != (64, False):
            raise ValueError(f"{name!r} takes neither width={width} nor small_input={small_input}")
        return timm_backbone(name.removeprefix("timm:"), sizes)
    return pick("backbone", name, BACKBONES, also="timm:NAME")(width=width, small_input=small_input)
