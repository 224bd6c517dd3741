"""Settings of a training run: frozen dataclasses, checked when they are made; the command line is made from them."""

import dataclasses
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from sce_fast.data.image.augment import AUGMENTATIONS, IMAGENET_MEAN, IMAGENET_STD, Augmentation, EvaluationView
from sce_fast.loss.names import BACKEND_NAMES
from sce_fast.util.names import pick

Device = Literal["auto", "cpu", "cuda"]


def default_loader_threads() -> int:
    """This rank's share of the machine's cores."""
    return max(1, len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


def _require(holds: bool, name: str, value: object, expected: str) -> None:
    if not holds:
        raise ValueError(f"{name}={value}: expected {expected}")


@dataclass(frozen=True, kw_only=True)
class ViewsConfig:
    """The views of each image. Without symmetry the first is the target's, with it all are compared."""

    names: tuple[str, ...] = ("alpha", "beta")
    """One of weak, strong, alpha, beta, gamma for each view."""
    sizes: tuple[int, ...] = (224,)
    """Side of the views in pixels: one for all, or one for each."""
    scales: tuple[tuple[float, float], ...] = ((0.2, 1.0),)
    """Range of the crop's share of the image: one for all, or one for each."""
    flip: float = 0.5
    """Probability of a horizontal flip; 0 where left and right mean something, as for digits."""
    mean: tuple[float, float, float] = IMAGENET_MEAN
    """Subtracted from the channels' values in [0, 1]."""
    std: tuple[float, float, float] = IMAGENET_STD
    """Divides what is left."""

    def __post_init__(self) -> None:
        _require(len(self.names) >= 2, "views.names", self.names, "at least two views")
        for name in self.names:
            pick("augmentation in views.names", name, AUGMENTATIONS)
        for setting in ("sizes", "scales"):
            given = getattr(self, setting)
            _require(len(given) in (1, len(self.names)), f"views.{setting}", given, f"1 or {len(self.names)} entries")
        self.augmentations()  # which check the rest

    def augmentations(self) -> tuple[Augmentation, ...]:
        count = len(self.names)
        sizes = self.sizes * count if len(self.sizes) == 1 else self.sizes
        scales = self.scales * count if len(self.scales) == 1 else self.scales
        return tuple(
            Augmentation(size=size, scale=scale, flip=self.flip, mean=self.mean, std=self.std, **AUGMENTATIONS[name])
            for name, size, scale in zip(self.names, sizes, scales, strict=True)
        )


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Backbone, projector, predictor and momentum encoder."""

    backbone: str = "resnet50"
    """resnet18, resnet34, resnet50, or timm:NAME."""
    width: int = 64
    """Channels of a ResNet's first stage, a multiple of 8."""
    small_input: bool = False
    """3×3 stem without pooling, for images of about 32 pixels."""
    projector_hidden: tuple[int, ...] = (4096, 4096)
    """Widths of the projector's hidden layers."""
    dim: int = 256
    """D, the length of queries and keys."""
    projector_norm: Literal["all", "hidden", "none"] = "all"
    """Batch normalisation in the projector: after every layer, after hidden layers, or nowhere."""
    predictor_hidden: int = 4096
    """Width of the predictor's hidden layer; 0 for no predictor."""
    symmetric: bool = True
    """Compare every key view with every other view; otherwise the first view is only a target."""
    key_views: int = 2
    """How many leading views the momentum encoder sees when symmetric."""
    momentum: float = 0.99
    """m of the momentum encoder's update, at the first step."""
    momentum_schedule: Literal["constant", "cosine"] = "cosine"
    """cosine raises m to 1 at the last step."""
    batch_norm: Literal["local", "sync", "shuffle"] = "local"
    """Rows that a statistic is made of: this rank's, all ranks' (the papers' ImageNet), or, for the momentum encoder's
    convolutions, groups of shuffled rows (their CIFAR10)."""
    batch_norm_groups: int = 8
    """Groups of the global batch with shuffle: what the published batch had GPUs."""

    def __post_init__(self) -> None:
        _require(self.dim >= 1, "model.dim", self.dim, "at least 1")
        # oneDNN's 1×1 convolutions for AVX2 never return from a backward pass over fewer channels, stored channels-last
        _require(self.width >= 8 and self.width % 8 == 0, "model.width", self.width, "a positive multiple of 8")
        _require(self.predictor_hidden >= 0, "model.predictor_hidden", self.predictor_hidden, "at least 0")
        _require(0 <= self.momentum <= 1, "model.momentum", self.momentum, "a number in [0, 1]")
        _require(not self.symmetric or self.key_views >= 2, "model.key_views", self.key_views, "at least 2")
        _require(self.batch_norm_groups >= 1, "model.batch_norm_groups", self.batch_norm_groups, "at least 1")


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """The loss and its queue."""

    temperature: float = 0.1
    """τ of the student."""
    target_temperature: float = 0.07
    """τ_m of the teacher; smaller is sharper."""
    coefficient: float = 0.5
    """λ, the weight of the own key: 1 is InfoNCE, 0 spreads everything by similarity."""
    positive_target: Literal["excluded", "zero_logit"] = "excluded"
    """excluded is the paper's target, zero_logit what the official code computes."""
    queue: int = 65536
    """K, the number of past keys."""
    queue_dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of the stored keys; 16 bits halve the queue's memory and the loss's traffic."""
    backend: str = "auto"
    """Implementation of the loss; auto takes the fastest there is."""

    def __post_init__(self) -> None:
        if self.backend != "auto":
            pick("backend", self.backend, dict.fromkeys(BACKEND_NAMES), also="auto")
        _require(self.temperature > 0, "loss.temperature", self.temperature, "a number > 0")
        _require(self.target_temperature > 0, "loss.target_temperature", self.target_temperature, "a number > 0")
        _require(0 <= self.coefficient <= 1, "loss.coefficient", self.coefficient, "a number in [0, 1]")
        _require(self.queue >= 1, "loss.queue", self.queue, "at least 1")

    def arguments(self) -> dict[str, Any]:
        """What sce_loss is to be called with, beside the tensors."""
        names = ("temperature", "target_temperature", "coefficient", "positive_target", "backend")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Optimizer and learning rate."""

    name: Literal["sgd", "lars"] = "lars"
    """lars leaves biases and normalisation without weight decay and scaling."""
    base_learning_rate: float = 0.3
    """Learning rate at a batch of 256; it grows in proportion to the batch."""
    momentum: float = 0.9
    """Of the gradient's running sum."""
    weight_decay: float = 1e-6
    """L2 penalty."""
    warmup_epochs: float = 10
    """Epochs of linear warm-up from 0; the cosine to 0 follows."""
    clip_norm: float = 0
    """Largest norm of all gradients together; 0 for no clipping."""

    def __post_init__(self) -> None:
        for name in ("base_learning_rate", "momentum", "weight_decay", "warmup_epochs", "clip_norm"):
            _require(getattr(self, name) >= 0, f"optimizer.{name}", getattr(self, name), "at least 0")


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """kNN while training, on labelled class folders; labels are used for nothing else."""

    train: Path | None = None
    """Class folders whose features are the neighbours; none for no evaluation while training."""
    test: Path | None = None
    """Class folders that are classified."""
    every: int = 10
    """Epochs between two evaluations; the first and the last state are always evaluated."""
    resize: int | None = None
    """Length of the shorter side after resizing; none for 8/7 of the crop, as 256 is of 224."""
    crop: int | None = None
    """Side of the centre crop; none for the size of the largest view."""
    neighbours: int = 20
    """k of kNN."""

    def __post_init__(self) -> None:
        both = (self.train is None) == (self.test is None)
        _require(both, "evaluation.train and evaluation.test", (self.train, self.test), "both or neither")
        _require(self.every >= 1, "evaluation.every", self.every, "at least 1")
        _require(self.neighbours >= 1, "evaluation.neighbours", self.neighbours, "at least 1")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """A training run."""

    data: Path
    """Folder or list file of images."""
    out: Path
    """Run folder: config, log, checkpoints, summary, pictures."""
    epochs: int = 100
    """Passes over the images."""
    batch_size: int = 256
    """Images of an optimizer step, over all ranks."""
    accumulation: int = 1
    """Parts of a batch that go through the networks one after another, where the whole needs too much memory."""
    precision: Literal["float32", "bfloat16", "float16", "float64"] = "float32"
    """Of the networks: 16 bits by autocast, float16 with a loss scale; float64 throughout, to check numbers."""
    compile: bool = False
    """torch.compile the networks."""
    seed: int = 42
    """Of weights, order and augmentations."""
    device: Device = "auto"
    """auto takes the GPU when there is one."""
    loader_threads: int = field(default_factory=default_loader_threads)
    """CPU threads of a rank that decode and augment, by default one for each core; pixels do not depend on it."""
    resume: bool = False
    """Go on from the newest checkpoint of the run folder."""
    checkpoint_every: int = 1000
    """Steps between two checkpoints; the last step always has one."""
    keep_checkpoints: int = 2
    """How many of the newest checkpoints stay."""
    log_every: int = 10
    """Steps between two lines of the log; the loss is read from the device only then."""
    pictures: bool = True
    """Draw curves, view pairs and nearest neighbours into the run folder at the end, where matplotlib is installed."""
    views: ViewsConfig = field(default_factory=ViewsConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)

    def __post_init__(self) -> None:
        counts = ("epochs", "batch_size", "accumulation", "loader_threads")
        for name in (*counts, "checkpoint_every", "keep_checkpoints", "log_every"):
            _require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        self.rank_batch(1)
        _require(0 <= self.seed < 2**32, "seed", self.seed, "0 to 2**32 - 1")
        keys = self.batch_size * (self.model.key_views if self.model.symmetric else 1)
        _require(self.loss.queue >= keys, "loss.queue", self.loss.queue, f"at least the {keys} keys of one step")
        needed = self.model.key_views if self.model.symmetric else 2
        _require(len(self.views.names) >= needed, "views.names", self.views.names, f"at least {needed} views")
        warmup = self.optimizer.warmup_epochs
        _require(warmup <= self.epochs, "optimizer.warmup_epochs", warmup, f"at most epochs={self.epochs}")
        self.evaluation_view()

    @property
    def learning_rate(self) -> float:
        """The peak rate: the base rate times batch / 256."""
        return self.optimizer.base_learning_rate * self.batch_size / 256

    def rank_batch(self, ranks: int) -> int:
        """Images that go through the networks of one rank at a time.

        Raises:
            ValueError: the batch cannot be cut into that many equal parts.
        """
        parts = ranks * self.accumulation
        expected = f"a multiple of ranks={ranks} · accumulation={self.accumulation}"
        _require(self.batch_size % parts == 0, "batch_size", self.batch_size, expected)
        return self.batch_size // parts

    def require_whole_groups(self, rows: int) -> None:
        """Makes sure that so many rows can be cut into the groups of the momentum encoder's batch normalisation.

        Raises:
            ValueError: they cannot.
        """
        groups = self.model.batch_norm_groups
        fits = self.model.batch_norm != "shuffle" or rows % groups == 0
        _require(
            fits, "model.batch_norm_groups", groups, f"a divisor of the {rows} images that all ranks see at a time"
        )

    def evaluation_view(self) -> EvaluationView:
        """What features are made of: by default the size of the largest view."""
        crop = self.evaluation.crop or max(self.views.sizes)
        resize = self.evaluation.resize or round(crop * 8 / 7)
        return EvaluationView(resize=resize, crop=crop, mean=self.views.mean, std=self.views.std)


def to_json(config: Any) -> Any:
    """A config as JSON's types; paths become strings."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return {f.name: to_json(getattr(config, f.name)) for f in dataclasses.fields(config)}
    if isinstance(config, tuple):
        return [to_json(item) for item in config]
    return str(config) if isinstance(config, Path) else config


def from_json(values: dict[str, Any]) -> TrainConfig:
    """The config that to_json wrote.

    Raises:
        ValueError: an entry is missing or unknown.
    """
    sections = {
        "views": ViewsConfig,
        "model": ModelConfig,
        "loss": LossConfig,
        "optimizer": OptimizerConfig,
        "evaluation": EvaluationConfig,
    }

    def build(kind: type, entries: dict[str, Any]) -> Any:
        fields = {f.name for f in dataclasses.fields(kind)}
        if set(entries) != fields:
            raise ValueError(f"{kind.__name__}: unknown or missing entries {sorted(fields ^ set(entries))}")
        paths = {"data", "out", "train", "test"} & fields
        return kind(**{k: Path(v) if k in paths and v is not None else _tuples(v) for k, v in entries.items()})

    nested = {name: build(kind, values[name]) for name, kind in sections.items() if name in values}
    return build(TrainConfig, {**values, **nested})


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value
