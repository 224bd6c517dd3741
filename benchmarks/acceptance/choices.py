"""Which value of each choice of the Hopper kernel is faster on this GPU (the A/B comparisons of sce_fast/loss/cuda.py).

    python -m benchmarks.acceptance.choices --events FILE

run.py starts this module. The report names the default that the measurements choose, and where it stands.
"""

import argparse
import functools
import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from sce_fast.benchmarks.acceptance.gpu_kernels import KERNELS
from sce_fast.benchmarks.acceptance.supervise import Events, Failure, NotRun
from sce_fast.benchmarks.measure import gpu_is_lost, graph_seconds
from sce_fast.loss import cuda
from sce_fast.loss.parity import make_inputs
from sce_fast.loss.problem import Solution, checked_problem

# Field of Tuning → N, K, D of its measurements. Turns have a default for each D.
SHAPES = {
    "turns": [(n, 65536, d) for d in (64, 128, 256) for n in (256, 1024)],
    "uneven": [(256, 65536, 256), (1024, 65536, 256), (4096, 65536, 256), (1024, 65536, 128), (256, 16384, 256)],
    "clusters": [(256, 65536, 256), (1024, 65536, 256), (4096, 65536, 256), (1024, 65536, 128), (256, 16384, 256)],
}
WHERE = {
    "turns": "kHopperConfigs, D {d}",
    "uneven": "kUnevenByDefault",
    "clusters": "kClustersByDefault",
}  # in csrc/cuda/plan.h
ALTERNATIONS = 5
# Both values compute the same sums in different orders.
LARGEST_DIFFERENCE = 1e-3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--events", type=Path, required=True)
    events = Events(parser.parse_args().events)
    events.run(choice_items(), gpu_is_lost)


def choice_items() -> dict[str, Callable[[], Any]]:
    """Return one item for each choice and shape."""
    return {
        f"{name}: N {n}, K {k}, D {d}": functools.partial(compare, name, n, k, d)
        for name, shapes in SHAPES.items()
        for n, k, d in shapes
    }


def compare(name: str, n: int, k: int, d: int) -> dict[str, Any]:
    """Return the GPU seconds of a call with either value of a choice, replayed from graphs in turn.

    Raises NotRun without a Hopper GPU, and Failure if the two values give different losses or gradients.
    """
    if (reason := KERNELS["sm90"].missing()) is not None:
        raise NotRun(reason)
    inputs = make_inputs("random", n=n, k=k, d=d).to(torch.bfloat16, "cuda")
    problem = checked_problem(inputs.query.requires_grad_(), inputs.key, inputs.queue)
    calls = {value: functools.partial(cuda.solve, problem, "sm90", replace(cuda.DEFAULT, **{name: value}))
             for value in (True, False)}  # fmt: skip
    check_agreement(*(call() for call in calls.values()))
    times: dict[bool, list[float]] = {value: [] for value in calls}
    for _ in range(ALTERNATIONS):
        for value, call in calls.items():
            times[value].append(graph_seconds(call, rounds=3))
    return result_of(name, d, times, getattr(cuda.planned(problem, "sm90"), name))


def check_agreement(one: Solution, other: Solution) -> None:
    """Raise Failure if two solutions are not the same up to the order of their sums."""
    for name in ("rows", "gradient"):
        a, b = getattr(one, name).float(), getattr(other, name).float()
        difference = float((a - b).norm() / b.norm())
        if not difference <= LARGEST_DIFFERENCE:  # also NaN
            told = f"the {name} of the two values differ by {difference:.3g} of their norm"
            raise Failure(f"{told}, expected at most {LARGEST_DIFFERENCE:g}")


def result_of(name: str, d: int, times: dict[bool, list[float]], default: bool) -> dict[str, Any]:
    """Return the JSON of one comparison; `times` has the seconds of the value yes (True) and no."""
    yes, no = statistics.median(times[True]), statistics.median(times[False])
    return {"choice": name, "where": WHERE[name].format(d=d), "default": default, "yes": yes, "no": no}


if __name__ == "__main__":
    main()
