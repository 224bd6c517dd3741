"""The build of the package for the GPU of a machine."""

import re

import pytest

from sce_fast.benchmarks.acceptance import build
from sce_fast.benchmarks.acceptance.supervise import NotRun


def test_the_build_takes_the_machine_code_that_the_gpu_runs():
    wanted = ["80", "90", "90a", "100", "120"]
    for capability, expected in [
        ((8, 0), ["80"]), ((8, 9), ["80"]), ((9, 0), ["90", "90a"]), ((10, 3), ["100"]), ((12, 1), ["120"]),
        ((7, 5), []), ((11, 0), []),
    ]:  # fmt: skip
        assert build.architectures(wanted, *capability) == expected


@pytest.mark.slow
def test_without_nvcc_the_build_is_not_run_and_the_rest_can_be(tmp_path, monkeypatch):
    """Without nvcc, missing CUDA kernels are not a failure; with nvcc they are."""
    code = "CUDA.module = None"
    check = re.sub("from sce_fast.native import CPU, CUDA", rf"\g<0>\n{code}", build.CHECK)
    monkeypatch.setattr(build, "CHECK", check)
    monkeypatch.setattr(build, "install", lambda environment: (False, ""))
    monkeypatch.setattr(build, "find_tool", lambda name: None)
    with pytest.raises(NotRun, match="there is no nvcc"):
        build.build(9, 0)
    assert build.check_import() == {"output": "without the CUDA kernels: not built"}
    monkeypatch.setattr(build, "find_tool", lambda name: "/usr/bin/nvcc")
    with pytest.raises(RuntimeError, match="AssertionError: not built"):
        build.check_import()
