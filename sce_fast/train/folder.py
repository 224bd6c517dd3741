"""The run folder: config, log, checkpoints, summary. Other files in it are never touched."""

import dataclasses
import fcntl
import json
import os
from pathlib import Path
from typing import Any

import torch

from sce_fast.config import TrainConfig, from_json, to_json
from sce_fast.train.checkpoint import checkpoints, remove_unfinished
from sce_fast.train.log import LOG
from sce_fast.util.files import printable, write_atomically

CONFIG, CHECKPOINTS = "config.json", "checkpoints"
SUMMARY, BAD_FILES, IMAGES, CHANGES = "summary.json", "bad_files.txt", "images.json.gz", "changes.jsonl"
# Settings and sections that a resume may change, since no trained number depends on them. Folders may have moved; the
# images are compared by themselves, and so is the device that the run is on.
FREE_TO_CHANGE = frozenset(
    ("resume", "accept_changed_data", "stretch_schedule", "out", "data", "device", "loader_threads", "log_every",
     "checkpoint_every", "keep_checkpoints", "pictures", "wandb", "evaluation", "cuda_graph")
)  # fmt: skip
LOCK = ".lock"
_locks: dict[tuple[int, int], int] = {}  # device and inode of a lock file → descriptor, open until this process ends


def open_run(config: TrainConfig) -> Path | None:
    """Create the run folder, or check the existing one; return the checkpoint to resume from, or None for a new run.

    A folder in which no step has been logged or saved counts as new.

    Raises:
        ValueError: another process trains in the folder; the folder holds a run and `resume` is off; or it holds a run
            with another config.
    """
    config.out.mkdir(parents=True, exist_ok=True)
    _lock(config.out)
    newest = require_resumable(config)
    if not holds_a_run(config.out):
        (config.out / IMAGES).unlink(missing_ok=True)
        write_config(config)
        return None
    remove_unfinished(config.out / CHECKPOINTS)
    return newest


def require_resumable(config: TrainConfig) -> Path | None:
    """Return the checkpoint from which a config would resume, or None; raise an error if it must not. Write nothing.

    Raises:
        ValueError: the folder is a file, it holds a run and `resume` is off, or it holds a run with another config.
    """
    out = config.out
    if out.exists() and not out.is_dir():
        raise ValueError(f"out={printable(out)} is a file; expected a folder, or a name for a new one")
    if not holds_a_run(out):
        return None
    if not config.resume:
        raise ValueError(f"out={printable(out)} already holds a run; pass --resume to go on, or another --out")
    # Read as a config, so that a setting may have had another name when the run began.
    then = read_config(out)
    if then.epochs != config.epochs and not config.stretch_schedule:
        raise ValueError(
            f"epochs={config.epochs}: the run in {printable(out)} has epochs={then.epochs}, over which its learning "
            "rate and momentum follow their schedules; pass --stretch-schedule to lay the schedules over "
            f"{config.epochs} epochs from here on, or start in another --out"
        )
    differences = _differences(to_json(dataclasses.replace(then, epochs=config.epochs)), to_json(config))
    if differences:
        raise ValueError(
            f"out={printable(out)} holds a run with another config; resume with the same config, or start in "
            "another --out:\n  " + "\n  ".join(differences)
        )
    found = checkpoints(out / CHECKPOINTS)
    return found[-1] if found else None


def write_config(config: TrainConfig) -> None:
    """Write config.json, without the settings that are meant for one resume only."""
    lasting = dataclasses.replace(config, resume=False, accept_changed_data=False, stretch_schedule=False)
    content = json.dumps(to_json(lasting), indent=1) + "\n"
    path = config.out / CONFIG
    if not path.exists() or path.read_text() != content:
        write_atomically(path, content)


def holds_a_run(run: Path) -> bool:
    """Return whether a folder holds a run of which a step has been logged or saved."""
    if not (run / CONFIG).exists():
        return False
    log = run / LOG
    return bool(checkpoints(run / CHECKPOINTS)) or (log.exists() and log.stat().st_size > 0)


def _lock(run: Path) -> None:
    """Keep other processes out of a run folder for as long as this one lives, if the file system has locks."""
    path = run / LOCK
    if path.exists() and _identity(os.stat(path)) in _locks:
        return
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        os.close(descriptor)
        raise ValueError(
            f"out={printable(run)} is in use: another process trains there; wait for its end, or pass another --out"
        ) from None
    except OSError:  # a file system without locks
        os.close(descriptor)
        return
    _locks[_identity(os.fstat(descriptor))] = descriptor


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def read_config(run: str | Path) -> TrainConfig:
    """Read the config of a run folder.

    Raises:
        FileNotFoundError: the folder holds no run.
        ValueError: config.json is damaged, or was written by a version with other settings.
    """
    path = Path(run) / CONFIG
    if not path.exists():
        raise FileNotFoundError(f"{printable(run)} is not a run folder: it has no {CONFIG}")
    try:
        values = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{printable(path)} is damaged: {error}") from error
    try:
        return from_json(values)
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{printable(path)} does not fit this version of sce_fast: {error}; use the version that wrote it"
        ) from error


def write_summary(run: Path, values: dict[str, Any]) -> None:
    """Write summary.json, which marks the run as finished."""
    write_atomically(run / SUMMARY, json.dumps(values, indent=1) + "\n")


def choose_device(name: str) -> torch.device:
    """Return the device for "auto", "cpu" or "cuda"; under torchrun each process of a machine takes a GPU of its own.

    Raises:
        ValueError: cuda is asked for and there is no CUDA device.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("device='cuda': torch sees no CUDA device; use --device cpu, or check the driver")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    torch.cuda.set_device(device)
    return device


def device_name(device: torch.device) -> str:
    """Return "cpu", or the name of the GPU."""
    return str(device) if device.type == "cpu" else torch.cuda.get_device_name(device)


def _differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    lines: list[str] = []
    for name in sorted(old.keys() | new.keys()):
        before, now = old.get(name), new.get(name)
        if f"{prefix}{name}" in FREE_TO_CHANGE:
            continue
        if isinstance(before, dict) and isinstance(now, dict):
            lines += _differences(before, now, f"{prefix}{name}.")
        elif before != now:
            lines.append(f"{prefix}{name}: {before!r} then, {now!r} now")
    return lines
