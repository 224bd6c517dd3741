"""The items of the parts that measure: parity, loss, step, graph, loader and video.

    python -m benchmarks.acceptance.items loss --device cuda --events FILE

run.py starts this module, and restarts it after a crash. With --device cpu it runs at sizes that take seconds.
"""

import argparse
import functools
import os
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch

from sce_fast.benchmarks import loss, step
from sce_fast.benchmarks.acceptance.gpu_kernels import KERNELS, launched_functions
from sce_fast.benchmarks.acceptance.graph import graph_items
from sce_fast.benchmarks.acceptance.loader import loader_items, photographs
from sce_fast.benchmarks.acceptance.supervise import Events, Failure, NotRun, read_lines
from sce_fast.benchmarks.acceptance.videos import video_items
from sce_fast.benchmarks.measure import copy_rate, gpu_is_lost
from sce_fast.benchmarks.peers import peers
from sce_fast.config import LossConfig, ModelConfig
from sce_fast.loss.backends import BACKENDS
from sce_fast.loss.parity import KINDS, Inputs, Kind, MatmulPrecision, compare, float32_precision, make_inputs
from sce_fast.loss.problem import Problem, checked_problem

Items = dict[str, Callable[[], Any]]
Device = Literal["cuda", "cpu"]
ROWS_AT_A_TIME = 512  # of the float64 matrices: 512 × K takes 1 GiB at K 262,144
# Input dtype and torch's float32 matmul precision of each kind of product.
PRODUCTS: dict[str, tuple[torch.dtype, MatmulPrecision]] = {
    "bfloat16": (torch.bfloat16, "highest"),
    "float16": (torch.float16, "highest"),
    "float32": (torch.float32, "highest"),
    "tf32": (torch.float32, "high"),
}
PARITY_SIZES = {
    "cuda": [
        {"n": 1024, "k": 65536, "d": 256},
        {"n": 256, "k": 16384, "d": 128},
        {"n": 77, "k": 4099, "d": 64},
        {"n": 301, "k": 5003, "d": 192, "query_views": 3, "key_views": 2, "m": 700},
        {"n": 256, "k": 8192, "d": 128, "query_views": 6, "key_views": 2},
        {"n": 1, "k": 1, "d": 64},
        {"n": 4096, "k": 65536, "d": 128},
        {"n": 512, "k": 65536, "d": 512},
        {"n": 4096, "k": 262144, "d": 256},
    ],
    "cpu": [{"n": 9, "k": 70, "d": 16}, {"n": 5, "k": 30, "d": 32, "query_views": 3, "key_views": 2, "m": 9}],
}
SETTINGS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.02, "target_temperature": 0.01, "coefficient": 0.4, "positive_target": "zero_logit"},
    {"target_temperature": 0.07, "coefficient": 1.0},
    {"coefficient": 0.0},
]
MANY_PAIRS = 2**26  # N · K from which only the first settings and two kinds of rows are checked
# N, K, D and dtype, the most important first: time may run out before the last.
LOSS_SHAPES = {
    "cuda": [
        (1024, 65536, 256, "bfloat16"),
        (256, 65536, 256, "bfloat16"),
        (4096, 65536, 256, "bfloat16"),
        (512, 65536, 256, "bfloat16"),
        (1024, 65536, 128, "bfloat16"),
        (256, 65536, 128, "bfloat16"),
        (256, 16384, 256, "bfloat16"),
        (1024, 16384, 256, "bfloat16"),
        (1024, 262144, 256, "bfloat16"),
        (4096, 262144, 256, "bfloat16"),
        (256, 262144, 256, "bfloat16"),
        (1024, 65536, 256, "float32"),
        (256, 16384, 128, "bfloat16"),
        (1024, 16384, 128, "bfloat16"),
        (512, 16384, 256, "bfloat16"),
        (512, 262144, 256, "bfloat16"),
        (4096, 16384, 256, "bfloat16"),
        (4096, 65536, 128, "bfloat16"),
        (512, 65536, 128, "bfloat16"),
        (1024, 262144, 128, "bfloat16"),
        (256, 262144, 128, "bfloat16"),
        (512, 16384, 128, "bfloat16"),
        (512, 262144, 128, "bfloat16"),
        (4096, 16384, 128, "bfloat16"),
        (4096, 262144, 128, "bfloat16"),
    ],
    "cpu": [(8, 256, 32, "float32"), (8, 256, 32, "bfloat16")],
}
# Measured only at the first two shapes: peers that compile for half a minute, and slow peers that nobody would use.
SLOW = ("compile", "flex", "reference", "official-float32")
NO_SOFT_TARGETS = ("inf-cl", "liger")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=("parity", "loss", "step", "graph", "loader", "video"))
    parser.add_argument("--events", type=Path, required=True)
    parser.add_argument("--device", choices=("cuda", "cpu"), required=True)
    parser.add_argument("--kernel", default="", help="a kernel of gpu_kernels.py, or a backend on a CPU")
    options = parser.parse_args()
    events = Events(options.events)
    with tempfile.TemporaryDirectory() as folder:
        if options.part == "parity":
            items = parity_items(options.kernel, options.device, events)
        elif options.part == "loss":
            items = loss_items(options.device, events)
        elif options.part == "step":
            items = step_items(options.device, Path(folder))
        elif options.part == "graph":
            items = graph_items(events.progress)
        elif options.part == "video":
            items = video_items(options.device, Path(folder), events)
        else:
            items = loader_items(options.device, Path(folder), events)
        events.run(items, gpu_is_lost)


# ---------------------------------------------------------------------------------------------- parity


def parity_items(name: str, device: str, events: Events) -> Items:
    """Return one item for each size and kind of product."""
    kernel = KERNELS.get(name)
    backend = name if kernel is None else kernel.backend
    check = KernelCheck(name)

    def item(title: str, size: dict[str, int], product: str) -> dict[str, Any]:
        if kernel is not None and (reason := kernel.missing()) is not None:
            raise NotRun(reason)
        return parity(backend, size, product, device, check, functools.partial(events.progress, title))

    cases = {f"{name}: {label(size)}, {p}": (size, p) for size in PARITY_SIZES[device] for p in PRODUCTS}
    return {title: functools.partial(item, title, *case) for title, case in cases.items()}


class KernelCheck:
    """Checks once that a call launches the expected kernel."""

    def __init__(self, name: str) -> None:
        self.kernel = KERNELS.get(name)
        self.launched: list[str] | None = None

    def __call__(self, call: Callable[[], Any]) -> list[str] | None:
        """Return the names of the launched functions, if known; raise NotRun if another kernel ran."""
        if self.kernel is None:
            return None
        if self.launched is None:
            self.launched = launched_functions(call)
        if self.launched and not any(self.kernel.function in name for name in self.launched):
            raise NotRun(f"backend={self.kernel.backend!r} launches {', '.join(self.launched)} here")
        return self.launched


def parity(
    backend: str,
    size: dict[str, int],
    product: str,
    device: str,
    check: KernelCheck,
    on_progress: Callable[[str], None],
) -> dict[str, Any]:
    """Return the largest error, as a share of the allowed error, over kinds of rows and settings."""
    dtype, precision = PRODUCTS[product]
    large = size["n"] * size["k"] >= MANY_PAIRS
    cases = []
    with float32_precision(precision):
        for kind in KINDS[1:] if large else KINDS:
            inputs = inputs_of(kind, **size).to(dtype, device)
            problem = problem_of(backend, inputs)  # NotRun for refused inputs, before the profiler runs the first item
            launched = check(functools.partial(BACKENDS[backend].solve, problem))
            for settings in SETTINGS[:1] if large else SETTINGS:
                on_progress(", ".join([f"{kind} rows", *(f"{k} {v}" for k, v in settings.items())]))
                offset = {"row_offset": 1} if size.get("m", 0) > size["n"] else {}
                result = compare(backend, inputs, rows_at_a_time=ROWS_AT_A_TIME, **{**settings, **offset})
                cases.append({"kind": kind, **settings, "worst": result.worst, "failures": result.failures})
    bad = [case for case in cases if case["failures"]]
    data = {"worst": max(case["worst"] for case in cases), "cases": cases, "functions": launched}
    if bad:
        details = "; ".join(
            f"{c['kind']}: {', '.join(c['failures'])} at {c['worst']:.3g} of the allowed error" for c in bad
        )
        raise Failure(f"{len(bad)} of {len(cases)} cases fail: {details}", data)
    return data


def problem_of(backend: str, inputs: Inputs) -> Problem:
    """Return the problem of these inputs; raise NotRun with the reason if the backend refuses it."""
    query = inputs.query.detach().requires_grad_()
    problem = checked_problem(query, inputs.key, inputs.queue, batch_keys=inputs.batch_keys)
    reason = BACKENDS[backend].refuses(problem)
    if reason is not None:
        raise NotRun(f"the backend refuses these inputs: {reason}")
    return problem


@functools.lru_cache(3)
def inputs_of(kind: Kind, **size: int) -> Inputs:
    """Return the inputs, cached because all products share them and drawing large inputs takes a while."""
    return make_inputs(kind, **size)  # type: ignore[arg-type]  # shared_batch_keys is a bool


def label(size: dict[str, int]) -> str:
    views = f", {size['query_views']} × {size['key_views']} views" if "query_views" in size else ""
    batch = f" and {size['m']} batch keys" if "m" in size else ""
    return f"N {size['n']}, K {size['k']}{batch}, D {size['d']}{views}"


# ---------------------------------------------------------------------------------------------- loss


def loss_items(device: str, events: Events) -> Items:
    """Return one item for each shape.

    If an earlier start crashed or hung at a peer, that peer is left out and its shape is measured again.
    """
    failed = [line for line in read_lines(events.path) if line.get("state") == "failed"]
    culprits = {peer: line["item"] for line in failed if (peer := last_peer(events, line["item"])) is not None}
    items: Items = {}
    for number, (n, k, d, dtype) in enumerate(LOSS_SHAPES[device]):
        name = f"N {n}, K {k}, D {d}, {dtype}"
        left_out = {*NO_SOFT_TARGETS, *culprits, *(SLOW if number >= 2 or device == "cpu" else ())}

        def item(name: str, shape: tuple[int, int, int, str] = (n, k, d, dtype), out: set[str] = left_out) -> Any:
            return measure_shape(name, shape, out, device, events)

        items[name] = functools.partial(item, name)
        if name in culprits.values():
            again = f"{name}, without {', '.join(culprits)}"
            items[again] = functools.partial(item, again)
    return items


def last_peer(events: Events, item: str) -> str | None:
    """Return the last peer that an item reported, or None."""
    peers = [line["at"] for line in read_lines(events.path) if line.get("item") == item and "at" in line]
    return peers[-1] if peers else None


def measure_shape(
    name: str, shape: tuple[int, int, int, str], left_out: set[str], device: str, events: Events
) -> dict[str, Any]:
    """Measure our backends and the peers at one shape, next to the machine's GEMM and copy rates."""
    n, k, d, dtype = shape
    case = loss.make_case(n, k, d, 0, 0, getattr(torch, dtype), 0.5, device)
    chosen = {peer: how for peer, how in peers(case.query.dtype).items() if peer not in left_out}
    on_peer = functools.partial(events.progress, name)
    results, gemm = loss.measure(case, chosen, 5 if device == "cuda" else 2, device, on_peer)
    print(loss.heading(case, device, torch.get_num_threads(), gemm) + "\n" + loss.table(results), flush=True)
    copy = copy_rate(device, 2**30 if device == "cuda" else 2**24)
    return {
        "shape": {"n": n, "k": k, "d": d, "dtype": dtype},
        "operations": loss.effective_operations(case),
        "queue_bytes": case.queue.numel() * case.queue.element_size(),
        "gemm": asdict(gemm),
        "copy": copy,
        "left_out": sorted(left_out - set(NO_SOFT_TARGETS)),
        "results": [asdict(result) for result in results],
    }


# ---------------------------------------------------------------------------------------------- step


def step_items(device: Device, folder: Path) -> Items:
    """Return the training step on synthetic images and on JPEG files."""
    small = dict(
        model=ModelConfig(
            backbone="resnet18", width=8, projector_hidden=(16,), dim=16, predictor_hidden=16, small_input=True
        ),
        loss=LossConfig(queue_size=64, queue_dtype="bfloat16"), batch_size=4, size=32, precision="float32",
        warmup=1, steps=2,
    )  # fmt: skip
    options: dict[str, Any] = {} if device == "cuda" else small
    images, threads = 1024 if device == "cuda" else 8, min(16, len(os.sched_getaffinity(0)))

    def from_files() -> dict[str, Any]:
        return asdict(step.main(**options, device=device, images=photographs(folder, images), threads=threads))

    return {
        "synthetic images": lambda: asdict(step.main(**options, device=device)),
        "JPEG files through the loader": from_files,
    }


if __name__ == "__main__":
    main()
