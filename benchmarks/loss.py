"""Benchmark the loss, forward and backward, against the alternative implementations in peers.py.

sce-fast bench loss                                               one size; python -m benchmarks.loss is the same
sce-fast bench loss --k 4096 65536 1048576 --threads 1            time against K
sce-fast bench loss --n 128 --views 6 --key-views 2               multi-crop: ten terms
"""

import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from sce_fast.benchmarks.machine import machine
from sce_fast.benchmarks.measure import (
    extra_memory,
    free_memory,
    gpu_is_lost,
    graph_seconds,
    host_seconds,
    stage_seconds,
)
from sce_fast.benchmarks.peers import AbsentError, Case, Loss, Peer, peers
from sce_fast.benchmarks.record import write_record
from sce_fast.loss.backends import BACKENDS
from sce_fast.util.dtypes import dtype_name
from sce_fast.util.names import pick
from sce_fast.util.rows import unit_rows
from sce_fast.util.terminal import progress_bar

SHORTEST_TURN = 0.02  # seconds; shorter calls are repeated within a turn
SHARE_OF_FREE_MEMORY = 0.7  # a peer that needs more is not run
GEMM_EDGE = {"cpu": 2048, "cuda": 8192}
LONGEST_GEMM = 1.0  # seconds; the product is smaller on processors without instructions for the dtype
# Peers captured in a CUDA graph. Compiled peers are not: a failed capture may corrupt the allocator's state.
GRAPHED = (*BACKENDS, "official", "attention", "attention-efficient", "attention-cudnn", "flash-attn")
MIB = 2**20


@dataclass(frozen=True)
class Result:
    """The measurement of a peer at one K, or the reason why there is none."""

    k: int
    peer: str
    title: str
    absent: str | None = None
    loss: float | None = None
    forward: float | None = None  # seconds, medians over the turns
    backward: float | None = None
    seconds: float | None = None  # both together
    ratio: float | None = None  # seconds / seconds of the first measured peer, the fastest sce_fast backend
    flops: float | None = None  # effective rate: 4 · rows · K · D per second, query and key rows counted
    share_of_gemm: float | None = None
    extra_bytes: int | None = None
    graph: float | None = None  # GPU seconds, both together, replayed from a CUDA graph
    no_graph: str | None = None  # why there is no graph
    host: float | None = None  # host seconds of a call
    turns: tuple[float, ...] = ()


def main(
    n: int = 256,
    k: tuple[int, ...] = (65536,),
    d: int = 256,
    views: int = 0,
    key_views: int = 0,
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    coefficient: float = 0.5,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    threads: int = 2,
    rounds: int = 7,
    leave_out: tuple[str, ...] = (),
    out: Path | None = None,
    plot: Path | None = None,
) -> list[Result]:
    """Measure loss and gradient of every backend and peer: time, effective FLOP/s, share of the GEMM rate, memory.

    Args:
        n: Number of rows.
        k: One or several queue lengths.
        d: Dimension.
        views: Student views V; 0 for a 2-D query.
        key_views: Teacher views U; 0 for a 2-D key. With both, every pair of different views is a term.
        dtype: Dtype of query, key and queue.
        coefficient: λ; at 1 the InfoNCE kernels of other packages are peers too.
        device: auto uses a GPU if there is one.
        threads: Threads of torch on a CPU.
        rounds: Turns of each peer.
        leave_out: Names of backends and peers to skip, such as official, compile, chunked, attention, flex.
        out: JSON file for the record.
        plot: PNG file for a plot of time against K.
    """
    device_type = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    chosen, kind = peers(getattr(torch, dtype)), getattr(torch, dtype)
    for name in leave_out:
        pick("peer", name, chosen)
    chosen = {name: peer for name, peer in chosen.items() if name not in leave_out}
    threads_before = torch.get_num_threads()
    torch.set_num_threads(threads)
    here = machine()
    results: list[Result] = []
    gemms: dict[int, dict[str, float]] = {}  # by K
    try:
        for size in k:
            case = make_case(n, size, d, views, key_views, kind, coefficient, device_type)
            measured, gemm = measure(case, chosen, rounds, device_type)
            print("\n" + heading(case, device_type, threads, gemm) + "\n" + table(measured))
            results += measured
            gemms[size] = asdict(gemm)
    finally:
        torch.set_num_threads(threads_before)
    if len(k) > 1:
        print("\n" + linearity(results))
    if out is not None:
        settings = {
            "n": n, "k": k, "d": d, "views": views, "key_views": key_views, "dtype": dtype, "coefficient": coefficient,
            "device": device_type, "threads": threads, "rounds": rounds,
        }  # fmt: skip
        lines = [asdict(result) for result in results]
        write_record(out, {"machine": here, "settings": settings, "gemm": gemms, "results": lines})
    if plot is not None:
        draw(results, plot, f"N {n}, D {d}, {dtype}, λ {coefficient:g}, {here['gpu'] or here['cpu']}")
    return results


def make_case(
    n: int, k: int, d: int, views: int, key_views: int, dtype: torch.dtype, coefficient: float, device: str
) -> Case:
    """Return a case with random unit rows, the same on every machine."""
    generator = torch.Generator().manual_seed(0)

    def rows(*shape: int) -> Tensor:
        return unit_rows(torch.randn(*shape, d, generator=generator)).to(device, dtype)

    query, key = (rows(*([count] if count else []), n) for count in (views, key_views))
    case = Case(query, key, rows(k), coefficient=coefficient)
    _ = case.problem  # raises ValueError for wrong sizes
    return case


@dataclass(frozen=True)
class Gemm:
    """A matrix product in the same dtype and the same turns, as the yardstick of the peers."""

    edge: int  # of the three square matrices
    flops: float  # operations per second


def measure(
    case: Case, peers: dict[str, Peer], rounds: int, device: str, on_peer: Callable[[str], None] = lambda peer: None
) -> tuple[list[Result], Gemm]:
    """Return the results in the order of the peers, and the rate of a matrix product.

    `on_peer` is called with a peer's name before each of its turns, so that a supervisor can name a peer that hangs.
    """
    size = len(case.queue)
    results = {name: Result(size, name, peer.title) for name, peer in peers.items()}
    losses: dict[str, Loss] = {}
    steps: dict[str, Callable[[Callable[[], None]], None]] = {}
    with progress_bar(len(peers) + rounds, f"K {size}", unit="turn") as bar:
        for name, peer in peers.items():
            on_peer(name)
            try:
                loss = _prepared(peer, case, device)
                steps[name] = _step(loss, case)
                value = loss(case.query.clone().requires_grad_()).item()  # compiles, allocates, may raise
                stage_seconds(steps[name], device)
                memory = extra_memory(partial(steps[name], lambda: None), device)
                results[name] = replace(results[name], loss=value, extra_bytes=memory)
                losses[name] = loss
            except AbsentError as reason:
                results[name] = replace(results[name], absent=str(reason))
                steps.pop(name, None)
            except Exception as error:  # a failing peer becomes a line of the table
                results[name] = replace(results[name], absent=_in_one_line(error))
                steps.pop(name, None)
                if device == "cuda":
                    if gpu_is_lost():
                        raise
                    torch.cuda.empty_cache()
            bar.update()
        edge = _gemm_edge(case.query.dtype, device)
        first, second, product = (torch.randn(edge, edge, device=device).to(case.query.dtype) for _ in range(3))

        def multiply(mark: Callable[[], None]) -> None:
            mark()
            torch.mm(first, second, out=product)

        turns: dict[str, list[list[float]]] = {name: [] for name in steps}
        gemm_turns: list[float] = []
        for _ in range(rounds):
            for name, step in steps.items():
                on_peer(name)
                turns[name].append(_turn(step, device))
            gemm_turns.append(sum(_turn(multiply, device)))
            bar.update()
    if device == "cuda":
        for name, loss in losses.items():
            on_peer(name)
            results[name] = _with_gpu_times(results[name], loss, case, name in GRAPHED, sum(turns[name][0]))
    gemm = Gemm(edge, 2 * edge**3 / statistics.median(gemm_turns))
    baseline = None
    for name, values in turns.items():
        forward, backward = (statistics.median(column) for column in zip(*values, strict=True))
        seconds = statistics.median(map(sum, values))
        baseline = baseline or seconds  # the first peer is the fastest sce_fast backend
        rate = effective_operations(case) / seconds
        results[name] = replace(
            results[name], forward=forward, backward=backward, seconds=seconds, ratio=seconds / baseline, flops=rate,
            share_of_gemm=rate / gemm.flops, turns=tuple(map(sum, values)),
        )  # fmt: skip
    return list(results.values()), gemm


def effective_operations(case: Case) -> int:
    """Return 4 · rows · K · D, the operations of one pass over the candidates; λ = 1 needs no key rows."""
    rows = case.query[..., 0].numel() + (case.key[..., 0].numel() if case.coefficient < 1 else 0)
    return 4 * rows * case.queue.numel()


def _prepared(peer: Peer, case: Case, device: str) -> Loss:
    needed, free = peer.bytes_needed(case), free_memory() if device == "cpu" else None
    if free is not None and needed > SHARE_OF_FREE_MEMORY * free:
        raise AbsentError(f"not run: needs about {needed / 2**30:.0f} GiB, and {free / 2**30:.0f} GiB are free")
    return peer.prepare(case)


def _step(loss: Loss, case: Case) -> Callable[[Callable[[], None]], None]:
    def step(mark: Callable[[], None]) -> None:
        leaf = case.query.clone().requires_grad_()
        mark()
        value = loss(leaf)
        mark()
        value.backward()

    return step


def _with_gpu_times(result: Result, loss: Loss, case: Case, captured: bool, seconds: float) -> Result:
    """Return the result with the host's time of a call and the GPU's time of a graph's replay."""
    leaf = case.query.clone().requires_grad_()
    calls = int(min(20, max(1, SHORTEST_TURN / seconds)))

    def run() -> None:
        torch.autograd.grad(loss(leaf), leaf)

    result = replace(result, host=host_seconds(run, calls))
    if not captured:
        return replace(result, no_graph="not tried")
    try:
        return replace(result, graph=graph_seconds(run, calls))
    except RuntimeError as error:
        return replace(result, no_graph=_in_one_line(error))


def _turn(step: Callable[[Callable[[], None]], None], device: str) -> list[float]:
    """Return the median seconds of each stage over as many calls as fill the shortest turn."""
    first = stage_seconds(step, device)
    repeats = int(min(100, SHORTEST_TURN / max(sum(first), 1e-7)))
    calls = [first] + [stage_seconds(step, device) for _ in range(repeats)]
    return [statistics.median(column) for column in zip(*calls, strict=True)]


def _gemm_edge(dtype: torch.dtype, device: str) -> int:
    edge = GEMM_EDGE[device]
    if device == "cpu":
        square = torch.randn(256, 256).to(dtype)

        def multiply(mark: Callable[[], None]) -> None:
            mark()
            torch.mm(square, square)

        stage_seconds(multiply, device)  # warms up
        seconds = stage_seconds(multiply, device)[0]
        while edge > 256 and seconds * (edge / 256) ** 3 > LONGEST_GEMM:
            edge //= 2
    return edge


def _in_one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:160]}{'…' if len(text) > 160 else ''}"


def heading(case: Case, device: str, threads: int, gemm: Gemm) -> str:
    problem = case.problem
    views, key_views, terms = len(problem.query), len(problem.key), len(list(problem.terms()))
    where = f"{threads} thread(s)" if device == "cpu" else torch.cuda.get_device_name()
    crops = f", {views} student and {key_views} teacher views ({terms} terms)" if terms > 1 else ""
    dtype = dtype_name(case.query.dtype)
    return (
        f"N {case.query.shape[-2]}, K {len(case.queue)}, D {case.queue.shape[1]}{crops}, {dtype}, "
        f"λ {case.coefficient:g}, {where}; a GEMM of {gemm.edge}³ runs at {gemm.flops / 1e9:.3g} GFLOP/s"
    )


def table(results: list[Result]) -> str:
    """Return a Markdown table of medians, followed by the peers that were not measured and why."""
    on_gpu = any(r.host is not None for r in results)
    more, rule = (" µs in a graph | host µs |", "--:|--:|") if on_gpu else ("", "")
    lines = [
        f"| | forward ms | backward ms | together ms | ÷ sce_fast | GFLOP/s | of GEMM | extra MiB | loss |{more}",
        f"|---|--:|--:|--:|--:|--:|--:|--:|--:|{rule}",
    ]
    for r in results:
        if r.seconds is None:
            continue
        assert None not in (r.forward, r.backward, r.flops, r.share_of_gemm, r.ratio)
        memory = "–" if r.extra_bytes is None else f"{r.extra_bytes / MIB:.1f}"
        lines.append(
            f"| {r.title} | {1e3 * r.forward:.3g} | {1e3 * r.backward:.3g} | {1e3 * r.seconds:.4g} | {r.ratio:.2f} "  # type: ignore[operator]
            f"| {r.flops / 1e9:.3g} | {r.share_of_gemm:.0%} | {memory} | {r.loss:.6f} |"  # type: ignore[operator]
            + (f" {_microseconds(r.graph)} | {_microseconds(r.host)} |" if on_gpu else "")
        )
    lines += [f"{r.title}: {r.absent}" for r in results if r.absent is not None]
    return "\n".join(lines)


def _microseconds(seconds: float | None) -> str:
    return "–" if seconds is None else f"{1e6 * seconds:.1f}"


def linearity(results: list[Result]) -> str:
    """Return the time per candidate at each K; a constant time is linear in K."""
    lines = ["time per candidate, ns (largest / smallest: 1.00 is linear in K)"]
    for title in dict.fromkeys(r.title for r in results if r.seconds is not None):
        each = {r.k: r.seconds / r.k for r in results if r.title == title and r.seconds is not None}
        cells = "  ".join(f"K {k} {1e9 * seconds:.1f}" for k, seconds in each.items())
        lines.append(f"  {title:<26}{max(each.values()) / min(each.values()):.2f}   {cells}")
    return "\n".join(lines)


def draw(results: list[Result], path: Path, title: str) -> None:
    """Plot time against K on logarithmic axes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for name in dict.fromkeys(r.title for r in results if r.seconds is not None):
        points = [(r.k, 1e3 * r.seconds) for r in results if r.title == name and r.seconds is not None]
        width = 2.5 if name.startswith("sce_fast") else 1.2
        axes.plot(*zip(*points, strict=True), marker="o", linewidth=width, label=name)
    axes.set(xscale="log", yscale="log", xlabel="K, queue length", ylabel="forward and backward, ms")
    sizes = sorted({r.k for r in results})
    axes.set_xticks(sizes, [f"{k:,}" for k in sizes], fontsize=8)
    axes.set_xticks([], minor=True)
    axes.set_title(title, fontsize=9)
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    import tyro

    tyro.cli(main)
