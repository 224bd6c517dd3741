"""The kernels under compute-sanitizer: its cases and its verdict."""

import importlib.util
from types import SimpleNamespace

import pytest
import torch

from sce_fast.benchmarks.acceptance import gpu_kernels, sanitize
from sce_fast.benchmarks.acceptance.supervise import NotRun
from sce_fast.loss import cuda as native_cuda
from sce_fast.loss.backends import BACKENDS
from sce_fast.native import CUDA

CLEAN = "ran 18 calls of CUDA sm_80\n========= ERROR SUMMARY: 0 errors\n"
OUT_OF_BOUNDS = """========= COMPUTE-SANITIZER
========= Invalid __global__ read of size 16 bytes
=========     at sce_fast::sm80_forward_pass+0x120
ran 18 calls of CUDA sm_80
========= ERROR SUMMARY: 2 errors
"""
RACE = """========= Error: Race reported between Write access at a and Read access at b [64 hazards]
ran 18 calls of CUDA sm_80
========= RACECHECK SUMMARY: 1 hazard displayed (1 error, 0 warnings)
"""


def test_what_compute_sanitizer_says_is_understood():
    assert sanitize.verdict(CLEAN, 0, "memcheck") == {"calls": 18, "findings": 0}
    clean = CLEAN.replace("ERROR SUMMARY: 0 errors", "RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)")
    assert sanitize.verdict(clean, 0, "racecheck") == {"calls": 18, "findings": 0}
    with pytest.raises(RuntimeError, match=r"2 findings \(exit status 9\): Invalid __global__ read of size 16"):
        sanitize.verdict(OUT_OF_BOUNDS, 9, "memcheck")
    with pytest.raises(RuntimeError, match=r"1 findings .*Race reported between Write access"):
        sanitize.verdict(RACE, 9, "racecheck")
    with pytest.raises(RuntimeError, match="findings"):
        sanitize.verdict(CLEAN, 9, "memcheck")  # a finding that is missing from the summary
    with pytest.raises(NotRun, match="Device not supported"):
        sanitize.verdict("========= Error: Device not supported\n", 1, "memcheck")
    with pytest.raises(RuntimeError, match=r"did not finish \(exit status 1\): .*not built"):
        sanitize.verdict("Traceback: not built", 1, "memcheck")


def test_the_sanitizer_tells_how_far_it_has_come(tmp_path, monkeypatch):
    """Each case is a sign of life, so a hanging case is named and slow cases do not count as hung."""
    program = tmp_path / "compute-sanitizer"
    cases = [f"{sanitize.PROGRESS}{case}" for case in ("the first use of the GPU", "case 1", "case 2")]
    lines = [*cases, "nothing of this", *CLEAN.splitlines()]
    program.write_text("#!/bin/sh\n" + "".join(f"echo '{line}'\n" for line in lines))
    program.chmod(0o755)
    monkeypatch.setattr(sanitize, "find_tool", lambda name: str(program))
    monkeypatch.setattr(gpu_kernels.GpuKernel, "missing", lambda kernel: None)
    places = []
    assert sanitize.run_sanitizer("sm80", "memcheck", places.append) == {"calls": 18, "findings": 0}
    assert places == ["the first use of the GPU", "case 1", "case 2"]


class OnlyPlanned:
    """The emulated extension module, which plans calls and keeps their plans but does not run them."""

    def __init__(self, module):
        self.module, self.calls = module, []

    def __getattr__(self, name):
        return getattr(self.module, name)

    def plan(self, *arguments):
        self.calls.append(self.module.plan(*arguments))
        return SimpleNamespace(workspace_bytes=0)

    def solve(self, *arguments):
        pass


@pytest.mark.slow
@pytest.mark.parametrize("kernel", ["sm80", "sm90"])
def test_the_sanitizers_cases_fill_the_ring_of_the_cuda_kernels_anew(monkeypatch, kernel):
    """On an H100; planned for all its multiprocessors, each block would have only one tile."""
    from cuda_emulator import emulated

    module = OnlyPlanned(emulated.load_module())
    monkeypatch.setattr(CUDA, "module", module)
    monkeypatch.setattr(native_cuda, "_limits", lambda device: (132, 227 << 10, 90))
    monkeypatch.setattr(native_cuda, "_where", lambda device: (0, 0))

    def rings(case):
        """Yield how often each pass of the case fills the ring of each block."""
        size, problem = case[0], sanitize.problem_of(case, torch.device("cpu"))
        native_cuda.solve(problem, kernel)
        call, own = module.calls[-1], size.get("key_views") and not size.get("shared_batch_keys")
        assert call.kernel == kernel
        shared = [size["k"], 0 if own else size.get("m", 0)]
        for cut, candidates in ((call.shared, shared), (call.per_view, [size.get("m", 0)] if own else [])):
            tiles = sum(-(-count // cut["tile"]) for count in candidates)
            if tiles:
                yield tiles // cut["splits"] / cut["stages"]

    with sanitize.one_multiprocessor():
        fewest = [min(rings(case)) for case in sanitize.CASES[:-1]]
    assert min(fewest) > 1, fewest
    assert min(fewest[:6]) > 2  # every place of the ring is released twice
    assert native_cuda._limits(None) == (132, 227 << 10, 90)
    assert max(ring for case in sanitize.CASES[:6] for ring in rings(case)) <= 1


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
@pytest.mark.parametrize("capability", [(8, 0), (9, 0), (10, 0)])
def test_the_sanitizers_cases_fill_the_pipeline_of_the_triton_kernel_anew(monkeypatch, capability):
    """Checks the launches that it would choose: copies run ahead of the loop by as many tiles as there are stages."""
    from sce_fast.kernels import plan
    from sce_fast.kernels import solve as triton_solve

    class Launched(Exception):
        pass

    def stop(**sizes):
        launch = plan.plan_forward_pass(**sizes)
        tiles = sum(-(-count // launch.block_candidates) for count in sizes["candidates"])
        raise Launched(tiles // launch.splits, launch.num_stages)

    monkeypatch.setattr(triton_solve, "plan_forward_pass", stop)
    shared_memory = plan.shared_memory(capability)
    monkeypatch.setattr(triton_solve, "_gpu", lambda device: plan.Gpu(capability, shared_memory, 132))
    with sanitize.one_multiprocessor():
        for case in sanitize.cases_of(gpu_kernels.KERNELS["triton"]):
            if case[0]["k"] == 1:
                continue
            with pytest.raises(Launched) as launched:
                triton_solve._solve(sanitize.problem_of(case, torch.device("cpu")))
            tiles, stages = launched.value.args
            assert tiles > 2 * stages, case


def test_the_sanitizer_looks_at_the_products_of_the_hopper_kernel_alone(monkeypatch):
    shapes = []
    monkeypatch.setattr(native_cuda, "tile_of_sm90", lambda dim: 80)
    monkeypatch.setattr(native_cuda, "tile_products", lambda *tensors: shapes.append([tuple(t.shape) for t in tensors]))
    for call in sanitize.products(gpu_kernels.KERNELS["sm90"], torch.device("cpu")):
        call()
    assert shapes == [[(64, dim), (77, dim), (64, 80)] for dim in (64, 128, 192, 256)]
    assert not list(sanitize.products(gpu_kernels.KERNELS["sm80"], torch.device("cpu")))


def test_the_sanitizers_cases_are_served_by_every_kernel():
    """Checks sizes and dtypes; on the CPU the reference computes the cases."""
    for case in sanitize.CASES:
        problem = sanitize.problem_of(case, torch.device("cpu"))
        assert native_cuda.refuses_inputs(problem) is None
        assert BACKENDS["reference"].solve(problem).rows.isfinite().all()


def test_the_sanitizer_looks_at_each_choice_of_the_hopper_kernel_that_is_not_the_default(monkeypatch):
    tuning, tried = native_cuda.Tuning, []
    monkeypatch.setattr(native_cuda, "planned", lambda problem, kernel: tuning(turns=True, uneven=True, clusters=False))
    monkeypatch.setattr(native_cuda, "solve", lambda problem, kernel, tuning: tried.append((kernel, tuning)))
    for name in ("sm80", "sm90"):
        for call in sanitize.choices(gpu_kernels.KERNELS[name], torch.device("cpu")):
            call()
    assert tried == [("sm90", tuning(turns=False)), ("sm90", tuning(uneven=False)), ("sm90", tuning(clusters=True))]
