"""The loss, forward and backward, against what one would write otherwise.

    sce-fast bench loss

Peers: the official formulation (MoCo-style eager), torch.compile of it, and one flash-attention call over
[q / τ; k / τ_m] with the candidates as keys and values, followed by the same epilogue as ours.
"""

import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from sce_fast import sce_loss
from sce_fast.benchmarks.record import machine, write_record
from sce_fast.log import progress_bar
from sce_fast.rows import unit_rows

TAU, TAU_M, COEFFICIENT = 0.1, 0.05, 0.5
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def official(query: Tensor, key: Tensor, queue: Tensor) -> Tensor:
    """As the authors' code computes it: the own key in column 0, a logit of 0 for it in the teacher's softmax."""
    query_logits = torch.cat([(query * key).sum(1, keepdim=True), query @ queue.T], dim=1) / TAU
    key_logits = torch.cat([torch.zeros(len(key), 1), key @ queue.T], dim=1) / TAU_M
    one_hot = torch.nn.functional.one_hot(torch.zeros(len(key), dtype=torch.int64), 1 + len(queue))
    target = COEFFICIENT * one_hot + (1 - COEFFICIENT) * key_logits.softmax(1)
    target = torch.nn.functional.normalize(target, p=1, dim=1)
    return -(target * query_logits.log_softmax(1)).sum(1).mean()


class _Attention(torch.autograd.Function):
    """Attention gives log-sums and weighted means of the candidates, and with them the gradient in closed form."""

    @staticmethod
    def forward(ctx, query: Tensor, key: Tensor, queue: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        rows, candidates = torch.cat([query / TAU, key / TAU_M])[None, None], queue[None, None]
        outputs, log_sums = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            rows, candidates, candidates, scale=1.0
        )
        (student, teacher), log_sum = outputs[0, 0].chunk(2), log_sums.flatten()[: len(query)]
        own = (query * key).sum(1) / TAU
        log_partition = torch.logaddexp(log_sum, own)
        own_probability = (own - log_partition).exp()
        expected = (query * teacher).sum(1) / TAU
        gradient = (1 - own_probability)[:, None] * student - (1 - COEFFICIENT) * teacher
        ctx.save_for_backward((gradient + (own_probability - COEFFICIENT)[:, None] * key) / (TAU * len(query)))
        return (log_partition - COEFFICIENT * own - (1 - COEFFICIENT) * expected).mean()

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[no-untyped-def]
        return ctx.saved_tensors[0] * grad, None, None


def ours(query: Tensor, key: Tensor, queue: Tensor) -> Tensor:
    return sce_loss(query, key, queue, temperature=TAU, target_temperature=TAU_M, coefficient=COEFFICIENT)


def main(
    n: int = 256,
    k: int = 65536,
    d: int = 256,
    rounds: int = 7,
    threads: int = 2,
    compiled: bool = True,
    out: Path | None = None,
) -> dict[str, float]:
    """Seconds of forward and backward on a CPU in float32, in alternating turns of one process; medians.

    Args:
        n: Rows.
        k: Queue length.
        d: Dimension.
        rounds: Turns of each peer.
        threads: Of torch.
        compiled: Also torch.compile of the official formulation (half a minute to compile).
        out: JSON file for the record.
    """
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    query, key, queue = (unit_rows(torch.randn(count, d)) for count in (n, n, k))
    peers: dict[str, Loss] = {"sce_fast": ours, "MoCo-style eager": official, "flash attention": _Attention.apply}
    if compiled:
        peers["torch.compile of eager"] = torch.compile(official)
    losses = {name: loss(query, key, queue).item() for name, loss in peers.items()}
    square = torch.randn(2048, 2048)
    seconds: dict[str, list[float]] = {name: [] for name in [*peers, "GEMM 2048³"]}
    with progress_bar(rounds, "Measuring", unit="round") as bar:
        for _ in range(rounds):
            for name, loss in peers.items():
                seconds[name].append(_seconds(lambda loss=loss: _step(loss, query, key, queue)))
            seconds["GEMM 2048³"].append(_seconds(lambda: square @ square))
            bar.update()
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    rate, gemm_rate = 8 * n * k * d / medians["sce_fast"], 2 * 2048**3 / medians["GEMM 2048³"]
    ratios = {name: medians[name] / medians["sce_fast"] for name in peers}
    print(f"\nN {n}, K {k}, D {d}, float32, {threads} thread(s): forward and backward")
    print(f"{'':<26}{'ms':>9}{'sce_fast is':>13}{'loss':>12}")
    for name in peers:
        print(f"{name:<26}{1e3 * medians[name]:>9.1f}{ratios[name]:>12.2f}×{losses[name]:>12.6f}")
    print(
        f"sce_fast reaches {rate / 1e9:.0f} GFLOP/s (8·N·K·D operations), {rate / gemm_rate:.0%} of a 2048³ GEMM here"
    )
    if out is not None:
        sizes = {"n": n, "k": k, "d": d, "threads": threads}
        write_record(out, {"machine": machine(), "sizes": sizes, "seconds": seconds, "ratios": ratios,
                           "share_of_gemm_rate": rate / gemm_rate})  # fmt: skip
    return ratios


def _step(loss: Loss, query: Tensor, key: Tensor, queue: Tensor) -> None:
    leaf = query.clone().requires_grad_()
    loss(leaf, key, queue).backward()


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start
