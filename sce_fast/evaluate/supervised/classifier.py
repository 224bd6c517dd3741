"""A backbone, frozen or trained, under linear heads; and one optimizer step of all of them."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from sce_fast.distributed import Ranks, world_size
from sce_fast.evaluate.supervised.settings import SupervisedSettings
from sce_fast.method.batch_norm import synchronized
from sce_fast.train.checkpoint import Checkpoint, collect, restore
from sce_fast.train.guard import Guard
from sce_fast.train.optim import SGD
from sce_fast.util.layout import channels_last, to_channels_last
from sce_fast.util.philox import Draw, uniform

HEAD_STD = 0.01


class Learner:
    """A head with its optimizer, which may train a backbone too, and a guard that masks its steps once one fails.

    Args:
        head: linear layer.
        rate: its base learning rate.
        backbone: a module to train with the head.
        settings: of the optimizer.
    """

    def __init__(self, head: nn.Linear, rate: float, backbone: nn.Module | None, settings: SupervisedSettings) -> None:
        self.head, self.rate, self.guard = head, rate, Guard().to(head.weight.device)
        groups = _groups(head, rate, settings.weight_decay)
        if backbone is not None and settings.backbone_learning_rate is not None:
            groups += _groups(backbone, settings.backbone_learning_rate, settings.weight_decay)
        self.optimizer = SGD(groups, lr=0.0, momentum=settings.momentum)

    @property
    def parameters(self) -> list[nn.Parameter]:
        return [p for group in self.optimizer.param_groups for p in group["params"]]


class Classifier:
    """Linear heads on a shared backbone: one forward pass of the backbone serves all heads.

    A head and its steps do not depend on the other heads. A frozen backbone stays in eval mode. A subclass says what
    the backbone makes of other inputs (`_forward`), the `_numbers` of their rows, and the `_losses` of other targets.

    Args:
        backbone: inputs (N, …) → features (N, F); nn.Identity() for features.
        dim: F.
        classes: number of classes C.
        settings: one head is made for each learning rate; all begin with the same weights.
        device: of backbone and heads.
        ranks: that share each batch.

    Example:
        >>> classifier = Classifier(network, network.dim, 10, SupervisedSettings(), torch.device("cpu"))
        >>> losses = classifier.step([(images, labels)], number=0, steps_per_epoch=100)  # (heads,)
    """

    def __init__(
        self,
        backbone: nn.Module,
        dim: int,
        classes: int,
        settings: SupervisedSettings,
        device: torch.device,
        ranks: Ranks | None = None,
    ) -> None:
        self.settings, self.device, self.classes = settings, device, classes
        self._rank = (ranks or Ranks()).rank
        self.dtype = torch.float64 if settings.precision == "float64" else torch.float32
        self.trains_backbone = settings.backbone_learning_rate is not None
        backbone = to_channels_last(backbone.to(device, self.dtype)).requires_grad_(self.trains_backbone).eval()
        if self.trains_backbone and settings.batch_norm == "sync" and (ranks or Ranks()).size > 1:
            backbone = synchronized(backbone, device)
        self.backbone = backbone
        heads = [linear_head(dim, classes, seed=settings.seed).to(device, self.dtype) for _ in settings.learning_rates]
        shared = backbone if self.trains_backbone else None
        pairs = zip(heads, settings.learning_rates, strict=True)
        self.learners = [Learner(head, rate, shared, settings) for head, rate in pairs]

    def step(self, parts: Iterable[tuple[Any, Tensor]], *, number: int, steps_per_epoch: int) -> Tensor:
        """Take one optimizer step of every head; return their losses (heads,), whose mean over the ranks is the loss.

        Args:
            parts: `accumulation` pairs of inputs (N, …) and labels (N,), each drawn when its turn comes. A subclass may
                take others.
            number: of the step, from 0.
            steps_per_epoch: for the schedule.
        """
        for learner in self.learners:
            learner.optimizer.zero_grad(set_to_none=True)
            for group in learner.optimizer.param_groups:
                group["lr"] = self.settings.rate(group["base"], number, steps_per_epoch)
        share, losses = 1 / self.settings.accumulation, []
        self.backbone.train(self.trains_backbone)
        for part, (inputs, labels) in enumerate(parts):
            features, labels = self._features(inputs), labels.to(self.device, non_blocking=True)
            if self.settings.dropout:
                features = features * self._dropout(inputs, number, part)
            own = self._losses(features, labels)
            guarded = [learner.guard.guarded(loss * share) for learner, loss in zip(self.learners, own, strict=True)]
            torch.stack(guarded).sum().backward()
            losses.append(torch.stack(own).detach())
        self.backbone.eval()
        average_over_ranks([p.grad for learner in self.learners for p in learner.parameters if p.grad is not None])
        for learner in self.learners:
            gradients = [p.grad for p in learner.parameters if p.grad is not None]
            learner.optimizer.step(skip=learner.guard.check(gradients, number))
        return torch.stack(losses).mean(0)

    @torch.no_grad()
    def scores(self, views: Any) -> Tensor:
        """Return scores (heads, N, C) of samples with one or several views (N, views, …).

        One view is scored by the logits, several by the mean of their softmax.
        """
        features = self._features(views.flatten(0, 1))
        logits = torch.stack([learner.head(features) for learner in self.learners])
        logits = logits.unflatten(1, views.shape[:2])  # (heads, N, views, C)
        return logits[:, :, 0] if views.shape[1] == 1 else logits.softmax(-1).mean(2)

    def share_statistics(self) -> None:
        """Give a trained backbone of every rank the first rank's running statistics, which are the saved ones."""
        if self.trains_backbone and world_size() > 1:
            for buffer in self.backbone.buffers():
                dist.broadcast(buffer, 0)

    def failed_steps(self) -> list[int]:
        """Return for each head the number of its first step that was not finite, or −1; the host waits."""
        return torch.stack([learner.guard.failed_step for learner in self.learners]).tolist()

    def weights(self) -> dict[str, Tensor]:
        """Return the weights and buffers of the heads and of a trained backbone."""
        modules = {name: m for some, _ in self._by_learner() for name, m in some.items() if not isinstance(m, Guard)}
        return {f"{name}.{key}": t for name, module in modules.items() for key, t in module.state_dict().items()}

    def tensors(self) -> dict[str, Tensor]:
        """Return all tensors that change, as train.checkpoint.collect names them."""
        found: dict[str, Tensor] = {}
        for modules, learner in self._by_learner():
            found |= collect(modules, learner.optimizer)
        return found

    def restore(self, checkpoint: Checkpoint, failed_steps: list[int]) -> None:
        """Put back what `tensors` and `failed_steps` returned.

        Raises:
            ValueError: the checkpoint is of other heads or of another backbone.
        """
        for (modules, learner), failed in zip(self._by_learner(), failed_steps, strict=True):
            own = {key: t for key, t in checkpoint.tensors.items() if _module_of(key) in modules}
            restore(Checkpoint(own, checkpoint.state), modules, learner.optimizer)
            learner.guard.failed_step.fill_(failed)

    def _features(self, inputs: Any) -> Tensor:
        narrow = self.settings.precision == "bfloat16"
        with (
            torch.set_grad_enabled(self.trains_backbone and torch.is_grad_enabled()),
            torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=narrow),
        ):
            features = self._forward(inputs)
        return features.to(self.dtype)

    def _forward(self, inputs: Any) -> Tensor:
        layout = channels_last(inputs.dim())
        features: Tensor = self.backbone(inputs.to(self.device, self.dtype, non_blocking=True, memory_format=layout))
        return features

    def _losses(self, features: Tensor, labels: Tensor) -> list[Tensor]:
        """Return the loss of each head, so that its mean over the ranks is that of the global batch."""
        return [cross_entropy(learner.head(features), labels) for learner in self.learners]

    def _numbers(self, inputs: Any) -> NDArray[np.int64]:
        """Return the numbers (N,) of this rank's rows in the global batch, which any number of ranks counts alike."""
        return self._rank * len(inputs) + np.arange(len(inputs))

    def _dropout(self, inputs: Any, step: int, part: int) -> Tensor:
        """Return the factors (N, F) of the features: 0, or 1 / (1 − dropout)."""
        settings, dim = self.settings, self.learners[0].head.in_features
        kept = kept_features(settings.seed, step, part, self._numbers(inputs), dim, settings.dropout)
        return torch.from_numpy(kept / (1 - settings.dropout)).to(self.device, self.dtype, non_blocking=True)

    def _by_learner(self) -> list[tuple[dict[str, nn.Module], Learner]]:
        shared = {"backbone": self.backbone} if self.trains_backbone else {}
        return [
            ({f"head{i}": learner.head, f"guard{i}": learner.guard, **shared}, learner)
            for i, learner in enumerate(self.learners)
        ]


def linear_head(dim: int, classes: int, *, seed: int) -> nn.Linear:
    """Return a linear layer with weights of N(0, 0.01²) and zero biases; a seed always gives the same weights."""
    head = nn.Linear(dim, classes)
    nn.init.normal_(head.weight, std=HEAD_STD, generator=torch.Generator().manual_seed(seed))
    nn.init.zeros_(head.bias)
    return head


def kept_features(
    seed: int, step: int, part: int, rows: NDArray[np.int64], dim: int, dropout: float
) -> NDArray[np.bool_]:
    """Return which features (N, dim) a step keeps, as a pure function of the numbers of the rows in the global batch.

    Args:
        seed: in [0, 2³²).
        step: number of the optimizer step.
        part: number of the part of an accumulated batch.
        rows: (N,).
        dim: number of features.
        dropout: probability of each feature to be left out.
    """
    return uniform(seed, step, rows, Draw.DROPOUT, part, dim).reshape(len(rows), dim) >= dropout


@torch.no_grad()
def average_over_ranks(gradients: list[Tensor]) -> None:
    """Replace each gradient by its mean over the ranks, in place and with one collective."""
    if world_size() == 1:
        return
    together = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(together)
    together /= world_size()
    for gradient, mean in zip(gradients, together.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))


def _groups(module: nn.Module, rate: float, weight_decay: float) -> list[dict]:
    """Return the optimizer's groups of a module: matrices with weight decay, vectors without; `base` is their rate."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": weight_decay, "base": rate},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0, "base": rate},
    ]
    return [group for group in groups if group["params"]]


def _module_of(key: str) -> str:
    """Return the module of a tensor's name: head0.weight, or optimizer.ENTRY.head0.weight."""
    parts = key.split(".")
    return parts[2] if parts[0] == "optimizer" else parts[0]
