"""The two native extension modules, or why they are not there: csrc/cpu as `CPU`, csrc/cuda as `CUDA`."""

import importlib
from dataclasses import dataclass
from typing import Any


@dataclass
class Extension:
    """A native extension module."""

    module: Any  # None where it cannot be imported
    missing: str  # why it cannot; empty where it can
    remedy: str


def _load(name: str, remedy: str) -> Extension:
    try:
        return Extension(importlib.import_module(f"sce_fast.{name}"), "", remedy)
    except ImportError as error:  # built without a compiler, or for another torch
        return Extension(None, str(error), remedy)


CPU = _load("_cpu", "install again where torch and a C++ compiler are, with SCE_FAST_BUILD=cpu to see why it fails")
CUDA = _load("_cuda", "install again where nvcc is, with SCE_FAST_BUILD=cuda")
