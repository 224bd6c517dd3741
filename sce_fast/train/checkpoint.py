"""Checkpoints: tensors as safetensors, the rest as JSON, one folder a step, never half written; no code is loaded."""

import json
import os
import re
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sce_fast.util.files import counted, flush, printable

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
    try:
        remove_unfinished(folder)
        temporary.mkdir(parents=True)
        save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, temporary / TENSORS)
        (temporary / STATE).write_text(json.dumps({**state, "step": step}, indent=1))
        for path in (temporary / TENSORS, temporary / STATE, temporary):
            flush(path)
        _remove(final)  # of an earlier try at this step; there are older ones should this be the moment of a kill
        os.replace(temporary, final)
        flush(folder)
    except (OSError, SafetensorError) as error:
        with suppress(OSError):  # half a checkpoint would only take the room that is wanting
            shutil.rmtree(temporary, ignore_errors=True)
        raise OSError(_what_is_left(folder, step, error)) from error
    for old in checkpoints(folder)[:-keep]:
        _remove(old)
    return final


def remove_unfinished(folder: Path) -> None:
    """Removes what a killed process was still writing, or removing."""
    for pattern in (".writing_*", ".removing_*"):
        for path in folder.glob(pattern):
            shutil.rmtree(path, ignore_errors=True)


def _what_is_left(folder: Path, step: int, error: Exception) -> str:
    try:
        whole = checkpoints(folder)
    except OSError:
        whole = []
    left = f"the last whole checkpoint is {whole[-1].name}" if whole else "there is no earlier checkpoint"
    return (
        f"the checkpoint of step {step} could not be written to {printable(folder)}: {error}; {left}; make room or "
        "mend the folder, then go on with --resume"
    )


def _remove(checkpoint: Path) -> None:
    """Takes the name away first: half a checkpoint must not look like one."""
    doomed = checkpoint.with_name(f".removing_{checkpoint.name}")
    if checkpoint.exists():
        os.replace(checkpoint, doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def checkpoints(folder: Path) -> list[Path]:
    """The finished checkpoints in a folder, oldest first; what a user has put beside them under other names is none."""
    return sorted(path for path in folder.glob("step_*") if re.fullmatch(r"step_\d{8,}", path.name))


def load_checkpoint(path: Path) -> Checkpoint:
    """Reads one checkpoint onto the CPU.

    Raises:
        FileNotFoundError: it is not there or lacks a file.
        ValueError: a file is damaged.
    """
    try:
        tensors = load_file(path / TENSORS)
    except SafetensorError as error:
        raise ValueError(_damaged(path / TENSORS, error)) from error
    return Checkpoint(tensors, read_state(path))


def read_state(path: Path) -> dict[str, Any]:
    """What one checkpoint holds beside its tensors.

    Raises:
        FileNotFoundError: it is not there or lacks a file.
        ValueError: the file is damaged.
    """
    try:
        return json.loads((path / STATE).read_text())
    except ValueError as error:
        raise ValueError(_damaged(path / STATE, error)) from error


def _damaged(file: Path, error: Exception) -> str:
    return f"{printable(file)} is damaged: {error}; move its folder away to go on from the checkpoint before it"


def collect(modules: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """All tensors of a run: modules under their names, the optimizer's state under optimizer.ENTRY.MODULE.PARAMETER."""
    tensors = {f"{name}.{key}": t for name, module in modules.items() for key, t in module.state_dict().items()}
    for name, parameter in _parameters(modules):
        for entry, t in optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer.{entry}.{name}"] = t
    return tensors


def restore(checkpoint: Checkpoint, modules: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer) -> None:
    """Puts back what `collect` gave.

    Raises:
        ValueError: a tensor is missing, unknown or of another shape: the networks are built in another way than then.
    """
    _require_same_tensors(checkpoint, modules)
    for name, module in modules.items():
        module.load_state_dict(_under(checkpoint.tensors, f"{name}."))
    parameters = dict(_parameters(modules))
    for key, t in _under(checkpoint.tensors, "optimizer.").items():
        entry, name = key.split(".", 1)
        parameter = parameters[name]
        optimizer.state[parameter][entry] = torch.zeros_like(parameter).copy_(t)  # strided as the parameter


def _parameters(modules: Mapping[str, nn.Module]) -> list[tuple[str, nn.Parameter]]:
    return [(f"{name}.{key}", p) for name, module in modules.items() for key, p in module.named_parameters()]


def _require_same_tensors(checkpoint: Checkpoint, modules: Mapping[str, nn.Module]) -> None:
    now = {f"{name}.{key}": t for name, module in modules.items() for key, t in module.state_dict().items()}
    then = {key: t for key, t in checkpoint.tensors.items() if key.split(".", 1)[0] in modules}
    reshaped = [
        f"{key} {tuple(then[key].shape)} then, {tuple(now[key].shape)} now"
        for key in sorted(now.keys() & then.keys())
        if now[key].shape != then[key].shape
    ]
    differences = {
        "in the checkpoint alone": sorted(then.keys() - now.keys()),
        "in today's networks alone": sorted(now.keys() - then.keys()),
        "of another shape": reshaped,
    }
    lines = counted(differences)
    if lines:
        raise ValueError(
            "the checkpoint is of other networks than this version of the code and its packages build from the "
            "config; resume with those that began the run, or start in another --out:\n  " + "\n  ".join(lines)
        )


def random_state(device: torch.device) -> Tensor:
    """(n,) uint8 on the CPU: torch's random numbers on the CPU, and behind them those of a GPU."""
    states = [torch.get_rng_state()] + ([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])
    return torch.cat(states)


def restore_random_state(state: Tensor, device: torch.device) -> None:
    """Puts back what `random_state` gave on the same kind of device."""
    length = len(torch.get_rng_state())
    torch.set_rng_state(state[:length])
    if device.type == "cuda" and len(state) > length:
        torch.cuda.set_rng_state(state[length:], device)


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): t for key, t in tensors.items() if key.startswith(prefix)}
