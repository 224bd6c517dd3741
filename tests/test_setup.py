"""What an installation says where it cannot build."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def ask_setup(build, **environment):
    return subprocess.run(
        [sys.executable, "setup.py", "--quiet", "--name"],
        cwd=ROOT,
        env={**os.environ, "SCE_FAST_BUILD": build, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_pure_python_on_request():
    result = ask_setup("none")
    assert result.returncode == 0
    assert "installing without native kernels: SCE_FAST_BUILD=none" in result.stderr


def test_without_a_compiler_auto_goes_on_and_cpu_does_not():
    missing = {"CXX": "no-such-compiler"}
    result = ask_setup("auto", **missing)
    assert result.returncode == 0
    assert "no C++ compiler ('no-such-compiler' is not on the PATH" in result.stderr
    result = ask_setup("cpu", **missing)
    assert result.returncode != 0
    assert "SCE_FAST_BUILD='cpu' cannot be met: no C++ compiler" in result.stderr


@pytest.mark.parametrize(
    ("build", "message"), [("gpu", "expected one of auto, cpu, cuda, none"), ("cuda", "holds no kernels yet")]
)
def test_builds_that_cannot_be_are_refused(build, message):
    result = ask_setup(build)
    assert result.returncode != 0
    assert message in result.stderr
