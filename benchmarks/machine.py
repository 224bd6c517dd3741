"""What machine this is, as JSON: GPU, driver, versions, commit. Needs nothing but Python, and tells what is missing."""

import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("torch", "triton", "nvidia-dali-cuda130", "nvidia-dali-cuda120", "flash-attn", "numpy", "pytest", "tyro")


def machine() -> dict[str, Any]:
    about: dict[str, Any] = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processors": len(os.sched_getaffinity(0)),
        "packages": {name: version for name in PACKAGES if (version := version_of(name)) is not None},
        "nvcc": last_line([find_tool("nvcc") or "nvcc", "--version"]),
        "compute_sanitizer": find_tool("compute-sanitizer"),
        "commit": said(["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=10"]),
        "driver": said(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]),
        "gpu": None,
    }
    try:
        import torch
    except Exception as error:  # a broken torch is what this run has to tell
        return {**about, "no_gpu": f"torch cannot be imported: {error}"}
    if not torch.cuda.is_available():
        return {**about, "no_gpu": "torch sees no CUDA device"}
    try:
        properties = torch.cuda.get_device_properties(0)
        torch.zeros(1, device="cuda").add_(1).item()
    except RuntimeError as error:
        return {**about, "no_gpu": f"the CUDA device does not answer: {error}"}
    return {
        **about,
        "gpu": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "gpus": torch.cuda.device_count(),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }


def find_tool(name: str) -> str | None:
    """A program of the CUDA toolkit: in CUDA_HOME or CUDA_PATH, on the PATH, or where the toolkit is usually put."""
    homes = [os.environ[variable] for variable in ("CUDA_HOME", "CUDA_PATH") if variable in os.environ]
    places = [f"{home}/bin" for home in homes] + [os.environ.get("PATH", os.defpath), "/usr/local/cuda/bin"]
    return next(filter(None, (shutil.which(name, path=place) for place in places)), None)


def version_of(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def said(command: list[str]) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


def last_line(command: list[str]) -> str | None:
    text = said(command)
    return text.splitlines()[-1] if text else None


if __name__ == "__main__":
    json.dump(machine(), sys.stdout)
