"""Benchmark the overhead of sce_loss around the kernel: argument checks, choice of the backend, autograd.

sce-fast bench overhead
"""

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sce_fast import sce_loss
from sce_fast.benchmarks.machine import machine
from sce_fast.benchmarks.record import write_record
from sce_fast.loss.backends import choose
from sce_fast.loss.problem import checked_problem
from sce_fast.util.rows import unit_rows


class _Trivial(torch.autograd.Function):
    """The minimal autograd function of a loss whose gradient is already computed."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, loss: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(gradient)
        return loss.view(())

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None, None]:
        return ctx.saved_tensors[0], None, None


def main(
    n: int = 1,
    k: int = 1,
    d: int = 128,
    backend: str = "auto",
    threads: int = 1,
    calls: int = 200,
    rounds: int = 15,
    out: Path | None = None,
) -> dict[str, float]:
    """Measure microseconds per call, forward and backward: sce_loss, the bare kernel, and the autograd engine alone.

    Args:
        n: Number of rows.
        k: Queue length.
        d: Dimension.
        backend: auto, or the name of a backend that serves a CPU.
        threads: Threads of torch; with more than one the kernel's time includes waiting for the others.
        calls: Calls per turn.
        rounds: Alternating turns of each; medians are printed.
        out: JSON file for the record.
    """
    threads_before = torch.get_num_threads()
    torch.set_num_threads(threads)
    here = machine()
    generator = torch.Generator().manual_seed(0)
    query, key, queue = (unit_rows(torch.randn(count, d, generator=generator)) for count in (n, n, k))
    query.requires_grad_()
    problem = checked_problem(query, key, queue)
    chosen = choose(backend, problem)
    zero, gradient = torch.zeros(1), torch.zeros_like(query)

    def whole() -> None:
        query.grad = None
        sce_loss(query, key, queue, backend=backend).backward()

    def engine() -> None:
        query.grad = None
        _Trivial.apply(query, zero, gradient).backward()

    parts: dict[str, Callable[[], Any]] = {
        "sce_loss": whole,
        "kernel": lambda: (chosen.solve_mean or chosen.solve)(problem),
        "autograd engine": engine,
    }
    turns: dict[str, list[float]] = {name: [] for name in parts}
    try:
        for _ in range(rounds + 1):
            for name, call in parts.items():
                start = time.perf_counter()
                for _ in range(calls):
                    call()
                turns[name].append(1e6 * (time.perf_counter() - start) / calls)
    finally:
        torch.set_num_threads(threads_before)
    result = {name: statistics.median(values[1:]) for name, values in turns.items()}  # the first turn warms up
    result["added"] = result["sce_loss"] - result["kernel"] - result["autograd engine"]
    print(f"N {n}, K {k}, D {d}, backend {chosen.name}: forward and backward of sce_loss {result['sce_loss']:.1f} µs =")
    print(f"  kernel {result['kernel']:.1f} + autograd engine alone {result['autograd engine']:.1f}", end="")
    print(f" + overhead of sce_loss {result['added']:.1f}")
    if out is not None:
        sizes = {"n": n, "k": k, "d": d, "backend": chosen.name, "calls": calls, "rounds": rounds}
        write_record(out, {"machine": here, "sizes": sizes, "microseconds": result})
    return result


if __name__ == "__main__":
    import tyro

    tyro.cli(main)
