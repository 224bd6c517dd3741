"""Measure the error and the time of a queue stored in 16 bits.

sce-fast bench queue
"""

import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sce_fast import sce_loss
from sce_fast.benchmarks.machine import machine
from sce_fast.benchmarks.record import write_record
from sce_fast.loss import reference
from sce_fast.loss.parity import KINDS, Inputs, make_inputs
from sce_fast.loss.problem import Solution, checked_problem
from sce_fast.util.terminal import progress_bar

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def main(
    n: int = 256,
    k: int = 65536,
    d: int = 256,
    temperature: float = 0.1,
    target_temperature: float = 0.05,
    rounds: int = 5,
    threads: int = 2,
    out: Path | None = None,
) -> None:
    """Compare loss and gradient of a queue rounded to 16 bits with those of a float32 queue, in float64.

    Query and key stay in float32. Both errors come from rounding the queue alone and do not depend on the kernel. The
    time of forward and backward on this machine is a share of the time with a float32 queue.

    Args:
        n: Number of rows.
        k: Queue length.
        d: Dimension.
        temperature: τ.
        target_temperature: τ_m.
        rounds: Turns of the timing.
        threads: Threads of torch.
        out: JSON file for the record.
    """
    torch.set_num_threads(threads)
    here = machine()
    results: list[dict[str, Any]] = []
    print(f"N {n}, K {k}, D {d}, τ {temperature:g}, τ_m {target_temperature:g}, λ 0.5\n")
    print(f"{'queue':<10}{'rows':<11}{'MB':>7}{'mean loss':>12}{'row of loss':>13}{'gradient':>11}{'time':>8}")
    for kind in KINDS:
        inputs = make_inputs(kind, n=n, d=d, k=k).to(torch.float32)
        assert inputs.queue is not None
        queues = {dtype: inputs.queue.to(dtype) for dtype in DTYPES}
        exact = _exact(inputs, inputs.queue, temperature, target_temperature)
        seconds = _seconds(inputs, queues, rounds)
        for dtype, queue in queues.items():
            rounded = _exact(inputs, queue, temperature, target_temperature)
            result: dict[str, Any] = {
                "queue": str(dtype).removeprefix("torch."),
                "rows": kind,
                "megabytes": queue.numel() * queue.element_size() / 1e6,
                "mean_loss_error": abs(float(rounded.rows.mean() - exact.rows.mean())),
                "row_loss_error": float((rounded.rows - exact.rows).abs().max()),
                "gradient_error": _relative_error(rounded.gradient, exact.gradient),
                "time_ratio": seconds[dtype] / seconds[torch.float32],
            }
            results.append(result)
            print("{queue:<10}{rows:<11}{megabytes:>7.1f}{mean_loss_error:>12.1e}{row_loss_error:>13.1e}"
                  "{gradient_error:>11.1e}{time_ratio:>8.2f}".format(**result))  # fmt: skip
    print("mean loss: absolute error; row of loss: largest absolute error; gradient: norm of the error over the norm")
    if out is not None:
        sizes = {"n": n, "k": k, "d": d, "temperature": temperature, "target_temperature": target_temperature}
        write_record(out, {"machine": here, "sizes": sizes, "results": results})


def _exact(inputs: Inputs, queue: Tensor, temperature: float, target_temperature: float) -> Solution:
    problem = checked_problem(
        inputs.query.double().requires_grad_(),
        inputs.key.double(),
        queue.double(),
        temperature=temperature,
        target_temperature=target_temperature,
    )
    return reference.solve(problem)


def _relative_error(values: Tensor | None, exact: Tensor | None) -> float:
    assert values is not None
    assert exact is not None
    return float((values - exact).norm() / exact.norm())


def _seconds(inputs: Inputs, queues: dict[torch.dtype, Tensor], rounds: int) -> dict[torch.dtype, float]:
    """Return the seconds of forward and backward: medians over alternating turns."""
    seconds: dict[torch.dtype, list[float]] = {dtype: [] for dtype in queues}
    with progress_bar(rounds, "Measuring", unit="round") as bar:
        for _ in range(rounds):
            for dtype, queue in queues.items():
                leaf = inputs.query.clone().requires_grad_()
                start = time.perf_counter()
                sce_loss(leaf, inputs.key, queue).backward()
                seconds[dtype].append(time.perf_counter() - start)
            bar.update()
    return {dtype: statistics.median(values) for dtype, values in seconds.items()}
