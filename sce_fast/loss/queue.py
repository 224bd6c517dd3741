"""The queue of past keys: a ring on the device with the same content on every rank."""

import torch
from torch import Tensor, nn

from sce_fast.distributed import gather_keys
from sce_fast.loss import operator  # noqa: F401  (registers torch.ops.sce_fast)
from sce_fast.loss.backends import check_name, choose_for_ring
from sce_fast.util.rows import unit_rows


class KeyQueue(nn.Module):
    """Keep the newest `size` keys of all ranks in a ring of buffers, saved with the model.

    The ring starts with random unit rows. Wrap a model that holds a queue in DDP with broadcast_buffers=False.

    Args:
        size: K, the number of keys.
        dim: D, the length of a key.
        dtype: dtype of the stored keys; 16 bits halve the loss's memory traffic.
        normalize: L2-normalise keys when they are enqueued, in float32 or wider. False stores them as they are, for
            keys that are unit rows already.
        backend: "auto" or a name of sce_fast.loss.names.BACKEND_NAMES, chosen by the same rule as in sce_loss, at each
            enqueue and for the device where the ring is then.

    Raises:
        ValueError, TypeError: size or dim is not positive, normalize is no bool, or there is no such backend.

    Example:
        >>> queue = KeyQueue(65536, 256)
        >>> loss = sce_loss(query, key, queue.keys)
        >>> queue.enqueue(key)  # before or after loss.backward(): the gradient is computed already
    """

    keys: Tensor  # (K, D)
    cursor: Tensor  # () int64, the row to overwrite next; stays on the device

    def __init__(
        self,
        size: int,
        dim: int,
        dtype: torch.dtype = torch.float32,
        normalize: bool = True,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        for name, value in (("size", size), ("dim", dim)):
            if value < 1:
                raise ValueError(f"{name}={value}: expected at least 1")
        if not isinstance(normalize, bool):
            raise TypeError(f"normalize is {normalize!r}, expected True or False")
        if backend != "auto":
            check_name(backend)
        self.normalize = normalize
        self.backend = backend
        self.register_buffer("keys", nn.functional.normalize(torch.randn(size, dim), dim=1).to(dtype))
        self.register_buffer("cursor", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def enqueue(self, keys: Tensor, *, gather: bool = True, skip: Tensor | None = None) -> None:
        """Overwrite the oldest rows with the keys of this step; the newest K of more than K rows stay.

        On a GPU with Triton this is one fused launch and a tiny one for the cursor. The host reads nothing.

        Args:
            keys: (N, D), or (U, N, D) for views; stored in the order view, rank, row.
            gather: first collect the keys of all ranks if torch.distributed is running. Pass False if `keys` already
                holds the keys of all ranks.
            skip: () bool on the device. Where it is true, keys and cursor stay as they are.

        Raises:
            ValueError: the rows are not of length D, `keys` has neither 2 nor 3 dimensions, or the named backend cannot
                write to this ring; the message names the reason.
        """
        dim = self.keys.shape[1]
        if keys.dim() not in (2, 3) or keys.shape[-1] != dim:
            raise ValueError(f"keys has shape {tuple(keys.shape)}, expected (N, {dim}) or (views, N, {dim})")
        backend = choose_for_ring(self.backend, self.keys).name
        if gather:
            keys = gather_keys(keys)
        rows = keys.reshape(-1, dim)
        if skip is None:
            torch.ops.sce_fast.enqueue(self.keys, self.cursor, rows, self.normalize, backend)
            return
        # A skipped step writes the present rows over themselves and restores the cursor: no branch on the device.
        before = self.cursor.clone()
        present = self.keys[(before + torch.arange(len(rows), device=before.device)) % len(self.keys)]
        rows = torch.where(skip, present, unit_rows(rows) if self.normalize else rows)
        torch.ops.sce_fast.enqueue(self.keys, self.cursor, rows, False, backend)
        self.cursor.copy_(torch.where(skip, before, self.cursor))

    def extra_repr(self) -> str:
        size, dim = self.keys.shape
        normalize = f"normalize={self.normalize}"
        return f"size={size}, dim={dim}, dtype={self.keys.dtype}, {normalize}, backend={self.backend!r}"
