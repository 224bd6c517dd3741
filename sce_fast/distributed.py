"""The ranks of a run, and the collectives that the method and the trainer need.

On a single process each collective is the identity. No function here makes the host wait for the device.
"""

import ctypes
import gc
import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from sce_fast.util import parent

T = TypeVar("T")
PR_SET_PDEATHSIG = 1  # of linux/prctl.h
# Other ranks may wait for as long as the first rank lists a data set or evaluates. If a rank dies, torchrun ends them.
PATIENCE = timedelta(hours=6)


@dataclass(frozen=True)
class Ranks:
    """The rank of this process, and how many ranks share the run."""

    rank: int = 0
    size: int = 1
    hosts: Any = None  # a gloo group, for messages between the CPUs

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def gather(self, value: Any) -> list[Any]:
        """Return the values of all ranks in order, on every rank; a value is anything that JSON can hold."""
        if self.size == 1:
            return [value]
        local = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
        dist.all_gather(lengths, torch.tensor([len(local)]), group=self.hosts)
        longest = int(max(lengths))
        texts = [torch.empty(longest, dtype=torch.uint8) for _ in range(self.size)]
        dist.all_gather(texts, torch.nn.functional.pad(local, (0, longest - len(local))), group=self.hosts)
        return [json.loads(t[: int(n)].numpy().tobytes()) for t, n in zip(texts, lengths, strict=True)]

    def gather_tensors(self, value: Tensor) -> list[Tensor]:
        """Return the CPU tensors of all ranks in order, on every rank; shapes and dtypes must agree."""
        if self.size == 1:
            return [value]
        tensors = [torch.empty_like(value) for _ in range(self.size)]
        dist.all_gather(tensors, value.contiguous(), group=self.hosts)
        return tensors

    def join(self, rows: Tensor) -> Tensor:
        """Return the CPU tensors (n, …) of all ranks, in order, as (W·n, …) on every rank; shapes must agree."""
        if self.size == 1:
            return rows
        joined = rows.new_empty(self.size, *rows.shape)
        dist.all_gather(list(joined), rows.contiguous(), group=self.hosts)
        return joined.flatten(0, 1)

    def first(self, call: Callable[[], Any]) -> Any:
        """Call a function on the first rank only; return its value, anything that JSON can hold, on every rank.

        Raises:
            Exception: on the first rank, whatever the call raises.
            RuntimeError: on the other ranks, with the message of the first rank's error.
        """
        if self.size == 1:
            return call()
        error: Exception | None = None
        answer: dict[str, Any] = {}
        if self.is_first:
            try:
                answer = {"value": call()}
            except Exception as raised:  # of any kind: the other ranks wait for an answer
                error, answer = raised, {"error": str(raised)}
        answer = self.gather(answer)[0]
        if error is not None:
            raise error
        if "error" in answer:
            raise RuntimeError(f"rank 0: {answer['error']}")
        return answer["value"]

    def first_then_others(self, call: Callable[[], T]) -> T:
        """Call a function on every rank, on the first rank before the others, so that they find its caches.

        Raises:
            RuntimeError: on the other ranks, with the message of the first rank's error.
        """
        results: list[T] = []
        self.first(lambda: results.append(call()))
        return results[0] if self.is_first else call()


class Vote:
    """Tells all ranks, at the same call, whether any of them has voted yes.

    With several ranks each call returns the result of the previous call: votes travel while the step runs, so that no
    rank waits for another.
    """

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self._votes = torch.zeros(1, dtype=torch.int32)
        self._travelling: Any = None

    def __call__(self, yes: bool) -> bool:
        if self._ranks.size == 1:
            return yes
        answer = False
        if self._travelling is not None:
            self._travelling.wait()
            answer = bool(self._votes.item())
        self._votes.fill_(int(yes))
        self._travelling = dist.all_reduce(self._votes, dist.ReduceOp.MAX, group=self._ranks.hosts, async_op=True)
        return answer


@contextmanager
def process_group(device: torch.device) -> Iterator[Ranks]:
    """Join the process group that torchrun has set up (nccl on GPUs, gloo on CPUs) and yield this process's Ranks.

    Without torchrun there is one rank. A group that the caller has made already is used as it is. Free a module that
    DistributedDataParallel wraps before the group ends: its destructor may wait for gloo's threads while it holds the
    GIL, for which they wait (torch 2.13).

    Raises:
        RuntimeError: torchrun has ended while this rank was starting; the other ranks would never come.
    """
    if dist.is_initialized():
        yield current_ranks()
        return
    if "WORLD_SIZE" not in os.environ:
        yield Ranks()
        return
    _end_with_parent()
    if device.type == "cuda":
        dist.init_process_group("nccl")
    else:
        dist.init_process_group("gloo", timeout=PATIENCE)
    try:
        yield current_ranks()
    finally:
        gc.collect()  # such modules stand in reference cycles
        dist.destroy_process_group()


def _end_with_parent() -> None:
    """Have Linux send SIGTERM if torchrun dies without stopping its ranks, so that they save and end.

    Raises RuntimeError if torchrun has died since this process started.
    """
    with suppress(OSError, AttributeError):  # not Linux
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    # Checked after that call, so that no moment is left out. Ranks that were started by hand may outlive their shell.
    if "TORCHELASTIC_RUN_ID" in os.environ and parent.has_died():
        raise RuntimeError("torchrun ended while this rank was starting, so the rank ends too")


def lost_a_rank(error: RuntimeError) -> bool:
    """Return whether a collective failed because another process has ended."""
    return "gloo" in str(error) and "peer" in str(error)


def current_ranks() -> Ranks:
    """Return the Ranks of torch.distributed, with a gloo group for the hosts; one rank if it is not initialised."""
    if not (dist.is_available() and dist.is_initialized()):
        return Ranks()
    hosts = dist.group.WORLD if dist.get_backend() == "gloo" else dist.new_group(backend="gloo", timeout=PATIENCE)
    return Ranks(dist.get_rank(), dist.get_world_size(), hosts)


def world_size() -> int:
    """Return the number of ranks of torch.distributed; 1 if it is not initialised."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def gather_keys(keys: Tensor) -> Tensor:
    """Gather the keys of all W ranks, (N, D) → (W·N, D) or (U, N, D) → (U, W·N, D), ranks in order; no gradient.

    If ranks give different shapes, torch.distributed raises its own error.
    """
    if world_size() == 1:
        return keys.detach()
    return torch.cat(_all_gather(keys.detach()), dim=-2)


def gather_rows(rows: Tensor) -> Tensor:
    """Gather the rows of all W ranks, (N, …) → (W·N, …), ranks in order; no gradient."""
    return rows.detach() if world_size() == 1 else torch.cat(_all_gather(rows.detach()))


def own_rows(rows: Tensor) -> Tensor:
    """Return the rows that this rank would have given to gather_rows, (W·N, …) → (N, …)."""
    if world_size() == 1:
        return rows
    return rows.chunk(dist.get_world_size())[dist.get_rank()]


def _all_gather(local: Tensor) -> list[Tensor]:
    local = local.contiguous()
    ranks = [torch.empty_like(local) for _ in range(dist.get_world_size())]
    dist.all_gather(ranks, local)
    return ranks
