"""Run every kernel of the loss and of the enqueue at small sizes under compute-sanitizer.

    compute-sanitizer --tool racecheck python -m benchmarks.acceptance.sanitize --kernel sm80      by hand
    python -m benchmarks.acceptance.sanitize --kernel sm80 --tool memcheck --events FILE           supervised

memcheck finds accesses outside an allocation, racecheck finds hazards in shared memory. The supervised form turns off
the cache of torch's allocator, so that an access beyond a tensor is also an access beyond an allocation. Every case
runs twice. Planned for this GPU it has many splits; planned for one multiprocessor, each block refills its ring of
tiles.
"""

import argparse
import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from sce_fast.benchmarks.acceptance.gpu_kernels import KERNELS, ROOT, GpuKernel
from sce_fast.benchmarks.acceptance.supervise import Events, NotRun, shortened
from sce_fast.benchmarks.machine import find_tool
from sce_fast.kernels import solve as triton
from sce_fast.loss import cuda as native_cuda
from sce_fast.loss.backends import BACKENDS
from sce_fast.loss.parity import make_inputs
from sce_fast.loss.problem import Problem, checked_problem

Case = tuple[dict[str, int], str, dict[str, Any], bool]
# Sizes, dtype, settings of sce_loss, and whether a gradient is needed: every branch of the kernels, with rows and
# candidates that do not fill a block. Planned for one multiprocessor, the first six cases fill each block's ring of
# tiles more than twice, and all cases but the last more than once.
CASES: list[Case] = [
    *[({"n": 70, "k": 1700, "d": d}, "bfloat16", {}, True) for d in (16, 64, 128)],
    *[({"n": 70, "k": 1100, "d": d}, "bfloat16", {}, True) for d in (192, 256)],
    ({"n": 70, "k": 1100, "d": 256}, "float16", {}, True),
    ({"n": 33, "k": 1100, "d": 128}, "bfloat16", {"temperature": 0.02, "target_temperature": 0.01}, True),
    ({"n": 33, "k": 1100, "d": 128}, "bfloat16", {"coefficient": 1.0}, True),
    ({"n": 33, "k": 1100, "d": 128}, "bfloat16", {"positive_target": "zero_logit"}, False),
    (
        {"n": 40, "k": 900, "d": 64, "query_views": 3, "key_views": 2, "m": 910}, "bfloat16",
        {"row_offset": 817, "coefficient": 0.4}, True,
    ),
    (
        {"n": 40, "k": 0, "d": 64, "query_views": 2, "key_views": 2, "m": 910, "shared_batch_keys": True}, "float16",
        {"row_offset": 850}, True,
    ),
    ({"n": 1, "k": 1, "d": 16}, "bfloat16", {}, True),
]  # fmt: skip
FLOAT32_CASES: list[Case] = [({"n": 20, "k": 150, "d": 64}, "float32", {}, True)]
PROGRESS = "at: "  # prefix of a line that names the current case
SUMMARY = {"memcheck": r"ERROR SUMMARY: (\d+) error", "racecheck": r"RACECHECK SUMMARY: (\d+) hazard"}
UNSUPPORTED = ("Device not supported", "Unable to find injection library", "no CUDA-capable device")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kernel", choices=list(KERNELS), required=True)
    parser.add_argument("--tool", choices=list(SUMMARY), default="memcheck")
    parser.add_argument("--events", type=Path, help="run under --tool and report to this file")
    options = parser.parse_args()
    kernel = KERNELS[options.kernel]
    if options.events is None:
        run_cases(kernel)
        return
    events, title = Events(options.events), f"{options.tool}, {kernel.title}"
    events.run({title: lambda: run_sanitizer(options.kernel, options.tool, partial(events.progress, title))})


def run_cases(kernel: GpuKernel) -> None:
    """Call the kernel at each case and the enqueue of its language, and print the number of calls."""
    print(f"{PROGRESS}the first use of the GPU", flush=True)
    device = torch.device("cuda", torch.cuda.current_device())
    calls = 0
    plans: dict[str, Callable[[], AbstractContextManager[None]]] = {
        "planned for this GPU": contextlib.nullcontext,
        "planned for one multiprocessor": one_multiprocessor,
    }
    for words, planned in plans.items():
        with planned():
            for case in cases_of(kernel):
                print(f"{PROGRESS}{case}, {words}", flush=True)
                run_case(kernel, case, device)
                calls += 1
    for call in (*enqueues(kernel, device), *products(kernel, device), *choices(kernel, device)):
        call()
        calls += 1
    torch.cuda.synchronize()
    print(f"ran {calls} calls of {kernel.title}", flush=True)


def cases_of(kernel: GpuKernel) -> list[Case]:
    return CASES + (FLOAT32_CASES if kernel.backend == "triton" else [])


@contextlib.contextmanager
def one_multiprocessor() -> Iterator[None]:
    """Plan launches as if the GPU had one multiprocessor, so that each block refills its ring of tiles repeatedly.

    Planned for all multiprocessors of a large GPU, so few candidates give each block only one or two tiles.
    """
    limits, gpu = native_cuda._limits, triton._gpu
    native_cuda._limits = lambda device: (1, *limits(device)[1:])  # type: ignore[assignment]
    triton._gpu = lambda device: replace(gpu(device), processors=1)  # type: ignore[assignment]
    try:
        yield
    finally:
        native_cuda._limits, triton._gpu = limits, gpu


def problem_of(case: Case, device: torch.device) -> Problem:
    size, dtype, settings, gradient = case
    inputs = make_inputs("random", **size).to(getattr(torch, dtype), device)  # type: ignore[arg-type]
    return checked_problem(
        inputs.query.requires_grad_(gradient), inputs.key, inputs.queue, batch_keys=inputs.batch_keys,
        needs_statistics=True, **settings,
    )  # fmt: skip


def run_case(kernel: GpuKernel, case: Case, device: torch.device) -> None:
    problem, backend = problem_of(case, device), BACKENDS[kernel.backend]
    reason = backend.refuses(problem)
    if reason is not None:
        raise RuntimeError(f"{kernel.title} refuses {case}: {reason}")
    if not bool(backend.solve(problem).rows.isfinite().all()):
        raise RuntimeError(f"{kernel.title} at {case}: the loss is not finite")


def enqueues(kernel: GpuKernel, device: torch.device) -> Iterator[Callable[[], None]]:
    """Yield writes to rings of both kinds of dtype, without and with a wrap, and of more rows than the ring holds."""
    enqueue = BACKENDS[kernel.backend].enqueue
    for stored in (torch.float32, torch.bfloat16):
        keys = torch.zeros(50, 48, device=device, dtype=stored)
        cursor = torch.zeros((), dtype=torch.int64, device=device)
        for count in (20, 45, 130):
            yield partial(enqueue, keys, cursor, torch.randn(count, 48, device=device), True)


def products(kernel: GpuKernel, device: torch.device) -> Iterator[Callable[[], object]]:
    """Yield the two products of the Hopper kernel at every width that it is compiled for; nothing for other kernels."""
    for dim in (64, 128, 192, 256) if kernel.function == "sm90_forward_pass" else ():
        tile = native_cuda.tile_of_sm90(dim)
        rows, candidates, weights = (
            torch.rand(*shape, device=device) for shape in ((64, dim), (tile - 3, dim), (64, tile))
        )
        yield partial(native_cuda.tile_products, rows.bfloat16(), candidates.bfloat16(), weights.bfloat16())


def choices(kernel: GpuKernel, device: torch.device) -> Iterator[Callable[[], object]]:
    """Yield a call with each choice of the Hopper kernel that is not the default; nothing for other kernels."""
    if kernel.function != "sm90_forward_pass":
        return
    problem = problem_of(({"n": 70, "k": 1100, "d": 64}, "bfloat16", {}, True), device)
    for name, value in asdict(native_cuda.planned(problem, "sm90")).items():
        yield partial(native_cuda.solve, problem, "sm90", native_cuda.Tuning(**{name: not value}))


def run_sanitizer(name: str, tool: str, on_progress: Callable[[str], None]) -> dict[str, Any]:
    """Run the cases under the tool; raise RuntimeError with its first findings."""
    kernel = KERNELS[name]
    if (reason := kernel.missing()) is not None:
        raise NotRun(reason)
    program = find_tool("compute-sanitizer")
    if program is None:
        raise NotRun("compute-sanitizer was not found; it comes with the CUDA toolkit")
    command = [program, "--tool", tool, "--report-api-errors", "no", "--error-exitcode", "9"]
    command += ["--target-processes", "application-only"]
    for part in kernel.sanitized:  # checking torch's own kernels would take minutes
        command += ["--kernel-name", f"kernel_substring={part}"]
    command += [sys.executable, "-m", "benchmarks.acceptance.sanitize", "--kernel", name]
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    lines = []
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            print(line, end="", flush=True)
            if line.startswith(PROGRESS):
                on_progress(line.removeprefix(PROGRESS).strip())
    return verdict("".join(lines), process.returncode, tool)


def verdict(output: str, status: int, tool: str) -> dict[str, Any]:
    """Return the number of calls if the tool found nothing; raise RuntimeError with findings, NotRun if unsupported."""
    for words in UNSUPPORTED:
        if words in output:
            raise NotRun(f"compute-sanitizer: {words}")
    ran = re.search(r"ran (\d+) calls", output)
    counts = re.findall(SUMMARY[tool], output)
    found = [line.removeprefix("=========").strip() for line in output.splitlines() if line.startswith("========= ")]
    found = [line for line in found if re.match(r"Invalid|Error|Warning|Misaligned|Race|Program hit", line)]
    if ran is None or not counts:
        raise RuntimeError(f"it did not finish (exit status {status}): {shortened(output[-600:])}")
    if status != 0 or any(int(count) for count in counts):
        raise RuntimeError(f"{counts[-1]} findings (exit status {status}): {shortened('; '.join(found[:3]))}")
    return {"calls": int(ran[1]), "findings": 0}


if __name__ == "__main__":
    main()
