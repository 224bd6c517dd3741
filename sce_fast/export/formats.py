"""Backbones as files of other programs. Each is written, read again and compared before it gets its name."""

import copy
import json
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sce_fast.backbones import OWN, TIMM
from sce_fast.backbones.r2plus1d import R2Plus1D
from sce_fast.backbones.resnet import ResNet
from sce_fast.backbones.resnet3d import ResNet3D
from sce_fast.backbones.s3d import S3D
from sce_fast.backbones.x3d import X3D
from sce_fast.export import detectron2, graphs
from sce_fast.export.source import (
    METADATA,
    Backbone,
    Description,
    ForeignNetwork,
    Student,
    open_backbone,
    read_described,
)
from sce_fast.util.files import printable, replacing, require_new, write_safetensors
from sce_fast.util.names import pick
from sce_fast.util.terminal import say

Features = Callable[[Tensor], Tensor]  # images (N, 3, H, W) or clips (N, 3, T, H, W) → (N, F)
EXAMPLES = 2  # images or clips whose features are compared


@dataclass(frozen=True)
class Format:
    """How a backbone is written to a path that does not exist, and how the features of what was written are computed.

    `write` takes the path and the backbone, `read` the path and the backbone, of which only the architecture is used.
    """

    write: Callable[[Path, Backbone], None]
    read: Callable[[Path, Backbone], Features]
    ending: str = ""  # which the path must have
    networks: str = ""  # that can be written, for messages; "" for all
    takes: Callable[[Backbone], bool] = lambda backbone: True
    tolerance: float = 0.0  # of the features, as a share of the largest


def export(
    run: str | Path,
    /,
    *,
    out: str | Path,
    format: str = "safetensors",
    momentum: bool = False,
    weights: Student | None = None,
    backbone: nn.Module | str | ForeignNetwork | None = None,
) -> Path:
    """Write a backbone in a format of FORMATS and return out.

    The file is read again, and its features of random inputs are compared with the backbone's, before out appears. The
    architecture, the normalisation, the sizes and, for videos, the clips are written as metadata.

    Args:
        run: a run folder, whose newest checkpoint is taken, or a file that open_backbone takes.
        out: new file, or for timm a new folder.
        format: a name in FORMATS.
        momentum: write the momentum encoder's backbone instead of the student's.
        weights: which of the student's backbones to write; by default the average if the run has one.
        backbone: see open_backbone. Without its module, a run of train(config, backbone=…) is written only as
            safetensors.

    Raises:
        FileNotFoundError: run is no run folder or has no checkpoint yet.
        ValueError: out exists or has another ending than the format's, or the format does not take this network,
            or as open_backbone.
        ImportError: a package that the format needs is missing.
        RuntimeError: the file that was written gives other features.

    Example:
        >>> export("runs/photos", out="backbone.onnx", format="onnx")
        PosixPath('backbone.onnx')
    """
    run, out = Path(run), Path(out)
    chosen = pick("format", format, FORMATS)
    require_new(out)
    if not out.name.endswith(chosen.ending):
        raise ValueError(f"out={printable(out)}: expected a name that ends in {chosen.ending} for format={format!r}")
    if format == "safetensors" and backbone is None and _is_own(run, momentum, weights):
        return _export_own(run, out, momentum, weights)
    opened = open_backbone(run, momentum=momentum, weights=weights, backbone=backbone)
    if not chosen.takes(opened):
        name = opened.description.backbone
        raise ValueError(f"format={format!r}: expected {chosen.networks}, and {printable(run)} holds {name}")
    out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(out) as temporary:
        chosen.write(temporary, opened)
        _require_same_features(chosen.read(temporary, opened), opened, chosen.tolerance, format)
    if chosen.networks and isinstance(opened.network, ResNet):
        _tell_of_names(opened.description, format)
    return out


def example(description: Description) -> Tensor:
    """Return random images (2, 3, H, W) or clips (2, 3, T, H, W) of the size that a backbone expects."""
    frames = () if description.clips is None else (description.clips["frames"],)
    shape = (EXAMPLES, 3, *frames, description.crop, description.crop)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def _require_same_features(features: Features, backbone: Backbone, tolerance: float, format: str) -> None:
    inputs = example(backbone.description)
    expected, found = backbone.network(inputs), features(inputs)
    largest, error = float(expected.abs().max()), float((found - expected).abs().max())
    if not error <= tolerance * largest:  # also if either is NaN
        raise RuntimeError(
            f"format={format!r}: the features of what was written differ by {error:.3g} from the backbone's, whose "
            f"largest is {largest:.3g}; nothing was kept"
        )


def _is_own(run: Path, momentum: bool, weights: Student | None) -> bool:
    return read_described(run, momentum, weights)[0].backbone == OWN


def _export_own(run: Path, out: Path, momentum: bool, weights: Student | None) -> Path:
    """Write the tensors of a network that cannot be built here, and compare them with what is read again."""
    description, tensors = read_described(run, momentum, weights)
    out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(out) as temporary:
        write_safetensors(temporary, tensors, {METADATA: text_of(description)})
        written = read_described(temporary, momentum=False)[1]
        if tensors.keys() != written.keys() or not all(torch.equal(t, written[name]) for name, t in tensors.items()):
            raise RuntimeError("format='safetensors': the tensors that were written are not the backbone's")
    return out


def _tell_of_names(description: Description, format: str) -> None:
    """Say if only the names are those of the other program, which has no such network."""
    unlike = [f"width {description.width}"] if description.width != 64 else []
    unlike += ["the stem for small images"] if description.small_input else []
    if unlike:
        say(f"Note: {format} has no {description.backbone} with {' and '.join(unlike)}; only the names are {format}'s")


def text_of(description: Description) -> str:
    """Return a description as JSON."""
    return json.dumps(asdict(description))


def loaded(backbone: Backbone, tensors: dict[str, Tensor]) -> nn.Module:
    """Return a network of the same architecture with these tensors, and with nothing of the backbone's weights."""
    network = copy.deepcopy(backbone.network)
    with torch.no_grad():
        for tensor in network.state_dict().values():
            tensor.zero_()
    network.load_state_dict(tensors)
    return network.eval()


def _tensors(backbone: Backbone) -> dict[str, Tensor]:
    return {name: t.detach().contiguous() for name, t in backbone.network.state_dict().items()}


def _write_safetensors(path: Path, backbone: Backbone) -> None:
    write_safetensors(path, _tensors(backbone), {METADATA: text_of(backbone.description)})


def _read_safetensors(path: Path, backbone: Backbone) -> Features:
    return loaded(backbone, read_described(path, momentum=False)[1])


def _write_state_dict(path: Path, backbone: Backbone) -> None:
    """Write a bare state dict; its `_metadata`, which every state dict has, holds the description."""
    state: Any = OrderedDict(_tensors(backbone))
    state._metadata = OrderedDict({METADATA: {"description": text_of(backbone.description)}})
    torch.save(state, path)


def _read_state_dict(path: Path, backbone: Backbone) -> Features:
    return loaded(backbone, torch.load(path, map_location="cpu", weights_only=True))


def _write_timm(path: Path, backbone: Backbone) -> None:
    """Write a folder as timm keeps models on a hub: config.json and model.safetensors."""
    description: Description = backbone.description
    dim: Any = backbone.network.dim
    config: dict[str, Any] = {
        "architecture": description.backbone.removeprefix(TIMM).partition(".")[0],
        "num_classes": 0,
        "num_features": dim,
        "pretrained_cfg": {
            "tag": "sce_fast",
            "input_size": [3, description.crop, description.crop],
            "interpolation": "bilinear",
            "crop_pct": description.crop / description.resize,
            "crop_mode": "center",
            "mean": description.mean,
            "std": description.std,
            "num_classes": 0,
            "first_conv": None,
            "classifier": None,
        },
    }
    if isinstance(backbone.network, ResNet):
        config["pretrained_cfg"] |= {"first_conv": "conv1", "classifier": "fc"}
    if size := getattr(getattr(backbone.network, "patch_embed", None), "img_size", None):
        config["model_args"] = {"img_size": list(size)}  # otherwise timm resizes the position embeddings
    path.mkdir()
    (path / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    _write_safetensors(path / "model.safetensors", backbone)


def _read_timm(path: Path, backbone: Backbone) -> Features:
    return _read_safetensors(path / "model.safetensors", backbone)


def _write_detectron2(path: Path, backbone: Backbone) -> None:
    detectron2.write(path, _tensors(backbone), {METADATA: text_of(backbone.description)})


def _read_detectron2(path: Path, backbone: Backbone) -> Features:
    return loaded(backbone, detectron2.read(path, backbone.network.state_dict()))


def _write_onnx(path: Path, backbone: Backbone) -> None:
    graphs.write_onnx(path, backbone.network, example(backbone.description), {METADATA: text_of(backbone.description)})


def _write_torch_export(path: Path, backbone: Backbone) -> None:
    metadata = {METADATA: text_of(backbone.description)}
    graphs.write_torch_export(path, backbone.network, example(backbone.description), metadata)


def _is_resnet(backbone: Backbone) -> bool:
    return isinstance(backbone.network, ResNet)


def _is_timms(backbone: Backbone) -> bool:
    return _is_resnet(backbone) or backbone.description.backbone.startswith(TIMM)


def _is_torchvisions(backbone: Backbone) -> bool:
    return isinstance(backbone.network, (ResNet, R2Plus1D, S3D))


def _is_pytorchvideos(backbone: Backbone) -> bool:
    return isinstance(backbone.network, (ResNet3D, X3D))


RESNETS = "a ResNet"
FORMATS = {
    "safetensors": Format(_write_safetensors, _read_safetensors),
    "torchvision": Format(_write_state_dict, _read_state_dict, ".pth", "a ResNet, R(2+1)D or S3D", _is_torchvisions),
    "pytorchvideo": Format(_write_state_dict, _read_state_dict, ".pth", "an R3D or X3D", _is_pytorchvideos),
    "timm": Format(_write_timm, _read_timm, "", f"{RESNETS} or a network of timm", _is_timms),
    "detectron2": Format(_write_detectron2, _read_detectron2, ".pkl", RESNETS, _is_resnet),
    "onnx": Format(_write_onnx, lambda path, _: graphs.read_onnx(path), ".onnx", tolerance=1e-4),
    "torch-export": Format(_write_torch_export, lambda path, _: graphs.read_torch_export(path), ".pt2", tolerance=1e-5),
}
