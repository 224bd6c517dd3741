"""Collectives that the method needs; each is the identity on a single process."""

import torch
import torch.distributed as dist
from torch import Tensor


def gather_keys(keys: Tensor) -> Tensor:
    """The keys of all ranks, (N, D) → (W·N, D) or (U, N, D) → (U, W·N, D), ranks in order; no gradient.

    Raises what torch.distributed raises when ranks give different shapes.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return keys.detach()
    local = keys.detach().contiguous()
    ranks = [torch.empty_like(local) for _ in range(dist.get_world_size())]
    dist.all_gather(ranks, local)
    return torch.cat(ranks, dim=-2)
