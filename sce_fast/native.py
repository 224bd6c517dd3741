"""The two native extension modules: `CPU` from csrc/cpu and `CUDA` from csrc/cuda. Either may be missing."""

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# What pip is told to install from a clone. Looked up at once: torch.compile traces refusals, but no access to files.
CLONE = "--editable ." if (Path(__file__).parents[1] / "setup.py").is_file() else "."


@dataclass
class Extension:
    """A native extension module, or the reason why it is missing."""

    kind: str  # CPU or CUDA
    module: Any = None
    error: str = ""  # why a module that was built cannot be loaded

    @property
    def missing(self) -> str:
        """Return why there is no module, or nothing if there is one."""
        if self.module is not None:
            return ""
        return f"built but cannot be loaded ({self.error})" if self.error else "not built"

    @property
    def refusal(self) -> str:
        """Say why the kernels cannot be used, and what to do."""
        return f"the {self.kind} kernels are {self.missing}; {self.remedy}"

    @property
    def remedy(self) -> str:
        """Return how to build the kernels."""
        build, needed = self.kind.lower(), "a C++ compiler" if self.kind == "CPU" else "a C++ compiler and nvcc"
        return (
            f"with {needed}, install again from a clone: SCE_FAST_BUILD={build} pip install --force-reinstall "
            f"--no-deps {CLONE}"
        )


def _load(kind: str) -> Extension:
    name = f"sce_fast._{kind.lower()}"
    try:
        return Extension(kind, importlib.import_module(name))
    except ModuleNotFoundError:
        return Extension(kind)
    except ImportError as error:  # such as a library that this machine lacks
        return Extension(kind, error=str(error))


CPU, CUDA = _load("CPU"), _load("CUDA")
