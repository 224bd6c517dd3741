"""Settings of a training run: frozen dataclasses that check their values. The command line is generated from them."""

import dataclasses
import os
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from sce_fast.backbones import CLIP_BACKBONES, IMAGE_BACKBONES, takes_clips
from sce_fast.config.batch import rank_batch
from sce_fast.config.loss import LossConfig
from sce_fast.config.model import ModelConfig
from sce_fast.config.optimizer import OptimizerConfig
from sce_fast.config.subset import SubsetConfig
from sce_fast.config.views import STRENGTHS, ClipsConfig, ViewsConfig
from sce_fast.data.image.augment import EvaluationView
from sce_fast.data.image.background import NONE
from sce_fast.data.video.augment import ClipEvaluationView
from sce_fast.util.settings import conform, replaced, require

Device = Literal["auto", "cpu", "cuda"]
# Sections and entries that have another name in run folders of earlier versions: (section, old name) → new name.
RENAMED = {("loss", "queue"): "queue_size"}
# Entries that run folders of earlier versions lack, with the values that those runs had in effect.
ADDED: dict[str, Any] = {
    "accept_changed_data": False,
    "cuda_graph": False,
    "stretch_schedule": False,
    "init": None,
    "wandb": None,
    "views": {"background": NONE, **dict.fromkeys(STRENGTHS, ()), "photometric": "auto", "dtype": "auto"},
    "clips": {
        "frames": 0,
        "seconds": None,
        "stride": None,
        "sampler": "random",
        "cvrl_power": 1.0,
        "speeds": (1.0,),
        "duration_jitter": 0.0,
        "temporal_difference": 0.0,
        "frame_rate": 30.0,
    },
    "model": {
        "mutual_pass": False,
        "evaluation_momentum": 0.0,
        "projector_affine": False,
        "projector_bias": True,
        "predictor_layers": 1,
        "predictor_norm": "hidden",
        "predictor_affine": False,
        "predictor_bias": False,
        "head_activation": "relu",
    },
    "loss": {
        "batch_keys": False,
        "target_temperature_start": 0.05,
        "target_temperature_warmup_epochs": 0,
        "target_temperature_warmup": "cosine",
        "coefficient_start": 1.0,
        "coefficient_warmup_epochs": 0,
        "coefficient_warmup": "linear",
        "coefficient_end": None,
        "coefficient_schedule": "cosine",
    },
    "optimizer": {
        "learning_rate_scaling": "linear",
        "start_learning_rate": 0.0,
        "end_learning_rate": 0.0,
        "nesterov": False,
        "beta2": 0.999,
        "weight_decay_excludes": None,
        "layer_decay": 1.0,
    },
    "evaluation": {"clips": 1, "crops": 1},
    "subset": {"classes": None, "files": None, "share": None, "per_class": None, "seed": 0},
}


def default_loader_threads() -> int:
    """Return this rank's share of the CPU cores that the process may use, at least 1."""
    return max(1, len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """kNN evaluation during training, on labelled images or videos. Labels are used for nothing else."""

    train: Path | None = None
    """Labelled class folders that the neighbours come from. Without it, nothing is evaluated during training."""
    test: Path | None = None
    """Labelled class folders of the images or videos to classify."""
    every: int = 10
    """Epochs between two evaluations. The untrained and the final network are always evaluated."""
    resize: int | None = None
    """Shorter side of an image or frame after resizing, in pixels. Default: 8/7 of the crop (256 for a crop of 224)."""
    crop: int | None = None
    """Side of the centre crop, in pixels. Default: the size of the largest view."""
    clips: int = 1
    """Clips of each video, from its start to its end, whose features are averaged. The papers use 10."""
    crops: int = 1
    """Crops of each clip, whose features are averaged: 1 in the centre, or 3 along the longer side as in the papers."""
    neighbours: int = 20
    """Number k of nearest neighbours that vote."""

    def __post_init__(self) -> None:
        conform(self, "evaluation")
        both = (self.train is None) == (self.test is None)
        require(both, "evaluation.train and evaluation.test", (self.train, self.test), "both or neither")
        for name in ("every", "resize", "crop", "neighbours"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"evaluation.{name}", value, "at least 1")
        require(self.clips >= 1, "evaluation.clips", self.clips, "at least 1")
        require(self.crops in (1, 3), "evaluation.crops", self.crops, "1 or 3")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """A training run."""

    data: Path
    """Folder of images or videos, or a list file that names them. Images may also be in tar shards, Parquet tables,
    CIFAR or STL-10 as downloaded: see docs/data.md."""
    out: Path
    """Run folder, for the config, log, checkpoints, summary and pictures."""
    init: Path | None = None
    """Weights that the backbone of a new run starts with: another run folder, a file of sce-fast export, or weights of
    the same network from torchvision, timm or the SCE releases. Projector and predictor start at random."""
    epochs: int = 100
    """Passes over the images or videos."""
    batch_size: int = 256
    """Images or videos per optimizer step, over all ranks."""
    accumulation: int = 1
    """Parts into which a rank's batch is split to save memory. The parts pass through the networks in turn."""
    precision: Literal["float32", "bfloat16", "float16", "float64"] = "float32"
    """Precision of the networks. bfloat16 and float16 use autocast, float16 with a loss scale; float64 is for tests."""
    compile: bool = False
    """Compile the networks with torch.compile."""
    cuda_graph: bool = False
    """Capture the whole training step in one CUDA graph, so that the host launches it at once. A run that cannot be
    captured says why, and trains without."""
    seed: int = 42
    """Seed of weights, order of the data and augmentations."""
    device: Device = "auto"
    """Device. auto takes a GPU if there is one."""
    loader_threads: int = field(default_factory=default_loader_threads)
    """CPU threads of each rank that decode and augment; by default the rank's share of the cores. Pixels do not depend
    on it."""
    resume: bool = False
    """Continue from the newest checkpoint in the run folder."""
    accept_changed_data: bool = False
    """Resume although images or videos have been added, removed or changed since the run began."""
    stretch_schedule: bool = False
    """Resume with another number of epochs: learning rate and momentum then follow their schedules over this number."""
    checkpoint_every: int = 1000
    """Steps between two checkpoints. The last step always writes one."""
    keep_checkpoints: int = 2
    """Number of checkpoints to keep; older ones are deleted."""
    log_every: int = 10
    """Steps between two lines of the log. Only then is the loss read from the device."""
    wandb: str | None = None
    """Project of Weights & Biases that gets the log as well; needs the package wandb. With WANDB_MODE=offline its data
    stay in the run folder."""
    pictures: bool = True
    """Draw curves, view pairs and nearest neighbours into the run folder at the end; needs matplotlib."""
    subset: SubsetConfig = field(default_factory=SubsetConfig)
    clips: ClipsConfig = field(default_factory=ClipsConfig)
    views: ViewsConfig = field(default_factory=ViewsConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)

    def __post_init__(self) -> None:
        conform(self)
        counts = ("epochs", "batch_size", "accumulation", "loader_threads")
        for name in (*counts, "checkpoint_every", "keep_checkpoints", "log_every"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        self.rank_batch(1)
        require(self.wandb != "", "wandb", repr(self.wandb), "the name of a project")
        require(0 <= self.seed < 2**32, "seed", self.seed, "0 to 2**32 - 1")
        keys, size = self.batch_size * (self.model.key_views if self.model.symmetric else 1), self.loss.queue_size
        require(size >= keys or size == 0, "loss.queue_size", size, f"at least the {keys} keys of one step")
        alone = size == 0 and self.batch_size == self.accumulation
        expected = f"above 0 with one of the {self.kind} at a time, whose own key is the only one"
        require(not alone, "loss.queue_size", size, expected)
        needed = self.model.key_views if self.model.symmetric else 2
        require(len(self.views.names) >= needed, "views.names", self.views.names, f"at least {needed} views")
        warmups = {
            "optimizer.warmup_epochs": self.optimizer.warmup_epochs,
            "loss.target_temperature_warmup_epochs": self.loss.target_temperature_warmup_epochs,
            "loss.coefficient_warmup_epochs": self.loss.coefficient_warmup_epochs,
        }
        for name, warmup in warmups.items():
            require(warmup <= self.epochs, name, warmup, f"at most epochs={self.epochs}")
        self._require_same_kind()
        self.evaluation_view()

    @property
    def kind(self) -> Literal["images", "videos"]:
        """Return what the run trains on."""
        return "videos" if self.clips.frames else "images"

    @property
    def learning_rate(self) -> float:
        """Return the peak learning rate: the base rate, scaled to the batch."""
        return self.optimizer.scaled(self.optimizer.base_learning_rate, self.batch_size)

    def rank_batch(self, ranks: int) -> int:
        """Return the number of images that pass through the networks of one rank at a time.

        Raises:
            ValueError: the batch cannot be divided into ranks · accumulation equal parts.
        """
        return rank_batch(self.batch_size, ranks=ranks, accumulation=self.accumulation)

    def require_whole_groups(self, rows: int) -> None:
        """Check that so many rows can be divided into the groups of the momentum encoder's batch normalisation.

        Raises:
            ValueError: the rows cannot be divided evenly.
        """
        groups = self.model.batch_norm_groups
        fits = self.model.batch_norm != "shuffle" or rows % groups == 0
        require(
            fits, "model.batch_norm_groups", groups, f"a divisor of the {rows} {self.kind} that all ranks see at a time"
        )

    def image_sizes(self) -> tuple[int, ...]:
        """Return the sides of all images or frames that the backbone sees, in pixels.

        The largest view comes first, then other views, then the evaluation.
        """
        crop = () if self.evaluation.crop is None else (self.evaluation.crop,)
        return tuple(dict.fromkeys((*sorted(self.views.sizes, reverse=True), *crop)))

    def input_shape(self, size: int) -> tuple[int, ...]:
        """Return the shape of an image (3, size, size), or of a clip (3, frames, size, size) in a run on videos."""
        return (3, size, size) if self.clips.frames == 0 else (3, self.clips.frames, size, size)

    def input_shapes(self) -> list[tuple[int, ...]]:
        """Return the shapes of all inputs that the backbone sees, in the order of image_sizes."""
        return [self.input_shape(size) for size in self.image_sizes()]

    def evaluation_view(self) -> EvaluationView:
        """Return how features are computed, for videos as a ClipEvaluationView.

        By default, images and frames are cropped to the size of the largest view.
        """
        crop, resize, views = self.evaluation.crop, self.evaluation.resize, self.views
        crop = max(views.sizes) if crop is None else crop
        resize = round(crop * 8 / 7) if resize is None else resize
        require(crop <= resize, "evaluation.crop", crop, f"at most evaluation.resize={resize}")
        settings: dict[str, Any] = {"resize": resize, "crop": crop, "mean": views.mean, "std": views.std}
        sampling, clips, crops = self.clips.sampling(), self.evaluation.clips, self.evaluation.crops
        if sampling is None:
            return EvaluationView(**settings, background=views.background)
        settings |= {"sampling": sampling, "clips": clips, "crops": crops, "frame_rate": self.clips.frame_rate}
        return ClipEvaluationView(**settings)

    def _require_same_kind(self) -> None:
        """Check that the backbone and the evaluation take what the run trains on."""
        frames, backbone = self.clips.frames, self.model.backbone
        if frames and takes_clips(backbone) is False:
            expected = f"0, since model.backbone={backbone!r} takes images; {', '.join(CLIP_BACKBONES)} take clips"
            require(False, "clips.frames", frames, expected)
        if not frames and takes_clips(backbone):
            others = ", ".join((*IMAGE_BACKBONES, "timm:NAME"))
            expected = f"{others} with clips.frames=0, which means images; this network takes clips"
            require(False, "model.backbone", repr(backbone), expected)
        for name in () if frames else ("clips", "crops"):
            value = getattr(self.evaluation, name)
            require(value == 1, f"evaluation.{name}", value, "1 with clips.frames=0, which means images")


def to_json(config: Any) -> Any:
    """Return a config as JSON types: dataclasses become objects, tuples lists, paths strings."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return {f.name: to_json(getattr(config, f.name)) for f in dataclasses.fields(config)}
    if isinstance(config, tuple):
        return [to_json(item) for item in config]
    return str(config) if isinstance(config, Path) else config


def replace(config: TrainConfig, /, **changes: Any) -> TrainConfig:
    """Return the config with other settings; a dict changes some settings of a section.

    Raises:
        ValueError: a setting is unknown or out of range; the message names it.
        TypeError: a value does not fit its setting.

    Example:
        >>> replace(config, epochs=3, loss={"temperature": 0.2}, views={"sizes": 96})
    """
    return replaced(config, changes)


def from_json(values: dict[str, Any]) -> TrainConfig:
    """Return the config that `to_json` wrote, also in an earlier version (RENAMED, ADDED).

    Raises:
        ValueError: an entry is missing, unknown or out of range.
        TypeError: an entry is of another type.
    """
    return _built(TrainConfig, _completed(_renamed(values), ADDED))


def _renamed(values: dict[str, Any]) -> dict[str, Any]:
    """Return a config's JSON with the entries of earlier versions under their new names."""
    for (section, old), new in RENAMED.items():
        entries = values.get(section)
        if isinstance(entries, dict) and old in entries and new not in entries:
            entries = {new if name == old else name: value for name, value in entries.items()}
            values = {**values, section: entries}
    return values


def _completed(values: Any, added: dict[str, Any]) -> Any:
    """Return a config's JSON with the entries that it lacks."""
    if not isinstance(values, dict):
        return values
    sections = {
        name: _completed(values.get(name, {}), entry) for name, entry in added.items() if isinstance(entry, dict)
    }
    return {**added, **values, **sections}


def _built(kind: Any, values: Any) -> Any:
    """Return a dataclass from its JSON object; it converts lists and strings itself."""
    kinds = typing.get_type_hints(kind)
    if not isinstance(values, dict) or values.keys() != kinds.keys():
        entries = sorted(kinds.keys() ^ values.keys()) if isinstance(values, dict) else values
        raise ValueError(f"{kind.__name__}: unknown or missing entries {entries}")
    return kind(**{n: _built(kinds[n], v) if dataclasses.is_dataclass(kinds[n]) else v for n, v in values.items()})
