"""Backbones of run folders, of exported files, and of files of weights from elsewhere.

An exported file holds tensors and a description. The tensors of a ResNet, R(2+1)D or S3D have torchvision's names,
those of an R3D or X3D pytorchvideo's, those of a ViT for clips VideoMAE's. Other networks keep their own names.
"""

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from sce_fast.backbones import TIMM, build_backbone, takes_clips
from sce_fast.backbones.weights import read_weights
from sce_fast.data.image.augment import IMAGENET_MEAN, IMAGENET_STD, EvaluationView
from sce_fast.data.image.background import NONE
from sce_fast.data.video.augment import ClipEvaluationView
from sce_fast.data.video.clips import ClipSampling
from sce_fast.train.checkpoint import checkpoints, load_checkpoint
from sce_fast.train.folder import CHECKPOINTS, read_config
from sce_fast.util.files import printable

METADATA = "sce_fast"  # key of the description in the file's metadata
NAME_IT = "for weights from elsewhere, name their network: --backbone resnet50, say"
Student = Literal["student", "average"]  # the student's own weights, or their average over the steps
# Entries of Description.clips.
VIEW_OF_CLIPS, SAMPLING_OF_CLIPS = ("clips", "crops", "frame_rate"), ("frames", "seconds", "stride")


@dataclass(frozen=True, kw_only=True)
class Description:
    """The architecture of a backbone and the images or clips that it expects, stored as JSON in the file's metadata."""

    backbone: str
    """Name for build_backbone."""
    width: int
    """Width for build_backbone."""
    small_input: bool
    """Whether the network has the stem for small images."""
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
    weights: str = ""
    """Name of the file of weights from elsewhere; "" for those of a run."""

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


@dataclass(frozen=True, kw_only=True)
class ForeignNetwork:
    """What a file of weights from elsewhere does not say of its network."""

    backbone: str | None = None
    """Network of a file of weights from elsewhere (torchvision, timm, the SCE releases), such as resnet50 or timm:NAME.
    The options below describe it further."""
    width: int = 64
    """Width of the network as in --model.width; 64 is the published network."""
    small_input: bool = False
    """The network has the stem for images of about 32 pixels."""
    pattern: str | None = None
    """Regular expression for the beginning of the names in the file, which is cut off, such as momentum_trunk\\. for
    the teacher in a Lightning checkpoint of SCE. By default, the student is found by its names."""
    mean: tuple[float, float, float] | None = None
    """Mean of each channel. Default: ImageNet's for images, 0.45 for clips."""
    std: tuple[float, float, float] | None = None
    """Standard deviation of each channel. Default: ImageNet's for images, 0.225 for clips."""


@dataclass(frozen=True, kw_only=True)
class Foreign(ForeignNetwork):
    """What a file of weights from elsewhere does not say: its network, and the images or clips that it expects."""

    resize: int | None = None
    """Shorter side of an image or frame after resizing. Default: 256 pixels, or 32 with small_input."""
    crop: int | None = None
    """Side of the centre crop. Default: 224 pixels, or 32 with small_input."""
    frames: int = 8
    """Frames of a clip."""
    seconds: float = 2.56
    """Time that a clip covers."""

    def describe(self, path: Path) -> "Description":
        """Return the description of the backbone in a file.

        Raises:
            ValueError: a setting is out of range.
        """
        assert self.backbone is not None
        clips = bool(takes_clips(self.backbone))
        resize, crop = (32, 32) if self.small_input else (256, 224)
        view: EvaluationView = EvaluationView(
            resize=max(resize, self.crop or 0) if self.resize is None else self.resize,
            crop=min(crop, self.resize or crop) if self.crop is None else self.crop,
            mean=self.mean or ((0.45,) * 3 if clips else IMAGENET_MEAN),
            std=self.std or ((0.225,) * 3 if clips else IMAGENET_STD),
        )
        sampling = ClipSampling(frames=self.frames, seconds=self.seconds)
        return Description(
            backbone=self.backbone,
            width=self.width,
            small_input=self.small_input,
            mean=view.mean,
            std=view.std,
            resize=view.resize,
            crop=view.crop,
            background=view.background,
            momentum=False,
            step=0,
            sizes=(view.crop,) if self.backbone.startswith(TIMM) else (),
            clips=_clips_of(ClipEvaluationView(sampling=sampling)) if clips else None,
            weights=path.name,
        )


@dataclass(frozen=True)
class Backbone:
    """A trained network on the CPU, in eval mode, with its description."""

    network: nn.Module  # images (N, 3, H, W), or clips (N, 3, T, H, W) → (N, network.dim)
    description: Description


def open_backbone(
    path: str | Path,
    *,
    momentum: bool = False,
    weights: Student | None = None,
    backbone: nn.Module | str | ForeignNetwork | None = None,
) -> Backbone:
    """Read the backbone of a run folder's newest checkpoint or of a file; the network is in eval mode.

    Args:
        path: a run folder, a file that export has written, or weights of torchvision, timm or the SCE releases.
        momentum: read the momentum encoder's backbone instead of the student's; only for a run folder.
        weights: which of the student's backbones to read from a run folder; by default the average if there is one.
        backbone: for weights from elsewhere, their network: its name, or more details as a ForeignNetwork or Foreign.
            For a run of train(config, backbone=…), the module to load the weights into.

    Raises:
        FileNotFoundError: the path does not exist, or the folder is not a run or has no checkpoint yet.
        ValueError: the file is not an exported backbone and no network is named, or the other way round; momentum or
            weights are given with a file; the run has no average; or the weights are of another network.

    Example:
        >>> network = open_backbone("runs/photos").network
        >>> features = network(images)  # (N, 3, H, W) → (N, network.dim)
        >>> network = open_backbone("sce_resnet50.pth", backbone="resnet50").network
    """
    path, named = Path(path), Foreign(backbone=backbone) if isinstance(backbone, str) else backbone
    if isinstance(named, ForeignNetwork):
        foreign = Foreign(**vars(named))
        if foreign.backbone is not None:
            return _open_foreign(path, foreign, momentum, weights)
        if foreign != Foreign():
            raise ValueError(f"{printable(path)}: {named} describes weights from elsewhere; also give backbone=NAME")
    description, tensors = read_described(path, momentum, weights)
    network = named if isinstance(named, nn.Module) else description.build()
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:  # torch's message names every tensor
        raise ValueError(f"{printable(path)} holds another network than {type(network).__name__}: {error}") from error
    return Backbone(network.cpu().eval(), description)


def _open_foreign(path: Path, foreign: Foreign, momentum: bool, weights: Student | None) -> Backbone:
    if momentum or weights is not None:
        named = "momentum=True" if momentum else f"weights={weights!r}"
        raise ValueError(f"{named} is for run folders; choose a part of a file of weights with a pattern")
    if path.is_dir() or is_described(path):
        raise ValueError(
            f"backbone={foreign.backbone!r}: {printable(path)} says by itself what its network is; leave this out"
        )
    description = foreign.describe(path)
    network = description.build()
    network.load_state_dict(read_weights(path, network, pattern=foreign.pattern))
    return Backbone(network.eval(), description)


def read_described(path: Path, momentum: bool, weights: Student | None = None) -> tuple[Description, dict[str, Tensor]]:
    """Return the description and the tensors of a run's backbone or of an exported file.

    Raises:
        FileNotFoundError, ValueError: see open_backbone.
    """
    if path.is_dir():
        return _read_run(path, momentum, weights)
    if momentum or weights is not None:
        named = "momentum=True" if momentum else f"weights={weights!r}"
        raise ValueError(f"{named}: {printable(path)} is a file and holds one backbone; give a run folder")
    if not path.exists():
        raise FileNotFoundError(f"{printable(path)}: no such run folder or exported backbone")
    return _read_file(path)


def is_described(path: Path) -> bool:
    """Return whether a file is an exported backbone with a description."""
    try:
        with safe_open(path, framework="pt") as file:
            return METADATA in (file.metadata() or {})
    except (SafetensorError, OSError):
        return False


def _read_run(run: Path, momentum: bool, weights: Student | None) -> tuple[Description, dict[str, Tensor]]:
    config = read_config(run)
    if momentum and weights is not None:
        raise ValueError(f"momentum=True, weights={weights!r}: expected one of both")
    weights = weights or ("average" if config.model.evaluation_momentum else "student")
    if weights == "average" and not config.model.evaluation_momentum:
        raise ValueError(f"weights='average': {printable(run)} keeps none; train with model.evaluation_momentum > 0")
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
    student = "average." if weights == "average" else "model.backbone."
    prefix = "model.momentum_backbone." if momentum else student
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
        raise ValueError(
            f"{printable(path)} is neither a run folder nor a safetensors file: {error}; {NAME_IT}"
        ) from error
    if metadata is None:
        raise ValueError(
            f"{printable(path)} is not a backbone of sce-fast export: its metadata lacks {METADATA!r}; {NAME_IT}"
        )
    return _read_description(json.loads(metadata), path), tensors


def _read_description(values: dict[str, Any], path: Path) -> Description:
    values = {
        "sizes": [],
        "background": NONE,
        "clips": None,
        "weights": "",
        **values,
    }  # files of earlier versions lack these
    wrong = {f.name for f in fields(Description)} ^ values.keys()
    if wrong:
        raise ValueError(f"{printable(path)}: its metadata has unknown or missing entries: {sorted(wrong)}")
    lists: dict[str, Any] = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
    return Description(**{**values, **lists})
