"""The parts of the acceptance run that measure: parity, loss, step and loader, as items of a supervised process.

    python -m benchmarks.acceptance.work loss --device cuda --events FILE

acceptance.py starts it, and again after a crash; with --device cpu the same at sizes that take seconds.
"""

import argparse
import functools
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from sce_fast.benchmarks import loss, step
from sce_fast.benchmarks.acceptance.gpu_kernels import KERNELS, functions_run
from sce_fast.benchmarks.acceptance.loader import loader_items
from sce_fast.benchmarks.acceptance.supervise import Events, Failure, NotRun, read_lines
from sce_fast.benchmarks.measure import context_is_spoilt, copy_rate
from sce_fast.benchmarks.peers import peers
from sce_fast.config import LossConfig, ModelConfig
from sce_fast.loss.backends import BACKENDS
from sce_fast.loss.parity import Inputs, compare, float32_precision, make_inputs
from sce_fast.loss.problem import Problem, checked_problem

Items = dict[str, Callable[[], Any]]
ROWS_AT_A_TIME = 512  # of float64's N × K matrices: 1 GiB each at K 262,144
# What is multiplied, and torch's float32 matmul precision for it.
PRODUCTS = {
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
MANY_PAIRS = 2**26  # N · K from which the first settings and two kinds of rows have to do
# N, K, D and dtype, the most important first: the run may have to stop before the last.
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
# At the first two shapes alone: half a minute of compiling each, and what takes long and is nobody's choice.
SLOW = ("compile", "flex", "reference", "official-float32")
NO_SOFT_TARGETS = ("inf-cl", "liger")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("part", choices=("parity", "loss", "step", "loader"))
    options.add_argument("--events", type=Path, required=True)
    options.add_argument("--device", choices=("cuda", "cpu"), required=True)
    options.add_argument("--kernel", default="", help="of gpu_kernels.py, or a backend on a CPU")
    given = options.parse_args()
    events = Events(given.events)
    with tempfile.TemporaryDirectory() as folder:
        if given.part == "parity":
            items = parity_items(given.kernel, given.device, events)
        elif given.part == "loss":
            items = loss_items(given.device, events)
        elif given.part == "step":
            items = step_items(given.device, Path(folder))
        else:
            items = loader_items(given.device, Path(folder), events)
        events.run(items, context_is_spoilt)


# ---------------------------------------------------------------------------------------------- parity


def parity_items(name: str, device: str, events: Events) -> Items:
    """One item for each size and kind of product."""
    kernel = KERNELS.get(name)
    backend = name if kernel is None else kernel.backend
    first = Checked(name)

    def item(title: str, size: dict[str, int], product: str) -> dict[str, Any]:
        if kernel is not None and (reason := kernel.missing()) is not None:
            raise NotRun(reason)
        return parity(backend, size, product, device, first, functools.partial(events.at, title))

    cases = {f"{name}: {label(size)}, {p}": (size, p) for size in PARITY_SIZES[device] for p in PRODUCTS}
    return {title: functools.partial(item, title, *case) for title, case in cases.items()}


class Checked:
    """Looks once whether the kernel that is meant is the one that runs."""

    def __init__(self, name: str) -> None:
        self.kernel = KERNELS.get(name)
        self.seen: list[str] | None = None

    def __call__(self, call: Callable[[], Any]) -> list[str] | None:
        if self.kernel is not None and self.seen is None:
            self.seen = functions_run(call)
        if self.seen and not any(self.kernel.function in name for name in self.seen):  # type: ignore[union-attr]
            raise NotRun(f"backend={self.kernel.backend!r} runs {', '.join(self.seen)} here")  # type: ignore[union-attr]
        return self.seen


def parity(
    backend: str, size: dict[str, int], product: str, device: str, checked: Checked, tell: Callable[[str], None]
) -> dict[str, Any]:
    """The worst error as a share of what is allowed, over kinds of rows and settings."""
    dtype, precision = PRODUCTS[product]
    large = size["n"] * size["k"] >= MANY_PAIRS
    cases = []
    with float32_precision(precision):  # type: ignore[arg-type]
        for kind in ("clustered", "converged") if large else ("random", "clustered", "converged"):
            inputs = rows_of(kind, **size).to(dtype, device)
            problem = served(backend, inputs)  # of every item: the profiler looks at the first that is served alone
            seen = checked(functools.partial(BACKENDS[backend].solve, problem))
            for settings in SETTINGS[:1] if large else SETTINGS:
                tell(f"{kind} rows{', ' if settings else ''}{', '.join(f'{k} {v}' for k, v in settings.items())}")
                offset = {"row_offset": 1} if size.get("m", 0) > size["n"] else {}
                result = compare(backend, inputs, rows_at_a_time=ROWS_AT_A_TIME, **settings, **offset)
                cases.append({"kind": kind, **settings, "worst": result.worst, "failures": result.failures})
    bad = [case for case in cases if case["failures"]]
    data = {"worst": max(case["worst"] for case in cases), "cases": cases, "functions": seen}
    if bad:
        told = "; ".join(f"{c['kind']}: {', '.join(c['failures'])} at {c['worst']:.3g} of the allowed" for c in bad)
        raise Failure(f"{len(bad)} of {len(cases)} cases fail: {told}", data)
    return data


def served(backend: str, inputs: Inputs) -> Problem:
    """The problem of these inputs; NotRun with the backend's reason where it refuses them."""
    query = inputs.query.detach().requires_grad_()
    problem = checked_problem(query, inputs.key, inputs.queue, batch_keys=inputs.batch_keys)
    reason = BACKENDS[backend].refuses(problem)
    if reason is not None:
        raise NotRun(f"it does not serve them: {reason}")
    return problem


@functools.lru_cache(3)
def rows_of(kind: str, **size: int) -> Inputs:
    """The same for every product: they take a while to draw at large sizes."""
    return make_inputs(kind, **size)  # type: ignore[arg-type]


def label(size: dict[str, int]) -> str:
    views = f", {size['query_views']} × {size['key_views']} views" if "query_views" in size else ""
    batch = f" and {size['m']} batch keys" if "m" in size else ""
    return f"N {size['n']}, K {size['k']}{batch}, D {size['d']}{views}"


# ---------------------------------------------------------------------------------------------- loss


def loss_items(device: str, events: Events) -> Items:
    """One item for each shape; without a peer at which an earlier start crashed or hung, whose shape is taken again."""
    failed = [line for line in read_lines(events.path) if line.get("state") == "failed"]
    culprits = {place: line["item"] for line in failed if (place := last_place(events, line["item"])) is not None}
    items: Items = {}
    for number, (n, k, d, dtype) in enumerate(LOSS_SHAPES[device]):
        name = f"N {n}, K {k}, D {d}, {dtype}"
        left_out = {*NO_SOFT_TARGETS, *culprits, *(SLOW if number >= 2 or device == "cpu" else ())}

        def item(name: str, shape: tuple[int, int, int, str] = (n, k, d, dtype), out: set[str] = left_out) -> Any:
            return measured(name, shape, out, device, events)

        items[name] = functools.partial(item, name)
        if name in culprits.values():
            again = f"{name}, without {', '.join(culprits)}"
            items[again] = functools.partial(item, again)
    return items


def last_place(events: Events, item: str) -> str | None:
    places = [line["at"] for line in read_lines(events.path) if line.get("item") == item and "at" in line]
    return places[-1] if places else None


def measured(
    name: str, shape: tuple[int, int, int, str], left_out: set[str], device: str, events: Events
) -> dict[str, Any]:
    """Our backends and the peers at one shape, with the machine's own rates in the same turns."""
    n, k, d, dtype = shape
    case = loss.make_case(n, k, d, 0, 0, getattr(torch, dtype), 0.5, device)
    chosen = {peer: how for peer, how in peers(case.query.dtype).items() if peer not in left_out}
    tell = functools.partial(events.at, name)
    results, gemm = loss.measure(case, chosen, 5 if device == "cuda" else 2, device, tell)
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


def step_items(device: str, folder: Path) -> Items:
    small = dict(
        model=ModelConfig(
            backbone="resnet18", width=8, projector_hidden=(16,), dim=16, predictor_hidden=16, small_input=True
        ),
        loss=LossConfig(queue_size=64, queue_dtype="bfloat16"), batch_size=4, size=32, precision="float32",
        warmup=1, steps=2,
    )  # fmt: skip
    options: dict[str, Any] = {} if device == "cuda" else small
    pictures = 1024 if device == "cuda" else 8

    def from_files() -> dict[str, Any]:
        from sce_fast.benchmarks.acceptance.loader import photographs

        return asdict(step.main(**options, device=device, images=photographs(folder, pictures), threads=_threads()))

    return {
        "synthetic images": lambda: asdict(step.main(**options, device=device)),
        "JPEG files through the loader": from_files,
    }


def _threads() -> int:
    import os

    return min(16, len(os.sched_getaffinity(0)))


if __name__ == "__main__":
    main()
