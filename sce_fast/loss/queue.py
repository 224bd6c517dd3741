"""The queue of past keys: a ring on the device that is the same on all ranks."""

import torch
from torch import Tensor, nn

from sce_fast.distributed import gather_keys
from sce_fast.loss import operator  # noqa: F401  (registers torch.ops.sce_fast)
from sce_fast.util.rows import unit_rows


class KeyQueue(nn.Module):
    """The newest `size` keys of all ranks, in a ring of buffers that belongs to the model's state.

    Starts with random unit rows. Wrap a model that holds one in DDP with broadcast_buffers=False.

    Args:
        size: K, the number of keys kept.
        dim: D, the length of a key.
        dtype: of the stored keys; 16-bit storage halves the traffic of the loss.

    Raises:
        ValueError: size or dim is not positive.

    Example:
        >>> queue = KeyQueue(65536, 256)
        >>> loss = sce_loss(query, key, queue.keys)
        >>> queue.enqueue(key)  # before or after loss.backward(): the loss does not look at it again
    """

    keys: Tensor  # (K, D)
    cursor: Tensor  # () int64, the row that is overwritten next; stays on the device

    def __init__(self, size: int, dim: int, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        for name, value in (("size", size), ("dim", dim)):
            if value < 1:
                raise ValueError(f"{name}={value}: expected at least 1")
        self.register_buffer("keys", nn.functional.normalize(torch.randn(size, dim), dim=1).to(dtype))
        self.register_buffer("cursor", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def enqueue(
        self, keys: Tensor, *, gather: bool = True, normalize: bool = False, skip: Tensor | None = None
    ) -> None:
        """Overwrites the oldest rows with the keys of this step; of more than K rows the newest K stay.

        On a GPU with Triton this is one fused launch and a tiny one for the cursor; nothing is read by the host.

        Args:
            keys: (N, D), or (U, N, D) for views; stored in the order view, rank, row.
            gather: first collect the keys of all ranks when torch.distributed runs; False for keys that are already
                those of all ranks.
            normalize: L2-normalise them first, in float32 at least.
            skip: () bool on the device; where it is true, keys and cursor stay as they are.

        Raises:
            ValueError: the rows are not of length D or the rank is neither 2 nor 3.
        """
        dim = self.keys.shape[1]
        if keys.dim() not in (2, 3) or keys.shape[-1] != dim:
            raise ValueError(f"keys has shape {tuple(keys.shape)}, expected (N, {dim}) or (views, N, {dim})")
        if gather:
            keys = gather_keys(keys)
        rows = keys.reshape(-1, dim)
        if skip is None:
            torch.ops.sce_fast.enqueue(self.keys, self.cursor, rows, normalize)
            return
        # What stands there takes the place of the new rows, and the cursor comes back.
        before = self.cursor.clone()
        present = self.keys[(before + torch.arange(len(rows), device=before.device)) % len(self.keys)]
        rows = torch.where(skip, present, unit_rows(rows) if normalize else rows)
        torch.ops.sce_fast.enqueue(self.keys, self.cursor, rows, False)
        self.cursor.copy_(torch.where(skip, before, self.cursor))

    def extra_repr(self) -> str:
        return f"size={self.keys.shape[0]}, dim={self.keys.shape[1]}, dtype={self.keys.dtype}"
