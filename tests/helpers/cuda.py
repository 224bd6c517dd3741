"""The CUDA kernels in tests: emulated on a CPU as the backend "emulated", and on a GPU."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch

from cuda_emulator import emulated
from sce_fast.loss.backends import BACKENDS, Backend
from sce_fast.loss.parity import Inputs, Parity, compare
from sce_fast.loss.problem import Problem, Solution, checked_problem

HALVES = [torch.bfloat16, torch.float16]
KERNEL = ["sm80"]  # the forward pass that a test emulates; set by `emulated_backend` in tests/loss/conftest.py
GPU_BACKENDS = ["cuda", "cuda_sm80"]  # two kernels on a Hopper GPU, one elsewhere

both_kernels = pytest.mark.parametrize("emulated_backend", ["sm80", "sm90"], indirect=True)


def gpu_test(function: Any) -> Any:
    skip = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
    return pytest.mark.gpu(skip(function))


def use(seed: int = 0, splits: int = 0, *, kernel: str | None = None, **options: Any) -> None:
    """Make the emulator with these settings the backend "emulated"."""
    solve = emulated.solver(seed, splits, kernel=kernel or KERNEL[0], **options)
    BACKENDS["emulated"] = Backend("emulated", emulated.refuses, solve, automatic=False)


def emulate(
    inputs: Inputs, *, seed: int = 0, splits: int = 0, kernel: str | None = None, gradient: bool = True,
    statistics: bool = True, **options: Any,
) -> Solution:  # fmt: skip
    """Return the solution of the emulated kernels."""
    solve = emulated.solver(seed, splits, kernel=kernel or KERNEL[0])
    return solve(problem_of(inputs, gradient, statistics, **options))


def problem_of(inputs: Inputs, gradient: bool = True, statistics: bool = True, **options: Any) -> Problem:
    return checked_problem(
        inputs.query.detach().requires_grad_(gradient), inputs.key, inputs.queue, batch_keys=inputs.batch_keys,
        needs_statistics=statistics, **options,
    )  # fmt: skip


def assert_parity(inputs: Inputs, backend: str = "emulated", **options: Any) -> None:
    parity = compare(backend, inputs, needs_statistics=True, **options)
    assert parity.holds, (parity.failures, parity)


def assert_found(message: str | None, run: Callable[[], Parity]) -> None:
    """Assert that a mistake ends a run with an error of the emulator, or with None for a message in wrong numbers."""
    if message is None:
        parity = run()
        assert not parity.holds, parity
    else:
        with pytest.raises(emulated.EmulationError, match=f"(?s){message}"):
            run()


def assert_same_bits(one: Solution, other: Solution) -> None:
    for field in dataclasses.fields(one):
        a, b = getattr(one, field.name), getattr(other, field.name)
        assert (a is None) == (b is None), field.name
        if a is not None:
            assert torch.equal(a.nan_to_num(nan=-7.0), b.nan_to_num(nan=-7.0)), field.name
