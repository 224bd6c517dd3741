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
from sce_fast.loss.problem import checked_problem
from sce_fast.util.dtypes import dtype_name
from sce_fast.util.terminal import progress_bar

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Dtype of the queue, and of query and key in their products with it.
CASES = ((torch.float32, torch.float32), *((queue, rows) for queue in DTYPES[1:] for rows in (torch.float32, queue)))


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

    The errors come from rounding alone and do not depend on the kernel. "queue" rounds the queue, as on a CPU whose
    products are in float32. "queue, rows" also rounds query and key where they are multiplied by the queue, as the
    kernels of a GPU do, and on a CPU products in bfloat16 (AMD with AVX-512, AMX). The time of forward and backward on
    this machine is a share of the time with a float32 queue.

    Args:
        n: Number of rows.
        k: Queue length.
        d: Dimension.
        temperature: τ.
        target_temperature: τ_m.
        rounds: Turns of the timing; 0 for no timing.
        threads: Threads of torch.
        out: JSON file for the record.
    """
    torch.set_num_threads(threads)
    here = machine()
    results: list[dict[str, Any]] = []
    print(f"N {n}, K {k}, D {d}, τ {temperature:g}, τ_m {target_temperature:g}, λ 0.5\n")
    titles = f"{'MB':>7}{'mean loss':>12}{'row of loss':>13}{'gradient':>11}{'time':>8}"
    print(f"{'dtype':<10}{'rounded':<13}{'rows':<11}{titles}")
    for kind in KINDS:
        inputs = make_inputs(kind, n=n, d=d, k=k).to(torch.float32)
        assert inputs.queue is not None
        queues = {dtype: inputs.queue.to(dtype) for dtype in DTYPES}
        temperatures = (temperature, target_temperature)
        exact_rows, exact_gradient = _exact(inputs, torch.float32, torch.float32, *temperatures)
        seconds = _seconds(inputs, queues, rounds) if rounds else {}
        for dtype, products in CASES:
            rows, gradient = _exact(inputs, dtype, products, *temperatures)
            queue = queues[dtype]
            result: dict[str, Any] = {
                "queue": dtype_name(dtype),
                "rounded": "" if dtype == torch.float32 else "queue" if products == torch.float32 else "queue, rows",
                "rows": kind,
                "megabytes": queue.numel() * queue.element_size() / 1e6,
                "mean_loss_error": abs(float(rows.mean() - exact_rows.mean())),
                "row_loss_error": float((rows - exact_rows).abs().max()),
                "gradient_error": float((gradient - exact_gradient).norm() / exact_gradient.norm()),
                "time_ratio": seconds[dtype] / seconds[torch.float32] if rounds else None,
            }
            results.append(result)
            took = f"{result['time_ratio']:.2f}" if rounds else "–"
            print("{queue:<10}{rounded:<13}{rows:<11}{megabytes:>7.1f}{mean_loss_error:>12.1e}{row_loss_error:>13.1e}"
                  "{gradient_error:>11.1e}".format(**result) + f"{took:>8}")  # fmt: skip
    print("mean loss: absolute error; row of loss: largest absolute error; gradient: norm of the error over the norm")
    if out is not None:
        sizes = {"n": n, "k": k, "d": d, "temperature": temperature, "target_temperature": target_temperature}
        write_record(out, {"machine": here, "sizes": sizes, "results": results})


def _exact(
    inputs: Inputs, dtype: torch.dtype, products: torch.dtype, temperature: float, target_temperature: float
) -> tuple[Tensor, Tensor]:
    """Return loss rows (N,) and gradient (N, D) in float64.

    The queue is rounded to `dtype`, and query and key to `products` where they are multiplied by the queue.
    """
    assert inputs.queue is not None
    query, key, queue = inputs.query.double(), inputs.key.double(), inputs.queue.to(dtype).double()
    rows, key_rows = (rows.to(products).double() for rows in (inputs.query, inputs.key))
    problem = checked_problem(query, key, queue, temperature=temperature, target_temperature=target_temperature)
    target = reference.target(key_rows @ queue.T, None, problem)
    loss, own, excess = reference.cross_entropy(query, key, rows @ queue.T, None, target, problem)
    return loss, ((own - target.own_weight)[:, None] * key + excess @ queue) / temperature


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
