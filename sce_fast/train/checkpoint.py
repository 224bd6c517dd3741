"""Checkpoints: one folder a step, written atomically, with tensors as safetensors and the rest as JSON (no pickle)."""

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
from safetensors.torch import load_file
from torch import Tensor, nn

from sce_fast.util.files import counted, flush, printable, write_safetensors

TENSORS, STATE = "tensors.safetensors", "state.json"


@dataclass(frozen=True)
class Checkpoint:
    """The content of a checkpoint folder."""

    tensors: dict[str, Tensor]
    state: dict[str, Any]


def save_checkpoint(folder: Path, step: int, tensors: Mapping[str, Tensor], state: dict[str, Any], keep: int) -> Path:
    """Write folder/step_00000042 under another name, flush it to the disk and rename it; keep the newest `keep`.

    If the process is killed at any moment, the older checkpoints stay whole and no half-written folder looks like a
    checkpoint.

    Raises:
        OSError: the disk is full or not writable; the older checkpoints are untouched.
    """
    final = folder / f"step_{step:08d}"
    temporary = folder / f".writing_{step:08d}"
    try:
        remove_unfinished(folder)
        temporary.mkdir(parents=True)
        write_safetensors(temporary / TENSORS, {name: t.detach().cpu().contiguous() for name, t in tensors.items()})
        (temporary / STATE).write_text(json.dumps({**state, "step": step}, indent=1))
        for path in (temporary / TENSORS, temporary / STATE, temporary):
            flush(path)
        _remove(final)  # left by an earlier attempt at this step; if we are killed here, older checkpoints remain
        os.replace(temporary, final)
        flush(folder)
    except OSError as error:
        with suppress(OSError):  # half a checkpoint would only waste space on a full disk
            shutil.rmtree(temporary, ignore_errors=True)
        raise OSError(_what_is_left(folder, step, error)) from error
    for old in checkpoints(folder)[:-keep]:
        _remove(old)
    return final


def remove_unfinished(folder: Path) -> None:
    """Remove checkpoints that a killed process was still writing or removing."""
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
        f"the checkpoint of step {step} could not be written to {printable(folder)}: {error}; {left}; free some "
        "space or make the folder writable, then use --resume"
    )


def _remove(checkpoint: Path) -> None:
    """Rename the folder before deleting it, so that a half-deleted one does not look like a checkpoint."""
    doomed = checkpoint.with_name(f".removing_{checkpoint.name}")
    if checkpoint.exists():
        os.replace(checkpoint, doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def checkpoints(folder: Path) -> list[Path]:
    """Return the finished checkpoints in a folder, oldest first; folders under other names are ignored."""
    return sorted(path for path in folder.glob("step_*") if re.fullmatch(r"step_\d{8,}", path.name))


def load_checkpoint(path: Path) -> Checkpoint:
    """Read one checkpoint onto the CPU.

    Raises:
        FileNotFoundError: the checkpoint or one of its files does not exist.
        ValueError: a file is damaged.
    """
    try:
        tensors = load_file(path / TENSORS)
    except SafetensorError as error:
        raise ValueError(_damaged(path / TENSORS, error)) from error
    return Checkpoint(tensors, read_state(path))


def read_state(path: Path) -> dict[str, Any]:
    """Read the JSON part of one checkpoint.

    Raises:
        FileNotFoundError: the checkpoint or its JSON file does not exist.
        ValueError: the file is damaged.
    """
    try:
        return json.loads((path / STATE).read_text())
    except ValueError as error:
        raise ValueError(_damaged(path / STATE, error)) from error


def _damaged(file: Path, error: Exception) -> str:
    return f"{printable(file)} is damaged: {error}; move its folder away to resume from the checkpoint before it"


def collect(modules: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return all tensors of a run: modules by name, optimizer state as optimizer.ENTRY.MODULE.PARAMETER."""
    tensors = {f"{name}.{key}": t for name, module in modules.items() for key, t in module.state_dict().items()}
    for name, parameter in _parameters(modules):
        for entry, t in optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer.{entry}.{name}"] = t
    return tensors


def restore(checkpoint: Checkpoint, modules: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer) -> None:
    """Put back the tensors that `collect` returned.

    Raises:
        ValueError: a tensor is missing, unknown or of another shape, so the networks are not those of the checkpoint.
    """
    _require_same_tensors(checkpoint, modules)
    for name, module in modules.items():
        module.load_state_dict(_under(checkpoint.tensors, f"{name}."))
    parameters = dict(_parameters(modules))
    for key, t in _under(checkpoint.tensors, "optimizer.").items():
        entry, name = key.split(".", 1)
        parameter = parameters[name]
        like = parameter if t.shape == parameter.shape else t  # moments have the parameter's strides; steps are numbers
        optimizer.state[parameter][entry] = torch.empty_like(like, dtype=t.dtype, device=parameter.device).copy_(t)


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
        "only in the checkpoint": sorted(then.keys() - now.keys()),
        "only in the networks built now": sorted(now.keys() - then.keys()),
        "of another shape": reshaped,
    }
    lines = counted(differences)
    if lines:
        raise ValueError(
            "the checkpoint holds other networks than the installed versions of sce_fast and its packages build from "
            "the config; resume with the versions that began the run, or start in another --out:\n  "
            + "\n  ".join(lines)
        )


def random_state(device: torch.device) -> Tensor:
    """Return torch's random state as (n,) uint8 on the CPU: that of the CPU, followed by that of the GPU."""
    states = [torch.get_rng_state()] + ([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])
    return torch.cat(states)


def restore_random_state(state: Tensor, device: torch.device) -> None:
    """Put back the state that `random_state` returned on the same kind of device."""
    length = len(torch.get_rng_state())
    torch.set_rng_state(state[:length])
    if device.type == "cuda" and len(state) > length:
        torch.cuda.set_rng_state(state[length:], device)


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): t for key, t in tensors.items() if key.startswith(prefix)}
