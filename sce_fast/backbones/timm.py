"""Networks of timm, without their classifier."""

from collections.abc import Sequence
from typing import Any

from torch import nn

from sce_fast.util.names import pick


def timm_backbone(name: str, sizes: Sequence[int] = ()) -> nn.Module:
    """Build a timm network with random weights, for square images of these sizes.

    A vision transformer has position embeddings for the first size, and interpolates them for the others.

    Args:
        name: a name of timm.list_models().
        sizes: sides of the images in pixels; () for the network's own default.

    Raises:
        ImportError: timm is not installed, or a package that timm needs.
        ValueError: timm has no such network.
    """
    timm = _import_timm(name)
    architecture = name.partition(".")[0]
    if not timm.is_model(architecture):
        known = timm.list_models()
        pick("timm network", architecture, dict(zip(known, known, strict=True)), shown=5)
    network = _create(timm, name, sizes)
    # Some timm networks keep a head before the classifier, which may be wider than the last stage.
    network.dim = getattr(network, "head_hidden_size", None) or network.num_features
    return network


def _import_timm(name: str) -> Any:
    try:
        import timm
    except Exception as error:  # a torchvision built for another torch raises a RuntimeError
        if isinstance(error, ImportError) and error.name == "timm":
            raise ImportError(f"backbone 'timm:{name}' needs timm: pip install timm", name="timm") from error
        raise ImportError(
            f"backbone 'timm:{name}': timm is installed, but its import fails: {error}; install what timm needs, such "
            "as the torchvision that belongs to the installed torch"
        ) from error
    return timm


def _create(timm: Any, name: str, sizes: Sequence[int]) -> nn.Module:
    """Build a network with the options for image sizes that it knows: convolutional networks have none."""
    options: list[dict[str, Any]] = [{"img_size": sizes[0]}] if sizes else []
    if len(set(sizes)) > 1:
        options.insert(0, {**options[0], "dynamic_img_size": True})
    for option in options:
        try:
            return timm.create_model(name, pretrained=False, num_classes=0, **option)
        except TypeError as error:
            if "unexpected keyword argument" not in str(error):
                raise
    return timm.create_model(name, pretrained=False, num_classes=0)
