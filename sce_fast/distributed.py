"""Several processes that train together: who they are, and the collectives that the method and the run need.

Each collective is the identity on a single process. Nothing here waits for the device, except where it says so.
"""

import ctypes
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

T = TypeVar("T")
PR_SET_PDEATHSIG = 1  # of linux/prctl.h
# The others may wait for as long as the first rank lists a data set or evaluates; torchrun ends those whose peer died.
PATIENCE = timedelta(hours=6)


@dataclass(frozen=True)
class Ranks:
    """This process among those of the run."""

    rank: int = 0
    size: int = 1
    hosts: Any = None  # a gloo group, for what the processes tell one another on the CPU

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def gather(self, value: Any) -> list[Any]:
        """What each rank gives, in their order, on every rank; anything that JSON holds."""
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
        """A CPU tensor of each rank, all of one shape and dtype, on every rank."""
        if self.size == 1:
            return [value]
        tensors = [torch.empty_like(value) for _ in range(self.size)]
        dist.all_gather(tensors, value.contiguous(), group=self.hosts)
        return tensors

    def first(self, call: Callable[[], Any]) -> Any:
        """What a call returns on the first rank (anything that JSON holds), on every rank.

        Raises:
            RuntimeError: on the other ranks, what the first one raised.
        """
        if self.size == 1:
            return call()
        error: Exception | None = None
        answer: dict[str, Any] = {}
        if self.is_first:
            try:
                answer = {"value": call()}
            except Exception as raised:  # whatever it is, the others must not wait for what will never come
                error, answer = raised, {"error": str(raised)}
        answer = self.gather(answer)[0]
        if error is not None:
            raise error
        if "error" in answer:
            raise RuntimeError(f"rank 0: {answer['error']}")
        return answer["value"]

    def first_then_others(self, call: Callable[[], T]) -> T:
        """What a call returns, on each rank; the first one's turn comes before, so that the others find its caches.

        Raises:
            RuntimeError: on the other ranks, what the first one raised.
        """
        results: list[T] = []
        self.first(lambda: results.append(call()))
        return results[0] if self.is_first else call()


class Vote:
    """Whether any rank has said yes, known to all of them at the same call.

    With several ranks the answer is that of the call before: the votes travel while the step runs, so that no rank
    waits for another.
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
    """The ranks of a run under torchrun, by nccl on GPUs and gloo on CPUs; one rank without torchrun.

    A group that the caller has made already is taken as it is.
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
        dist.destroy_process_group()


def _end_with_parent() -> None:
    """Has Linux send SIGTERM when torchrun dies without having stopped its ranks: they save and end."""
    with suppress(OSError, AttributeError):  # not Linux
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def lost_a_rank(error: RuntimeError) -> bool:
    """Whether a collective failed because another process is gone."""
    return "gloo" in str(error) and "peer" in str(error)


def current_ranks() -> Ranks:
    """The ranks of torch.distributed, with a gloo group for the hosts; one rank where it does not run."""
    if not (dist.is_available() and dist.is_initialized()):
        return Ranks()
    hosts = dist.group.WORLD if dist.get_backend() == "gloo" else dist.new_group(backend="gloo", timeout=PATIENCE)
    return Ranks(dist.get_rank(), dist.get_world_size(), hosts)


def world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def gather_keys(keys: Tensor) -> Tensor:
    """The keys of all ranks, (N, D) → (W·N, D) or (U, N, D) → (U, W·N, D), ranks in order; no gradient.

    Raises what torch.distributed raises when ranks give different shapes.
    """
    if world_size() == 1:
        return keys.detach()
    return torch.cat(_all_gather(keys.detach()), dim=-2)


def gather_rows(rows: Tensor) -> Tensor:
    """(N, …) of each rank → (W·N, …), ranks in order; no gradient."""
    return rows.detach() if world_size() == 1 else torch.cat(_all_gather(rows.detach()))


def own_rows(rows: Tensor) -> Tensor:
    """(W·N, …) → the (N, …) that this rank would have given to gather_rows."""
    if world_size() == 1:
        return rows
    return rows.chunk(dist.get_world_size())[dist.get_rank()]


def _all_gather(local: Tensor) -> list[Tensor]:
    local = local.contiguous()
    ranks = [torch.empty_like(local) for _ in range(dist.get_world_size())]
    dist.all_gather(ranks, local)
    return ranks
