"""Builds the native extension; everything else about the package stands in pyproject.toml.

SCE_FAST_BUILD chooses what is compiled:
  auto  (default) the CPU kernels when a C++ compiler and torch are at hand, otherwise nothing, and says so
  cpu   the CPU kernels, or an error
  none  nothing: the package then runs in pure Python
  cuda  the CPU kernels and those of csrc/cuda
"""

import os
import shutil
import sys
from pathlib import Path

from setuptools import setup

CHOICES = ("auto", "cpu", "cuda", "none")
CPU_SOURCES = (
    "csrc/cpu/bindings.cpp",
    "csrc/cpu/color_jitter.cpp",
    "csrc/cpu/exponentials.cpp",
    "csrc/cpu/gaussian_blur.cpp",
    "csrc/cpu/sce_forward.cpp",
    "csrc/cpu/sce_pass.cpp",
    "csrc/cpu/tile.cpp",
)
# No -ffast-math: a NaN stays one. No contraction to fused multiply-adds: pixels are the same on every instruction set.
CPU_FLAGS = ["-O3", "-std=c++20", "-fopenmp", "-ffp-contract=off", "-fvisibility=hidden", "-Wall", "-Wextra"]


def what_is_missing() -> str | None:
    """The reason why no extension can be built here, or None."""
    compiler = os.environ.get("CXX", "c++").split()[0]
    if shutil.which(compiler) is None:
        return f"no C++ compiler ('{compiler}' is not on the PATH; set CXX to name another)"
    try:
        import torch  # noqa: F401  (its headers and its build helper are needed)
    except ImportError:
        return "torch is not installed where the build runs (install torch first and use pip's --no-build-isolation)"
    return None


def extensions(choice: str) -> dict:
    if choice not in CHOICES:
        sys.exit(f"SCE_FAST_BUILD={choice!r}: expected one of {', '.join(CHOICES)}")
    if choice == "cuda" and not any(Path("csrc/cuda").glob("*.cu")):
        sys.exit("SCE_FAST_BUILD='cuda': csrc/cuda holds no kernels yet; use 'cpu' or 'auto'")
    missing = None if choice == "none" else what_is_missing()
    if missing is not None and choice != "auto":
        sys.exit(f"SCE_FAST_BUILD={choice!r} cannot be met: {missing}")
    if choice == "none" or missing is not None:
        print(f"sce_fast: installing without native kernels: {missing or 'SCE_FAST_BUILD=none'}", file=sys.stderr)
        return {}

    import pybind11
    from torch.utils.cpp_extension import BuildExtension, CppExtension

    class OptionalInAuto(BuildExtension):
        """With SCE_FAST_BUILD=auto a failed compilation leaves a pure Python package behind, with a warning."""

        def run(self) -> None:
            try:
                super().run()
            except Exception as error:  # compilers fail in many ways; each ends in the same advice
                if choice != "auto":
                    raise
                print(f"sce_fast: the CPU kernels did not build, going on without: {error}", file=sys.stderr)
                self.extensions = []

    cpu = CppExtension(
        "sce_fast._cpu",
        list(CPU_SOURCES),
        include_dirs=[pybind11.get_include()],
        extra_compile_args=CPU_FLAGS,
        extra_link_args=["-fopenmp"],
    )
    return {"ext_modules": [cpu], "cmdclass": {"build_ext": OptionalInAuto}}


setup(**extensions(os.environ.get("SCE_FAST_BUILD", "auto")))
