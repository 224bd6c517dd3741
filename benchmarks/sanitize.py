"""Every kernel of the loss and of the enqueue at small sizes, for compute-sanitizer to look at.

    compute-sanitizer --tool racecheck python -m benchmarks.sanitize --kernel sm80      by hand
    python -m benchmarks.sanitize --kernel sm80 --tool memcheck --events FILE           supervised: runs the above

memcheck finds accesses outside an allocation, racecheck hazards in shared memory. Torch's allocator is told not to
cache, so that an access beyond a tensor is one beyond an allocation.
"""

import argparse
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from sce_fast import native_cuda
from sce_fast.backends import BACKENDS
from sce_fast.benchmarks.gpu_kernels import KERNELS, ROOT, GpuKernel
from sce_fast.benchmarks.gpu_machine import find_tool
from sce_fast.benchmarks.supervise import Events, NotRun, first_lines
from sce_fast.problem import checked_problem
from sce_fast.tools.parity import make_inputs

# Sizes, dtype, settings of sce_loss, and whether the gradient is asked for: every branch of the kernels, with rows and
# candidates that fill no block, and more tiles than a ring of them has places.
CASES: list[tuple[dict[str, int], str, dict[str, Any], bool]] = [
    *[({"n": 70, "k": 523, "d": d}, "bfloat16", {}, True) for d in (16, 64, 128, 192, 256)],
    ({"n": 70, "k": 523, "d": 256}, "float16", {}, True),
    ({"n": 33, "k": 300, "d": 128}, "bfloat16", {"temperature": 0.02, "target_temperature": 0.01}, True),
    ({"n": 33, "k": 300, "d": 128}, "bfloat16", {"coefficient": 1.0}, True),
    ({"n": 33, "k": 300, "d": 128}, "bfloat16", {"positive_target": "zero_logit"}, False),
    (
        {"n": 40, "k": 130, "d": 64, "query_views": 3, "key_views": 2, "m": 90}, "bfloat16",
        {"row_offset": 17, "coefficient": 0.4}, True,
    ),
    (
        {"n": 40, "k": 0, "d": 64, "query_views": 2, "key_views": 2, "m": 90, "shared_batch_keys": True}, "float16",
        {"row_offset": 50}, True,
    ),
    ({"n": 1, "k": 1, "d": 16}, "bfloat16", {}, True),
]  # fmt: skip
FLOAT32_CASES = [({"n": 20, "k": 150, "d": 64}, "float32", {}, True)]
MEMCHECK_SAYS, RACECHECK_SAYS = r"ERROR SUMMARY: (\d+) error", r"RACECHECK SUMMARY: (\d+) hazard"
CANNOT = ("Device not supported", "Unable to find injection library", "no CUDA-capable device")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--kernel", choices=list(KERNELS), required=True)
    options.add_argument("--tool", choices=("memcheck", "racecheck"))
    options.add_argument("--events", type=Path)
    given = options.parse_args()
    kernel = KERNELS[given.kernel]
    if given.events is None:
        run_cases(kernel)
    else:
        Events(given.events).run({f"{given.tool}, {kernel.title}": lambda: sanitized(given.kernel, given.tool)})


def run_cases(kernel: GpuKernel) -> None:
    """Calls the kernel at each case and the enqueue of its language; ends with a line that says how many there were."""
    device = torch.device("cuda", torch.cuda.current_device())
    solve, run = BACKENDS[kernel.backend].solve, 0
    for size, dtype, settings, gradient in CASES + (FLOAT32_CASES if kernel.backend == "triton" else []):
        inputs = make_inputs("random", **size).to(getattr(torch, dtype), device)  # type: ignore[arg-type]
        problem = checked_problem(
            inputs.query.requires_grad_(gradient), inputs.key, inputs.queue, batch_keys=inputs.batch_keys,
            needs_statistics=True, **settings,
        )  # fmt: skip
        reason = BACKENDS[kernel.backend].refuses(problem)
        if reason is not None:
            raise RuntimeError(f"{kernel.title} refuses {size}: {reason}")
        solution = solve(problem)
        if not bool(solution.rows.isfinite().all()):
            raise RuntimeError(f"{kernel.title} at {size}, {dtype}, {settings}: a loss is not finite")
        run += 1
    enqueue = enqueue_of(kernel)
    for stored in (torch.float32, torch.bfloat16):
        keys, cursor = (
            torch.zeros(50, 48, device=device, dtype=stored),
            torch.zeros((), dtype=torch.int64, device=device),
        )
        for count in (20, 45, 130):
            enqueue(keys, cursor, torch.randn(count, 48, device=device), True)
            run += 1
    torch.cuda.synchronize()
    print(f"ran {run} calls of {kernel.title}", flush=True)


def enqueue_of(kernel: GpuKernel) -> Callable[..., None]:
    if kernel.backend == "triton":
        from sce_fast.kernels.enqueue import enqueue

        return enqueue
    return lambda keys, cursor, rows, normalize: native_cuda.enqueue(keys, cursor, rows, normalize=normalize)


def sanitized(name: str, tool: str) -> dict[str, Any]:
    """Runs the cases under the tool; raises with the first thing that it found."""
    kernel = KERNELS[name]
    if (reason := kernel.missing()) is not None:
        raise NotRun(reason)
    program = find_tool("compute-sanitizer")
    if program is None:
        raise NotRun("there is no compute-sanitizer")
    command = [program, "--tool", tool, "--report-api-errors", "no", "--error-exitcode", "9"]
    command += ["--target-processes", "application-only"]
    for part in kernel.sanitized:  # torch's own kernels are not ours to look at, and would take minutes
        command += ["--kernel-name", f"kernel_substring={part}"]
    command += [sys.executable, "-m", "benchmarks.sanitize", "--kernel", name]
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    print(done.stdout, flush=True)
    return verdict(done.stdout, done.returncode, tool)


def verdict(output: str, status: int, tool: str) -> dict[str, Any]:
    """What the tool's words mean: nothing found, something found, or nothing looked at."""
    for words in CANNOT:
        if words in output:
            raise NotRun(f"compute-sanitizer: {words}")
    ran = re.search(r"ran (\d+) calls", output)
    counts = re.findall(MEMCHECK_SAYS if tool == "memcheck" else RACECHECK_SAYS, output)
    found = [line.removeprefix("=========").strip() for line in output.splitlines() if line.startswith("========= ")]
    found = [line for line in found if re.match(r"Invalid|Error|Warning|Misaligned|Race|Program hit", line)]
    if ran is None or not counts:
        raise RuntimeError(f"it did not run to its end (exit status {status}): {first_lines(output[-600:])}")
    if status != 0 or any(int(count) for count in counts):
        raise RuntimeError(f"{counts[-1]} findings (exit status {status}): {first_lines('; '.join(found[:3]))}")
    return {"calls": int(ran[1]), "findings": 0}


if __name__ == "__main__":
    main()
