"""Settings of a supervised evaluation: optimizer, schedule, and how often something is done."""

from bisect import bisect_right
from dataclasses import dataclass
from typing import Literal

from sce_fast.config.batch import Scaling, rank_batch, scaled_rate
from sce_fast.train.schedules import learning_rate
from sce_fast.util.settings import conform, require

Schedule = Literal["cosine", "steps"]
Precision = Literal["float32", "bfloat16", "float64"]


@dataclass(frozen=True, kw_only=True)
class SupervisedSettings:
    """Optimizer and schedule of a classifier."""

    epochs: int = 90
    """Passes over the train samples."""
    batch_size: int = 1024
    """Samples per optimizer step, over all ranks. The last incomplete batch of an epoch is dropped."""
    accumulation: int = 1
    """Parts into which a rank's batch is split to save memory."""
    learning_rates: tuple[float, ...] = (0.1,)
    """Base learning rates, each of which trains a head of its own."""
    backbone_learning_rate: float | None = None
    """Base learning rate of the backbone, or None to freeze it. A trained backbone has one head."""
    scaling: Scaling = "linear"
    """The rate used is the base rate times batch / 256, times the square root of batch / 256, or the base rate."""
    momentum: float = 0.9
    """Momentum of SGD."""
    weight_decay: float = 0.0
    """L2 penalty on weights; biases and normalisation layers have none."""
    schedule: Schedule = "cosine"
    """A cosine to 0 over all steps, or factors at some epochs."""
    milestones: tuple[int, ...] = ()
    """Epochs from which on the rate is multiplied by the decay, for steps."""
    decay: float = 0.1
    """Factor at each milestone."""
    warmup_epochs: float = 0.0
    """Epochs of linear warm-up from 0."""
    dropout: float = 0.0
    """Share of the features that a training step sets to 0 before the head."""
    batch_norm: Literal["sync", "local"] = "sync"
    """Rows that share the batch statistics of a trained backbone: all ranks' rows, or a rank's rows."""
    precision: Precision = "float32"
    """Precision of the backbone. bfloat16 uses autocast; heads are always trained in float32 or wider."""
    seed: int = 42
    """Seed of the heads, the order of the samples, the augmentations and the dropout."""
    evaluate_every: int = 5
    """Epochs between two evaluations. The last epoch is always evaluated."""
    checkpoint_every: int = 1000
    """Steps between two checkpoints. Each evaluation, too, is preceded by one."""
    log_every: int = 10
    """Steps between two lines of the log."""

    def __post_init__(self) -> None:
        conform(self)
        for name in ("epochs", "batch_size", "accumulation", "evaluate_every", "checkpoint_every", "log_every"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        rates = self.learning_rates
        require(len(rates) > 0 and min(rates) > 0, "learning_rates", rates, "one or more numbers > 0")
        require(len(set(rates)) == len(rates), "learning_rates", rates, "no rate twice")
        if self.backbone_learning_rate is not None:
            require(self.backbone_learning_rate >= 0, "backbone_learning_rate", self.backbone_learning_rate, "≥ 0")
            require(len(rates) == 1, "learning_rates", rates, "one rate, since the backbone is trained with the head")
        require(0 <= self.momentum < 1, "momentum", self.momentum, "a number in [0, 1)")
        require(self.weight_decay >= 0, "weight_decay", self.weight_decay, "at least 0")
        marks = self.milestones
        rising = all(a < b for a, b in zip((0, *marks), marks, strict=False))
        require(rising, "milestones", marks, "rising epochs from 1 on")
        require(not marks or marks[-1] < self.epochs, "milestones", marks, f"epochs before epochs={self.epochs}")
        require(self.schedule == "steps" or not marks, "milestones", marks, "none, unless schedule='steps'")
        require(self.decay > 0, "decay", self.decay, "a number > 0")
        require(0 <= self.warmup_epochs <= self.epochs, "warmup_epochs", self.warmup_epochs, f"0 to {self.epochs}")
        require(0 <= self.dropout < 1, "dropout", self.dropout, "a share in [0, 1)")
        require(0 <= self.seed < 2**32, "seed", self.seed, "0 to 2**32 - 1")

    def rank_batch(self, ranks: int) -> int:
        """Return the number of samples that pass through the network of one rank at a time.

        Raises:
            ValueError: the batch cannot be divided into ranks · accumulation equal parts.
        """
        return rank_batch(self.batch_size, ranks=ranks, accumulation=self.accumulation)

    def peak(self, base: float) -> float:
        """Return the highest rate for a base rate.

        Example:
            >>> SupervisedSettings(batch_size=1024).peak(0.1)
            0.4
        """
        return scaled_rate(base, self.batch_size, self.scaling)

    def rate(self, base: float, step: int, steps_per_epoch: int) -> float:
        """Return the learning rate of a step, counted from 0, for a base rate."""
        peak, warmup = self.peak(base), round(self.warmup_epochs * steps_per_epoch)
        if self.schedule == "cosine" or step < warmup:
            total = self.epochs * steps_per_epoch
            return learning_rate(step, base=peak, warmup_steps=warmup, total_steps=total)
        return peak * self.decay ** bisect_right(self.milestones, step // steps_per_epoch)
