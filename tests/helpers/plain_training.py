"""Training steps of SCE in plain PyTorch on one process, written from the papers' formulas: no code of sce_fast."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import log_softmax, normalize, one_hot


@dataclass
class PlainTraining:
    """Networks, queue and optimizer of a run. A call takes one step on the whole batch of all ranks.

    The networks are copied, so that those of a run may be given.
    """

    backbone: nn.Module
    projector: nn.Module
    predictor: nn.Module | None
    queue: Tensor | None  # (K, D)
    key_views: int = 2
    symmetric: bool = True
    batch_keys: bool = False
    joint: bool = False  # views of equal size share batch statistics
    parts: int = 1  # into which the batch is split; each part is shared by all ranks
    ranks: int = 1  # with batch statistics of their own
    average_momentum: float = 0.0
    adamw: dict[str, float] | None = None
    sgd: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.backbone, self.projector = copy.deepcopy(self.backbone), copy.deepcopy(self.projector)
        self.predictor = copy.deepcopy(self.predictor)
        student = nn.ModuleList(filter(None, [self.backbone, self.projector, self.predictor]))
        self.teacher = nn.Sequential(copy.deepcopy(self.backbone), copy.deepcopy(self.projector))
        self.average = copy.deepcopy(self.backbone)
        self.queue, self.cursor = None if self.queue is None else self.queue.clone(), 0
        self.weights = list(student.parameters())
        if self.adamw is not None:
            decay = self.adamw["weight_decay"]
            groups = [
                {"params": [p for p in self.weights if p.dim() > 1], "weight_decay": decay},
                {"params": [p for p in self.weights if p.dim() <= 1], "weight_decay": 0.0},
            ]
            self.optimizer: torch.optim.Optimizer = torch.optim.AdamW(groups, betas=(self.adamw["beta1"], 0.999))
        else:
            self.optimizer = torch.optim.SGD(self.weights, **self.sgd)

    def __call__(
        self, views: list[Tensor], *, rate: float, momentum: float, tau: float, tau_m: float, weight: float
    ) -> float:
        """Take one step; return the loss."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad()
        losses, keys = [], []
        rows = len(views[0]) // (self.ranks * self.parts)
        for part in range(self.parts):
            own = [  # for each rank its views
                [view[(part * self.ranks + rank) * rows :][:rows] for view in views] for rank in range(self.ranks)
            ]
            query, key = (torch.cat(found, dim=1) for found in zip(*map(self.encode, own), strict=True))
            loss = self.loss(query, key, tau, tau_m, weight)
            (loss / self.parts).backward()
            losses.append(float(loss.detach()))
            keys.append(key)
        self.optimizer.step()
        with torch.no_grad():
            student = [*self.backbone.parameters(), *self.projector.parameters()]
            for mine, theirs in zip(self.teacher.parameters(), student, strict=True):
                mine.copy_(momentum * mine + (1 - momentum) * theirs)
            for name, mine in self.average.state_dict().items():
                theirs = self.backbone.state_dict()[name]
                m = self.average_momentum if mine.is_floating_point() else 0
                mine.copy_(m * mine + (1 - m) * theirs)
        if self.queue is not None:
            for key in torch.cat(keys, dim=1).flatten(0, 1):
                self.queue[self.cursor] = key
                self.cursor = (self.cursor + 1) % len(self.queue)
        return sum(losses) / self.parts

    def encode(self, views: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Return the queries (V, N, D) and keys (U, N, D) of one rank."""

        def student(x: Tensor) -> Tensor:
            z = self.projector(self.backbone(x))
            return z if self.predictor is None else self.predictor(z)

        with torch.no_grad():
            key = self.by_view(self.teacher, views[: self.key_views if self.symmetric else 1])
        return self.by_view(student, views if self.symmetric else views[1:]), key

    def by_view(self, network: Callable[[Tensor], Tensor], views: list[Tensor]) -> Tensor:
        if not self.joint:
            return torch.stack([normalize(network(view), dim=1) for view in views])
        found: dict[int, Tensor] = {}
        for size in dict.fromkeys(view.shape[-1] for view in views):
            mine = [v for v, view in enumerate(views) if view.shape[-1] == size]
            rows = normalize(network(torch.cat([views[v] for v in mine])), dim=1)
            for number, v in enumerate(mine):
                found[v] = rows[number * len(views[0]) : (number + 1) * len(views[0])]
        return torch.stack([found[v] for v in range(len(views))])

    def loss(self, query: Tensor, key: Tensor, tau: float, tau_m: float, weight: float) -> Tensor:
        """Return the mean over terms and rows of the cross-entropy, from whole matrices of similarities."""
        terms = []
        for u, k in enumerate(key):
            for v, q in enumerate(query):
                if self.symmetric and u == v:
                    continue
                others = [] if self.queue is None else [self.queue]
                if self.batch_keys:  # the own key of row i is column i
                    candidates = torch.cat([k, *others])
                    scores, similarities = q @ candidates.T, k @ candidates.T
                    own = one_hot(torch.arange(len(k)), len(candidates)).bool()
                else:  # the own key is column 0
                    scores, similarities = (
                        torch.cat([(rows * k).sum(1, keepdim=True), rows @ others[0].T], dim=1) for rows in (q, k)
                    )
                    own = one_hot(torch.zeros(len(k), dtype=torch.int64), scores.shape[1]).bool()
                target = (similarities / tau_m).masked_fill(own, -torch.inf).softmax(dim=1)
                target = torch.where(own, weight, (1 - weight) * target)
                terms.append(-(target * log_softmax(scores / tau, dim=1)).sum(1).mean())
        return torch.stack(terms).mean()
