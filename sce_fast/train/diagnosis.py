"""The host's side of the guard: reads its flag, and names the step, the ranks and the samples that were not finite."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from sce_fast.data.index import Index
from sce_fast.distributed import Ranks
from sce_fast.loss.problem import NORM_TOLERANCE
from sce_fast.loss.queue import KeyQueue
from sce_fast.train.guard import Guard
from sce_fast.util.files import printable, write_atomically

Samples = list[NDArray[np.int64]]  # of one step on this rank, one array for each part of the batch


class Diagnosis:
    """Remembers the samples of each step until the guard's flag is read, and explains a step that was not finite.

    Args:
        run: run folder, where not_finite_step_*.txt goes.
        guard: of the training step.
        queue: of the training step; None if it has none.
        index: names the samples.
        ranks: that share the run.

    Example:
        >>> samples = diagnosis.begin(step)  # a list that the loop fills while it reads the batch
        >>> diagnosis.require_finite()
    """

    def __init__(self, run: Path, guard: Guard, queue: KeyQueue | None, index: Index, ranks: Ranks) -> None:
        self._run, self._guard, self._queue, self._index, self._ranks = run, guard, queue, index, ranks
        self._unread: dict[int, Samples] = {}  # by step, since the flag was last read

    def begin(self, step: int) -> Samples:
        """Return the list that takes the samples of a step, which is counted from 0."""
        self._unread[step] = []
        return self._unread[step]

    def require_finite(self) -> None:
        """Read the guard's flag, for which the host waits; every rank has to call it.

        Raises:
            RuntimeError: a step since the last call was not finite. The message names the step and the ranks; the
                samples are named in a file of the run folder.
        """
        unread, self._unread = self._unread, {}
        failed = int(self._guard.failed_step)
        if failed < 0:
            return
        entries = self._index.listing.entries()
        samples = [printable(entries[i]) for part in unread.get(failed, []) for i in part]
        reports = self._ranks.gather({"loss": bool(self._guard.local_failure), "samples": samples})
        cause = self._cause([rank for rank, report in enumerate(reports) if report["loss"]])
        lines = [f"rank {rank}\t{name}\n" for rank, report in enumerate(reports) for name in report["samples"]]
        path = self._run / f"not_finite_step_{failed + 1:08d}.txt"
        kept = "weights and momentum encoder" if self._queue is None else "weights, momentum encoder and queue"
        self._ranks.first(lambda: write_atomically(path, "".join(lines)))
        raise RuntimeError(
            f"step {failed + 1}: {cause}. This step and all later ones were masked: {kept} are those after "
            f"step {failed}. The {len(lines)} {self._index.kind} of the step are listed in {printable(path)}. "
            "Try a smaller learning rate, a longer warm-up or --optimizer.clip-norm in another --out"
        )

    def _cause(self, ranks: list[int]) -> str:
        """Return what was not finite, given the ranks whose loss was not."""
        if ranks:
            return f"the loss of rank {', '.join(map(str, ranks))} is not finite{self._bad_queue()}"
        if self._guard.scales:
            return f"the loss scale fell to {float(self._guard.scale):g}: gradients overflow at any scale"
        return "the gradients are not finite, but the loss of every rank is"

    def _bad_queue(self) -> str:
        """Return what is wrong with the queue, to follow a cause; it is the same queue on all ranks."""
        if self._queue is None:
            return ""
        rows = self._queue.keys
        norms = rows.to(torch.promote_types(rows.dtype, torch.float32)).norm(dim=1)
        if bad := int((~norms.isfinite()).sum()):
            return f"; {bad} of {len(rows)} queue rows are not finite"
        if (longest := float(norms.max())) > 1 + NORM_TOLERANCE:
            return (
                f"; queue rows have norms up to {longest:.3g}, expected 1: keys must be unit rows when they are "
                "enqueued, or the queue made with normalize=True"
            )
        return ""
