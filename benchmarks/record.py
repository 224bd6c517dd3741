"""What every committed figure carries with it: machine, versions, commit, command."""

import datetime
import json
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch


def machine() -> dict[str, Any]:
    """Hardware, versions, commit and command line of this process."""
    return {
        "date": datetime.date.today().isoformat(),
        "command": _command(),
        "commit": _commit(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "cpu": _cpu_name(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def write_record(path: Path, record: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n")


def _command() -> str:
    program = Path(sys.argv[0])
    start = f"python -m benchmarks.{program.stem}" if program.parent.name == "benchmarks" else "sce-fast"
    return " ".join([start, *sys.argv[1:]])


def _commit() -> str | None:
    """The checked-out commit, marked where the tree differs from it; None outside a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=10"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor()
    )
