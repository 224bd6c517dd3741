"""Backbones of run folders and of exported files. A file holds tensors and a description.

The tensors of a ResNet have torchvision's names, those of an R3D pytorchvideo's. Other networks keep their own names.
"""

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from sce_fast.backbones import build_backbone
from sce_fast.data.image.augment import EvaluationView
from sce_fast.data.image.background import NONE
from sce_fast.data.video.augment import ClipEvaluationView
from sce_fast.data.video.clips import ClipSampling
from sce_fast.train.checkpoint import checkpoints, load_checkpoint
from sce_fast.train.folder import CHECKPOINTS, read_config
from sce_fast.util.files import printable, require_new, save_tensors

METADATA = "sce_fast"  # key of the description in the file's metadata
# Entries of Description.clips.
VIEW_OF_CLIPS, SAMPLING_OF_CLIPS = ("clips", "crops", "frame_rate"), ("frames", "seconds", "stride")


@dataclass(frozen=True, kw_only=True)
class Description:
    """The architecture of a backbone and the images or clips that it expects, stored as JSON in the file's metadata."""

    backbone: str
    """Name for build_backbone."""
    width: int
    """Channels of the first stage of a ResNet or R3D."""
    small_input: bool
    """Whether a ResNet or R3D has the stem for small images."""
    mean: tuple[float, float, float]
    """Mean of each channel for values in [0, 1]."""
    std: tuple[float, float, float]
    """Standard deviation of each channel for values in [0, 1]."""
    resize: int
    """Length of the shorter side in pixels after resizing."""
    crop: int
    """Side of the square centre crop in pixels."""
    background: str = NONE
    """Colour behind transparent images, as background_color takes it. Files of earlier versions lack this entry."""
    momentum: bool
    """Whether the backbone is the momentum encoder's instead of the student's."""
    step: int
    """Number of training steps."""
    sizes: tuple[int, ...] = ()
    """Sides of the images in pixels for which a timm network is built; () for its default."""
    clips: dict[str, Any] | None = None
    """For a network of clips, how they are taken from a video: fields of ClipEvaluationView and of its sampling."""

    def view(self) -> EvaluationView:
        """Return the view of an image, or of a video as a ClipEvaluationView, that the backbone expects."""
        settings: dict[str, Any] = {"resize": self.resize, "crop": self.crop, "mean": self.mean, "std": self.std}
        if self.clips is None:
            return EvaluationView(**settings, background=self.background)
        own = {name: self.clips[name] for name in VIEW_OF_CLIPS}
        sampling = ClipSampling(**{name: self.clips[name] for name in SAMPLING_OF_CLIPS})
        return ClipEvaluationView(**settings, **own, sampling=sampling)

    def build(self) -> nn.Module:
        """Build the network with random weights."""
        return build_backbone(self.backbone, width=self.width, small_input=self.small_input, sizes=self.sizes)


@dataclass(frozen=True)
class Backbone:
    """A trained network on the CPU, in eval mode, with its description."""

    network: nn.Module  # images (N, 3, H, W), or clips (N, 3, T, H, W) → (N, network.dim)
    description: Description


def open_backbone(path: str | Path, *, momentum: bool = False, backbone: nn.Module | None = None) -> Backbone:
    """Read the backbone of a run folder's newest checkpoint or of an exported file; the network is in eval mode.

    Args:
        path: a run folder, or a file that export has written.
        momentum: read the momentum encoder's backbone instead of the student's; only for a run folder.
        backbone: the module to load the weights into, for a run of train(config, backbone=…).

    Raises:
        FileNotFoundError: the path does not exist, or the folder is not a run or has no checkpoint yet.
        ValueError: the file is not an exported backbone, momentum is given with a file, or the weights are of another
            network than `backbone`.

    Example:
        >>> network = open_backbone("runs/photos").network
        >>> features = network(images)  # (N, 3, H, W) → (N, network.dim)
    """
    description, tensors = _read(Path(path), momentum)
    network = description.build() if backbone is None else backbone
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:  # torch's message names every tensor
        raise ValueError(f"{printable(path)} holds another network than {type(network).__name__}: {error}") from error
    return Backbone(network.cpu().eval(), description)


def export(run: Path, /, *, out: Path, momentum: bool = False) -> Path:
    """Write the backbone of a run's newest checkpoint as safetensors and return out.

    The parameters of a ResNet have torchvision's names, those of an R3D pytorchvideo's. The architecture, the
    normalisation and, for videos, the clips are written as metadata.

    Args:
        run: Run folder.
        out: New file.
        momentum: Write the momentum encoder's backbone instead of the student's.

    Raises:
        FileNotFoundError: run is no run folder or has no checkpoint yet.
        ValueError: out exists.
    """
    run, out = Path(run), Path(out)
    require_new(out)
    description, tensors = _read(run, momentum)
    save_tensors(out, tensors, {METADATA: json.dumps(asdict(description))})
    return out


def _read(path: Path, momentum: bool) -> tuple[Description, dict[str, Tensor]]:
    """Return the description and the tensors of a run's backbone or of an exported file."""
    if path.is_dir():
        return _read_run(path, momentum)
    if momentum:
        raise ValueError(f"momentum=True: {printable(path)} is a file and holds one backbone; give a run folder")
    if not path.exists():
        raise FileNotFoundError(f"{printable(path)}: no such run folder or exported backbone")
    return _read_file(path)


def _read_run(run: Path, momentum: bool) -> tuple[Description, dict[str, Tensor]]:
    config = read_config(run)
    found = checkpoints(run / CHECKPOINTS)
    if not found:
        raise FileNotFoundError(f"{printable(run)} has no checkpoint yet")
    checkpoint = load_checkpoint(found[-1])
    view = config.evaluation_view()
    description = Description(
        backbone=config.model.backbone,
        width=config.model.width,
        small_input=config.model.small_input,
        mean=view.mean,
        std=view.std,
        resize=view.resize,
        crop=view.crop,
        background=view.background,
        momentum=momentum,
        step=checkpoint.state["step"],
        sizes=config.image_sizes(),
        clips=_clips_of(view) if isinstance(view, ClipEvaluationView) else None,
    )
    evaluated = "average." if config.model.evaluation_momentum else "model.backbone."
    prefix = "model.momentum_backbone." if momentum else evaluated
    tensors = {name.removeprefix(prefix): t for name, t in checkpoint.tensors.items() if name.startswith(prefix)}
    return description, tensors


def _clips_of(view: ClipEvaluationView) -> dict[str, Any]:
    return {
        **{name: getattr(view, name) for name in VIEW_OF_CLIPS},
        **{name: getattr(view.sampling, name) for name in SAMPLING_OF_CLIPS},
    }


def _read_file(path: Path) -> tuple[Description, dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = (file.metadata() or {}).get(METADATA)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except SafetensorError as error:
        raise ValueError(f"{printable(path)} is neither a run folder nor a safetensors file: {error}") from error
    if metadata is None:
        raise ValueError(f"{printable(path)} is not a backbone of sce-fast export: its metadata lacks {METADATA!r}")
    return _read_description(json.loads(metadata), path), tensors


def _read_description(values: dict[str, Any], path: Path) -> Description:
    values = {"sizes": [], "background": NONE, "clips": None, **values}  # files of earlier versions lack these
    wrong = {f.name for f in fields(Description)} ^ values.keys()
    if wrong:
        raise ValueError(f"{printable(path)}: its metadata has unknown or missing entries: {sorted(wrong)}")
    lists: dict[str, Any] = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
    return Description(**{**values, **lists})
