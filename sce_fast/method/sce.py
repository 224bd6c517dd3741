"""SCE on one page: two networks, which view passes through which network, and the momentum update."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sce_fast.distributed import gather_rows, own_rows
from sce_fast.method.average import move_average
from sce_fast.util.rows import unit_rows


class SCE(nn.Module):
    """A student that matches the targets of its momentum encoder on another view (Denize et al., WACV 2023).

    Args:
        backbone: images (N, …) → features (N, F).
        projector: features (N, F) → projections (N, D).
        predictor: projections (N, D) → predictions (N, D), for the student only; or None.
        symmetric: compare every key view with every other view; otherwise view 0 is the only key view.
        key_views: number of leading views that the momentum encoder sees if symmetric; the student sees all views, also
            the later ones of multi-crop.
        mutual_pass: pass all views of equal shape through a network at once, with joint batch statistics. Otherwise
            each view has a pass and statistics of its own.

    Raises:
        ValueError: key_views is below 2 although symmetric, or forward gets fewer views than needed.

    Example:
        >>> model = SCE(resnet50(), projector(2048, (4096, 4096), 256, norm="all"), predictor(256, 4096))
        >>> query, key = model([view0, view1])     # both (2, N, D) with unit rows
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
        mutual_pass: bool = False,
    ) -> None:
        super().__init__()
        if symmetric and key_views < 2:
            raise ValueError(f"key_views={key_views}: a symmetric model needs at least 2")
        self.backbone = backbone
        self.projector = projector
        self.predictor = predictor
        # The copy starts from the student's weights and stays in training mode: it normalises by batch statistics. Its
        # running statistics are its own, never averaged with the student's.
        self.momentum_backbone = copy.deepcopy(backbone).requires_grad_(False)
        self.momentum_projector = copy.deepcopy(projector).requires_grad_(False)
        self.symmetric = symmetric
        self.key_views = key_views if symmetric else 1
        self.mutual_pass = mutual_pass

    def forward(self, views: list[Tensor], shuffles: list[Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """Return query and key with unit rows in float32 or wider.

        Symmetric: query (V, N, D) and key (U, N, D) with U = key_views; index v of both is view v.
        Asymmetric: query (V−1, N, D) from all views but the first, and key (N, D) from the first view.

        Args:
            views: V views, each (N, C, H, W) of any size.
            shuffles: for each pass of the momentum encoder the order (W·N,) in which it sees the rows of all W ranks,
                or (W·n·N,) for the rows of n views with mutual_pass; the same on all ranks.
        """
        needed = max(self.key_views, 2)
        if len(views) < needed:
            raise ValueError(f"{len(views)} views, expected at least {needed}")
        key = self._encode_all(self.encode_key, views[: self.key_views], shuffles)
        query = self._encode_all(self.encode_query, views if self.symmetric else views[1:])
        return query, key if self.symmetric else key[0]

    def _encode_all(
        self, encode: Callable[..., Tensor], views: list[Tensor], shuffles: list[Tensor] | None = None
    ) -> Tensor:
        """Return the rows (V, N, D) of all views."""
        rows: dict[int, Tensor] = {}
        for number, together in enumerate(passes([view.shape for view in views], mutual=self.mutual_pass)):
            seen = [views[v] for v in together]
            joint = seen[0] if len(seen) == 1 else torch.cat(seen)
            encoded = encode(joint) if shuffles is None else encode(joint, shuffles[number])
            rows.update(zip(together, encoded.chunk(len(seen)), strict=True))
        return torch.stack([rows[v] for v in range(len(views))])

    def encode_query(self, view: Tensor) -> Tensor:
        """Return the student's rows (N, D) for a view (N, C, H, W). The predictor's input is not normalised."""
        projection = self.projector(self.backbone(view))
        return unit_rows(projection if self.predictor is None else self.predictor(projection))

    @torch.no_grad()
    def encode_key(self, view: Tensor, shuffle: Tensor | None = None) -> Tensor:
        """Return the momentum encoder's rows (N, D) for a view (N, C, H, W).

        With shuffle (W·N,), rows change places among all ranks, so that the batch statistics of a key come from other
        rows than its query's (He et al., CVPR 2020, section 3.3).
        """
        if shuffle is None:
            return unit_rows(self.momentum_projector(self.momentum_backbone(view)))
        key = self.encode_key(own_rows(gather_rows(view)[shuffle]))
        return own_rows(gather_rows(key)[shuffle.argsort()])

    @torch.no_grad()
    def update_momentum(self, momentum: float | Tensor, *, skip: Tensor | None = None) -> None:
        """Set every parameter θ_m of the momentum encoder to m · θ_m + (1 − m) · θ; buffers do not change.

        Args:
            momentum: m, a number or a () float64 tensor on the device.
            skip: () bool on the device; if true, nothing changes.
        """
        student: list[Tensor] = [*self.backbone.parameters(), *self.projector.parameters()]
        teacher: list[Tensor] = [*self.momentum_backbone.parameters(), *self.momentum_projector.parameters()]
        move_average(teacher, student, momentum, skip=skip)


def passes(shapes: Sequence[Any], *, mutual: bool) -> list[list[int]]:
    """Return the numbers of the views that each pass through a network holds, given the shapes of all views.

    Example:
        >>> passes([224, 224, 96, 96], mutual=True)
        [[0, 1], [2, 3]]
    """
    if not mutual:
        return [[view] for view in range(len(shapes))]
    together: dict[Any, list[int]] = {}
    for view, shape in enumerate(shapes):
        together.setdefault(shape, []).append(view)
    return list(together.values())
