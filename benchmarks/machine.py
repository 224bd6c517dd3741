"""Describe the machine, the software and the checkout of a measurement as JSON.

    python -m benchmarks.machine

This module imports nothing but the standard library, so it works before the package is installed and reports a torch
that cannot be imported.
"""

import datetime
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = (
    "torch", "triton", "nvidia-dali-cuda130", "nvidia-dali-cuda120", "av", "flash-attn", "numpy", "pytest", "tyro",
)  # fmt: skip


def machine() -> dict[str, Any]:
    """Return the date, command, commit, hardware and versions of this process.

    `gpu` is None without a usable GPU, and `no_gpu` then gives the reason.
    """
    return {
        "date": datetime.date.today().isoformat(),
        "command": command_line(),
        "commit": output_of(["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=10"]),
        "cpu": cpu_name(),
        "processors": len(os.sched_getaffinity(0)),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "packages": {name: version for name in PACKAGES if (version := version_of(name)) is not None},
        "nvcc": last_line([find_tool("nvcc") or "nvcc", "--version"]),
        "compute_sanitizer": find_tool("compute-sanitizer"),
        "driver": output_of(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]),
        **describe_torch(),
    }


def describe_torch() -> dict[str, Any]:
    """Return torch's version, number of threads and CPU instruction set, and the GPU that it sees."""
    about: dict[str, Any] = {"torch": None, "threads": None, "instructions": None, "gpu": None}
    try:
        import torch
    except Exception as error:  # whatever is wrong with torch belongs into the record
        return {**about, "no_gpu": f"torch cannot be imported: {error}"}
    about |= {"torch": torch.__version__, "threads": torch.get_num_threads()}
    about["instructions"] = torch.backends.cpu.get_cpu_capability()  # such as AVX512
    if not torch.cuda.is_available():
        return {**about, "no_gpu": "torch sees no CUDA device"}
    try:
        properties = torch.cuda.get_device_properties(0)
        torch.zeros(1, device="cuda").add_(1).item()
    except RuntimeError as error:
        return {**about, "no_gpu": f"the CUDA device does not respond: {error}"}
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


def command_line() -> str:
    """Return the command of this process, as one would type it in the checkout."""
    program = Path(sys.argv[0]).resolve()
    if program.suffix == ".py" and program.is_relative_to(ROOT / "benchmarks"):
        module = ".".join(program.relative_to(ROOT).with_suffix("").parts).removesuffix(".__main__")
        return " ".join([f"python -m {module}", *sys.argv[1:]])
    return " ".join(["sce-fast", *sys.argv[1:]])


def cpu_name() -> str:
    """Return the processor's model name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())


def find_tool(name: str) -> str | None:
    """Return the path of a program of the CUDA toolkit, or None.

    The search covers CUDA_HOME and CUDA_PATH, then PATH, then /usr/local/cuda.
    """
    homes = [os.environ[variable] for variable in ("CUDA_HOME", "CUDA_PATH") if variable in os.environ]
    places = [f"{home}/bin" for home in homes] + [os.environ.get("PATH", os.defpath), "/usr/local/cuda/bin"]
    return next(filter(None, (shutil.which(name, path=place) for place in places)), None)


def version_of(package: str) -> str | None:
    """Return the installed version of a package, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def output_of(command: list[str]) -> str | None:
    """Return the output of a command, or None if it fails, prints nothing or takes longer than 20 seconds."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


def last_line(command: list[str]) -> str | None:
    """Return the last line of a command's output, or None."""
    text = output_of(command)
    return text.splitlines()[-1] if text else None


if __name__ == "__main__":
    json.dump(machine(), sys.stdout)
