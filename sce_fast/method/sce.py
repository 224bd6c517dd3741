"""SCE on one page: two networks, which view goes through which, and the momentum update."""

import copy

import torch
from torch import Tensor, nn

from sce_fast.distributed import gather_rows, own_rows
from sce_fast.util.masked import unless
from sce_fast.util.rows import unit_rows


class SCE(nn.Module):
    """A student that predicts what its momentum copy says of another view (Denize et al., WACV 2023).

    Args:
        backbone: images (N, …) → features (N, F).
        projector: features → (N, D).
        predictor: (N, D) → (N, D) on the student's side only, or None.
        symmetric: every key view is compared with every other view; otherwise view 0 is the target alone.
        key_views: how many leading views the momentum encoder sees when symmetric; later ones (multi-crop) are only
            students.

    Raises:
        ValueError: key_views below 2 when symmetric, or fewer views in forward than the setting needs.

    Example:
        >>> model = SCE(resnet50(), projector(2048, (4096, 4096), 256, norm="all"), predictor(256, 4096))
        >>> query, key = model([view0, view1])     # (2, N, D) both, unit rows
        >>> sce_loss(query, key, queue.keys).backward()
        >>> optimizer.step(); model.update_momentum(0.99); queue.enqueue(key)
    """

    def __init__(
        self,
        backbone: nn.Module,
        projector: nn.Module,
        predictor: nn.Module | None = None,
        *,
        symmetric: bool = True,
        key_views: int = 2,
    ) -> None:
        super().__init__()
        if symmetric and key_views < 2:
            raise ValueError(f"key_views={key_views}: a symmetric model needs at least 2")
        self.backbone = backbone
        self.projector = projector
        self.predictor = predictor
        # A copy, not a second draw, and in training mode: its batch normalisation uses the batch, and its running
        # statistics are its own, never averaged with the student's.
        self.momentum_backbone = copy.deepcopy(backbone).requires_grad_(False)
        self.momentum_projector = copy.deepcopy(projector).requires_grad_(False)
        self.symmetric = symmetric
        self.key_views = key_views if symmetric else 1

    def forward(self, views: list[Tensor], shuffles: list[Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """Views, each (N, C, H, W) and of any size, → query and key with unit rows in float32 or wider.

        Symmetric: query (V, N, D), key (U, N, D) with U = key_views, view v of both being the same images.
        Asymmetric: query (V−1, N, D) from all views but the first, key (N, D) from the first.

        Args:
            shuffles: for each key view an order (W·N,) of all ranks' rows, in which the momentum encoder sees them; the
                same on all ranks.
        """
        needed = max(self.key_views, 2)
        if len(views) < needed:
            raise ValueError(f"{len(views)} views, expected at least {needed}")
        # One pass a view, so that each has batch statistics of its own.
        key_seen = views[: self.key_views]
        key = torch.stack([self.encode_key(v, shuffles[u] if shuffles else None) for u, v in enumerate(key_seen)])
        query = torch.stack([self.encode_query(view) for view in (views if self.symmetric else views[1:])])
        return query, key if self.symmetric else key[0]

    def encode_query(self, view: Tensor) -> Tensor:
        """(N, C, H, W) → (N, D): the student; the predictor sees the projection before it is normalised."""
        projection = self.projector(self.backbone(view))
        return unit_rows(projection if self.predictor is None else self.predictor(projection))

    @torch.no_grad()
    def encode_key(self, view: Tensor, shuffle: Tensor | None = None) -> Tensor:
        """(N, C, H, W) → (N, D): the momentum encoder; with shuffle (W·N,) on rows that changed places over all ranks.

        So a key's batch statistics come from other rows than its query's (He et al., CVPR 2020, section 3.3).
        """
        if shuffle is None:
            return unit_rows(self.momentum_projector(self.momentum_backbone(view)))
        key = self.encode_key(own_rows(gather_rows(view)[shuffle]))
        return own_rows(gather_rows(key)[shuffle.argsort()])

    @torch.no_grad()
    def update_momentum(self, momentum: float, *, skip: Tensor | None = None) -> None:
        """θ_m ← m · θ_m + (1 − m) · θ for every parameter; buffers stay. With skip () bool true nothing changes."""
        student: list[Tensor] = [*self.backbone.parameters(), *self.projector.parameters()]
        teacher: list[Tensor] = [*self.momentum_backbone.parameters(), *self.momentum_projector.parameters()]
        skip = teacher[0].new_zeros((), dtype=torch.bool) if skip is None else skip
        torch._foreach_mul_(teacher, unless(skip, momentum, 1.0, teacher[0]))
        torch._foreach_add_(teacher, torch._foreach_mul(student, unless(skip, 1 - momentum, 0.0, teacher[0])))
