"""Backbones by name: networks of this package, and any timm network as "timm:NAME"."""

from collections.abc import Callable

from torch import nn

from sce_fast.backbones.resnet import resnet18, resnet34, resnet50
from sce_fast.util.names import pick

BACKBONES: dict[str, Callable[..., nn.Module]] = {"resnet18": resnet18, "resnet34": resnet34, "resnet50": resnet50}


def build_backbone(name: str, *, width: int = 64, small_input: bool = False) -> nn.Module:
    """Build a backbone from images (N, 3, H, W) to features (N, dim), with `dim` as an attribute.

    Args:
        name: a name in BACKBONES, or "timm:NAME" for a timm network without its classifier.
        width: channels of a ResNet's first stage.
        small_input: use a ResNet's stem for images of about 32 pixels.

    Raises:
        ValueError: the name is unknown, or a timm network was given a width or small_input.
        ImportError: timm is needed but not installed.

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
    # Some timm networks keep a head before the classifier, which may be wider than the last stage.
    network.dim = getattr(network, "head_hidden_size", None) or network.num_features
    return network
