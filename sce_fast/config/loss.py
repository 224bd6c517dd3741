"""Settings of the loss and the queue."""

from dataclasses import dataclass
from typing import Any, Literal

from sce_fast.loss.names import BACKEND_NAMES
from sce_fast.util.names import pick
from sce_fast.util.settings import conform, require


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """The loss and the queue of past keys."""

    temperature: float = 0.1
    """Temperature τ of the student."""
    # 0.05 is also sce_loss's default and the value of most published runs (CIFAR10, video); 0.07 is the published value
    # for ImageNet with symmetric views.
    target_temperature: float = 0.05
    """Temperature τ_m of the momentum teacher: smaller values make sharper targets."""
    target_temperature_start: float = 0.05
    """Value of τ_m at the first step of its warm-up."""
    target_temperature_warmup_epochs: float = 0
    """Epochs of warm-up of τ_m; 0 for none, as in the published runs."""
    target_temperature_warmup: Literal["linear", "cosine"] = "cosine"
    """Curve of the warm-up of τ_m."""
    coefficient: float = 0.5
    """Weight λ of the own key in the target. 1 is InfoNCE; 0 spreads all weight by similarity."""
    coefficient_start: float = 1.0
    """Value of λ at the first step of its warm-up."""
    coefficient_warmup_epochs: float = 0
    """Epochs of warm-up of λ; 0 for none, as in the published runs."""
    coefficient_warmup: Literal["linear", "cosine"] = "linear"
    """Curve of the warm-up of λ."""
    coefficient_end: float | None = None
    """Value of λ at the last step, which it approaches after its warm-up. Default: λ stays."""
    coefficient_schedule: Literal["linear", "cosine"] = "cosine"
    """Curve of λ from the end of its warm-up to coefficient_end."""
    positive_target: Literal["excluded", "zero_logit"] = "excluded"
    """Target at the own key: excluded is the paper's definition, zero_logit is what the official code computes."""
    queue_size: int = 65536
    """Number K of past keys in the queue; 0 for no queue, which needs batch_keys."""
    batch_keys: bool = False
    """Take the keys of the same step as candidates, beside the queue or alone: for each key view its keys of all
    ranks, or of one part of the batch with accumulation."""
    queue_dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Dtype of the queue and of batch_keys: 16 bits halve their memory and the memory traffic of the loss, and take the
    faster products of a GPU. Recipes have bfloat16 on a GPU and float32 on a CPU."""
    backend: str = "auto"
    """Implementation of the loss. auto takes the fastest that serves the inputs; sce-fast doctor lists them."""

    def __post_init__(self) -> None:
        conform(self, "loss")
        if self.backend != "auto":
            pick("backend", self.backend, dict.fromkeys(BACKEND_NAMES), also="auto")
        for name in ("temperature", "target_temperature", "target_temperature_start"):
            require(getattr(self, name) > 0, f"loss.{name}", getattr(self, name), "a number > 0")
        for name in ("target_temperature_warmup_epochs", "coefficient_warmup_epochs"):
            require(getattr(self, name) >= 0, f"loss.{name}", getattr(self, name), "at least 0")
        for name in ("coefficient", "coefficient_start", "coefficient_end"):
            value = getattr(self, name)
            require(value is None or 0 <= value <= 1, f"loss.{name}", value, "a number in [0, 1]")
        least, expected = (0, "at least 0") if self.batch_keys else (1, "at least 1, or 0 with loss.batch_keys=True")
        require(self.queue_size >= least, "loss.queue_size", self.queue_size, expected)

    def arguments(self) -> dict[str, Any]:
        """Return the keyword arguments of sce_loss, without the tensors."""
        names = ("temperature", "target_temperature", "coefficient", "positive_target", "backend")
        return {name: getattr(self, name) for name in names}

    def scheduled(self) -> tuple[str, ...]:
        """Return the arguments of sce_loss that change from step to step."""
        changing = {
            "target_temperature": self.target_temperature_warmup_epochs > 0,
            "coefficient": self.coefficient_warmup_epochs > 0 or self.coefficient_end is not None,
        }
        return tuple(name for name, changes in changing.items() if changes)
