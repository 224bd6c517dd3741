"""Checkpoints: tensors as safetensors, the rest as JSON, one folder a step, never half written; no code is loaded."""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sce_fast.files import flush

TENSORS, STATE = "tensors.safetensors", "state.json"


@dataclass(frozen=True)
class Checkpoint:
    """What a folder holds."""

    tensors: dict[str, Tensor]
    state: dict[str, Any]


def save_checkpoint(folder: Path, step: int, tensors: Mapping[str, Tensor], state: dict[str, Any], keep: int) -> Path:
    """Writes folder/step_00000042 under another name, flushes it to the disk and renames it; keeps the newest `keep`.

    A process killed at any moment leaves the older checkpoints whole and no folder that looks like a checkpoint
    and is none.

    Raises:
        OSError: the disk is full or not writable; the older checkpoints are untouched.
    """
    final = folder / f"step_{step:08d}"
    temporary = folder / f".writing_{step:08d}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, temporary / TENSORS)
    (temporary / STATE).write_text(json.dumps({**state, "step": step}, indent=1))
    for path in (temporary / TENSORS, temporary / STATE, temporary):
        flush(path)
    _remove(final)  # of an earlier try at this step; there are older ones should this be the moment of a kill
    os.replace(temporary, final)
    flush(folder)
    for old in checkpoints(folder)[:-keep]:
        _remove(old)
    return final


def _remove(checkpoint: Path) -> None:
    """Takes the name away first: half a checkpoint must not look like one."""
    doomed = checkpoint.with_name(f".removing_{checkpoint.name}")
    if checkpoint.exists():
        os.replace(checkpoint, doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def checkpoints(folder: Path) -> list[Path]:
    """The finished checkpoints in a folder, oldest first."""
    return sorted(folder.glob("step_*"))


def load_checkpoint(path: Path) -> Checkpoint:
    """Reads one checkpoint onto the CPU.

    Raises:
        FileNotFoundError: it is not there or lacks a file.
    """
    return Checkpoint(load_file(path / TENSORS), json.loads((path / STATE).read_text()))


def collect(modules: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """All tensors of a run: modules under their names, the optimizer's state under optimizer.PARAMETER.ENTRY."""
    tensors = {f"{name}.{key}": t for name, module in modules.items() for key, t in module.state_dict().items()}
    for parameter, entries in optimizer.state_dict()["state"].items():
        for key, t in entries.items():
            if isinstance(t, Tensor):
                tensors[f"optimizer.{parameter}.{key}"] = t
    tensors["random.cpu"] = torch.get_rng_state()
    return tensors


def restore(checkpoint: Checkpoint, modules: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer) -> None:
    """Puts back what `collect` gave.

    Raises:
        RuntimeError: a tensor is missing, unknown or of another shape.
    """
    for name, module in modules.items():
        module.load_state_dict(_under(checkpoint.tensors, f"{name}."))
    entries: dict[int, dict[str, Tensor]] = {}
    for key, t in _under(checkpoint.tensors, "optimizer.").items():
        parameter, entry = key.split(".", 1)
        entries.setdefault(int(parameter), {})[entry] = t
    optimizer.load_state_dict({**optimizer.state_dict(), "state": entries})
    torch.set_rng_state(checkpoint.tensors["random.cpu"])


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): t for key, t in tensors.items() if key.startswith(prefix)}
