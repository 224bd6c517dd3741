"""Backbones by name: those of this package, and any of timm's as "timm:NAME"."""

from collections.abc import Callable

from torch import nn

from sce_fast.backbones.resnet import resnet18, resnet34, resnet50
from sce_fast.util.names import pick

BACKBONES: dict[str, Callable[..., nn.Module]] = {"resnet18": resnet18, "resnet34": resnet34, "resnet50": resnet50}


def build_backbone(name: str, *, width: int = 64, small_input: bool = False) -> nn.Module:
    """A backbone from images (N, 3, H, W) to features (N, dim), with `dim` as an attribute.

    Args:
        name: one of BACKBONES, or "timm:NAME" for a network of timm, without its classifier.
        width: channels of a ResNet's first stage.
        small_input: a ResNet's stem for images of about 32 pixels.

    Raises:
        ValueError: unknown name, or width and small_input given to a timm network.
        ImportError: timm is asked for and not installed.

    Example:
        >>> build_backbone("resnet18", width=16, small_input=True).dim
        128
    """
    if name.startswith("timm:"):
        if (width, small_input) != (64, False):
            raise ValueError(f"{name!r} takes neither width={width} nor small_input={small_input}")
        return _timm_backbone(name.removeprefix("timm:"))
    return pick("backbone", name, BACKBONES, also="timm:NAME")(width=width, small_input=small_input)


def _timm_backbone(name: str) -> nn.Module:
    try:
        import timm
    except ImportError as error:
        raise ImportError(f"backbone 'timm:{name}' needs timm: pip install timm") from error
    network = timm.create_model(name, pretrained=False, num_classes=0)
    # A head that is kept without its classifier may be wider than the last stage.
    network.dim = getattr(network, "head_hidden_size", None) or network.num_features
    return network
