"""The two native extension modules: `CPU` from csrc/cpu and `CUDA` from csrc/cuda. Either may be missing."""

import importlib
from dataclasses import dataclass
from typing import Any


@dataclass
class Extension:
    """A native extension module, or the reason why it is missing."""

    module: Any  # None if it cannot be imported
    missing: str  # the import error; empty if there is a module
    remedy: str


def _load(name: str, remedy: str) -> Extension:
    try:
        return Extension(importlib.import_module(f"sce_fast.{name}"), "", remedy)
    except ImportError as error:  # not built, or built for another torch
        return Extension(None, str(error), remedy)


CPU = _load("_cpu", "install again where torch and a C++ compiler are, with SCE_FAST_BUILD=cpu to see why it fails")
CUDA = _load("_cuda", "install again where nvcc is, with SCE_FAST_BUILD=cuda")
