"""Settings of the optimizer and its learning rate."""

from dataclasses import dataclass
from typing import Literal

from sce_fast.config.batch import Scaling, scaled_rate
from sce_fast.util.settings import conform, require


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Optimizer and learning rate."""

    name: Literal["sgd", "lars", "adamw"] = "lars"
    """Optimizer. Transformers need adamw."""
    base_learning_rate: float = 0.3
    """Learning rate after the warm-up, for a batch of 256. For adamw, about 0.0005."""
    learning_rate_scaling: Scaling = "linear"
    """How the learning rates follow the batch: linear multiplies them by batch / 256, sqrt by the root of that."""
    start_learning_rate: float = 0.0
    """Learning rate of the first step, from which the warm-up rises to the base rate; scaled as the base rate."""
    end_learning_rate: float = 0.0
    """Learning rate at the end, to which the cosine falls; scaled as the base rate."""
    warmup_epochs: float = 10
    """Epochs of linear warm-up. A cosine decay follows."""
    momentum: float = 0.9
    """Momentum of sgd and lars; β₁ of adamw."""
    nesterov: bool = False
    """Use Nesterov's momentum; for sgd."""
    beta2: float = 0.999
    """β₂ of adamw; 0.95 is common for transformers."""
    weight_decay: float = 1e-6
    """Weight decay: an L2 penalty for sgd and lars, decoupled from the gradient for adamw."""
    weight_decay_excludes: tuple[str, ...] | None = None
    """Parameters without weight decay: vectors (all of one dimension), bias, norm (those of normalisation layers), or a
    part of their name such as pos_embed. Default: vectors for adamw, none for sgd. lars neither decays nor scales
    vectors in any case."""
    layer_decay: float = 1.0
    """Factor of the learning rate from each layer of the backbone to the layer before it, such as 0.75 for fine-tuned
    transformers; 1 for the same rate everywhere."""
    clip_norm: float = 0
    """Largest norm of the whole gradient, to which longer gradients are scaled; 0 for no clipping."""

    def __post_init__(self) -> None:
        conform(self, "optimizer")
        rates = ("base_learning_rate", "start_learning_rate", "end_learning_rate")
        for name in (*rates, "weight_decay", "warmup_epochs", "clip_norm"):
            require(getattr(self, name) >= 0, f"optimizer.{name}", getattr(self, name), "at least 0")
        for name in ("start_learning_rate", "end_learning_rate"):
            expected = f"at most optimizer.base_learning_rate={self.base_learning_rate}"
            require(getattr(self, name) <= self.base_learning_rate, f"optimizer.{name}", getattr(self, name), expected)
        for name in ("momentum", "beta2"):
            require(0 <= getattr(self, name) < 1, f"optimizer.{name}", getattr(self, name), "a number in [0, 1)")
        require(0 < self.layer_decay <= 1, "optimizer.layer_decay", self.layer_decay, "a number in (0, 1]")
        excludes = self.weight_decay_excludes
        require("" not in (excludes or ()), "optimizer.weight_decay_excludes", excludes, "names that are not empty")
        fits = not self.nesterov or (self.name == "sgd" and self.momentum > 0)
        require(fits, "optimizer.nesterov", self.nesterov, "False, unless optimizer.name=sgd with a momentum above 0")
        # a rate meant for sgd or lars would wreck the networks in a few steps
        expected = "at most 0.1 for adamw, such as 0.0005"
        require(
            self.name != "adamw" or self.base_learning_rate <= 0.1,
            "optimizer.base_learning_rate", self.base_learning_rate, expected,
        )  # fmt: skip

    def scaled(self, rate: float, batch_size: int) -> float:
        """Return a learning rate that is given for a batch of 256 as the rate for another batch."""
        return scaled_rate(rate, batch_size, self.learning_rate_scaling)

    def describe_scaling(self, batch_size: int) -> str:
        """Return the formula of the learning rate, such as "0.3 · 512 / 256"."""
        ratio = {"linear": f" · {batch_size} / 256", "sqrt": f" · √({batch_size} / 256)", "none": ""}
        return f"{self.base_learning_rate:g}{ratio[self.learning_rate_scaling]}"
