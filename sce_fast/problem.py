"""What every backend of the loss is given and what it gives back."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Problem:
    """A call of the loss with its arguments checked and its views explicit; only the query gets a gradient."""

    query: Tensor  # (V, N, D)
    key: Tensor  # (U, N, D)
    queue: Tensor | None  # (K, D)
    batch_keys: Tensor | None  # (U, M, D)
    row_offset: int
    terms: tuple[tuple[int, int], ...]  # pairs (v, u)
    temperature: float | Tensor
    target_temperature: float | Tensor
    coefficient: float | Tensor
    positive_target: str
    needs_gradient: bool
    needs_target: bool  # False where λ = 1 and nobody asks for statistics: the teacher's side is not needed

    @property
    def compute_dtype(self) -> torch.dtype:
        """The dtype of sums and softmax: that of the widest input, float32 at least."""
        dtype = torch.float32
        for tensor in (self.query, self.key, self.queue, self.batch_keys):
            if tensor is not None:
                dtype = torch.promote_types(dtype, tensor.dtype)
        return dtype


@dataclass(frozen=True)
class Solution:
    """What a backend returns; per-row quantities are means over the terms."""

    rows: Tensor  # (N,) loss
    gradient: Tensor | None  # (V, N, D) d rows.sum() / d query, in the query's dtype
    target_entropy: Tensor  # (U, N) nats; undefined without needs_target
    positive_probability: Tensor  # (N,)
