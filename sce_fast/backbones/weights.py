"""Weights from elsewhere: state dicts of torchvision, timm, pytorchvideo and others, and Lightning checkpoints.

Files are data: torch.load(weights_only=True) reads them, and nothing that a file names is imported or called.
"""

import re
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sce_fast.util.files import counted, printable

HOLDERS = ("state_dict", "model")  # entries under which training programs save a state dict
# Classifiers, which a backbone lacks: of torchvision and timm, of MoCo's encoders, and of pytorchvideo.
CLASSIFIER = re.compile(r"(fc|heads?|head_dist|classifier|last_linear|blocks\.5\.proj)\.")
# Parts of a prefix that mark a copy of the student, or the optimizer's state.
NOT_THE_STUDENT = re.compile(r"momentum|teacher|target|average|(^|[._])ema([._]|$)|_k\.|optimizer")
COUNTER = ".num_batches_tracked"  # old files lack it, and no feature depends on it


def read_weights(path: str | Path, network: nn.Module, *, pattern: str | None = None) -> dict[str, Tensor]:
    """Return the tensors of a file for network.load_state_dict, on the CPU.

    The file is a state dict, alone or in a checkpoint, of torch.save or as safetensors. A classifier is left out. By
    default the backbone is found by its names: the prefix before them may be anything, such as `module.encoder_q.`
    (MoCo) or `trunk.` (Lightning checkpoints of SCE; the released files have no prefix). If several parts of the file
    fit, the student is taken, not its momentum teacher. A network whose other releases have other names translates
    them by its method own_name(name).

    Args:
        path: of the file.
        network: whose parameters and buffers are to be read. It is not changed.
        pattern: regular expression for the prefix. Names that it matches at their start are taken, without the match:
            r"momentum_trunk\\." takes the teacher of an SCE checkpoint.

    Raises:
        FileNotFoundError: the path does not exist.
        ValueError: the file does not hold tensors, its names or shapes are not the network's, or the choice of a part
            or the pattern is not clear. The message lists what is missing, unexpected or of another shape.

    Example:
        >>> network = build_backbone("resnet50")
        >>> network.load_state_dict(read_weights("sce_resnet50.pth", network))
    """
    path, expected = Path(path), network.state_dict()
    tensors = _read_tensors(path)
    if (own_name := getattr(network, "own_name", None)) is not None:
        tensors = {own_name(name): t for name, t in tensors.items()}
    found = _matching(tensors, pattern, path) if pattern is not None else _student(tensors, expected, path)
    found = {name: t for name, t in found.items() if name in expected or not CLASSIFIER.match(name)}
    for name in expected.keys() - found.keys():
        if name.endswith(COUNTER):
            found[name] = expected[name].cpu()
    _require_same(found, expected, f"{printable(path)} does not hold the weights of this {type(network).__name__}")
    return {name: found[name] for name in expected}


def _matching(tensors: Mapping[str, Tensor], pattern: str, path: Path) -> dict[str, Tensor]:
    """Return the tensors whose names begin with a match of the pattern, without it."""
    try:
        matches = {name: re.match(pattern, name) for name in tensors}
    except re.error as error:
        raise ValueError(f"pattern={pattern!r}: expected a regular expression: {error}") from error
    matching = {name: name[match.end() :] for name, match in matches.items() if match}
    found = {end: tensors[name] for name, end in matching.items()}
    if len(found) < len(matching):
        first, *others = [name for name, end in matching.items() if end == list(matching.values())[-1]]
        raise ValueError(f"pattern={pattern!r}: expected one part of {printable(path)}; {first} and {others[0]} match")
    if not found:
        raise ValueError(
            f"pattern={pattern!r}: no name in {printable(path)} begins so:\n  " + counted({"names": list(tensors)})[0]
        )
    return found


def _student(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Return the tensors under the prefix after which all of the network's names follow, or most of them if none has
    all."""
    needed = [name for name in expected if not name.endswith(COUNTER)]
    first = needed[0]
    ends = [name for name in tensors if f".{name}".endswith(f".{first}")]
    prefixes = list(dict.fromkeys(name.removesuffix(first) for name in ends)) or [""]
    present = {prefix: sum(f"{prefix}{name}" in tensors for name in needed) for prefix in prefixes}
    fitting = [prefix for prefix in prefixes if present[prefix] == len(needed)]
    students = [prefix for prefix in fitting if not NOT_THE_STUDENT.search(prefix)]
    if len(fitting) > 1 and len(students) != 1:
        raise ValueError(
            f"{printable(path)} holds several networks that fit, under {', '.join(map(repr, fitting))}; choose one "
            f"with a pattern, such as {re.escape(fitting[0])!r}"
        )
    prefix = (students or fitting or [max(prefixes, key=present.__getitem__)])[0]
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


def _require_same(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], what: str) -> None:
    reshaped = [
        f"{name} {tuple(found[name].shape)} instead of {tuple(expected[name].shape)}"
        for name in expected
        if name in found and found[name].shape != expected[name].shape
    ]
    missing = [name for name in expected if name not in found]
    unexpected = [name for name in found if name not in expected]
    if lines := counted({"missing": missing, "unexpected": unexpected, "of another shape": reshaped}):
        raise ValueError(f"{what}:\n  " + "\n  ".join(lines))


def _read_tensors(path: Path) -> dict[str, Tensor]:
    """Return all tensors of a file by name; those of nested dicts by names joined with dots."""
    if not path.exists():
        raise FileNotFoundError(f"{printable(path)}: no such file of weights")
    if path.is_dir():
        raise ValueError(f"{printable(path)} is a folder; expected a file of weights")
    try:
        content = _read_safetensors(path) if _is_safetensors(path) else _read_pickle(path)
    except OSError:
        raise
    except Exception as error:  # torch.load raises errors of many types for damaged files
        reason = _reason(error)
        raise ValueError(f"{printable(path)} is neither a safetensors file nor one of torch.save: {reason}") from error
    for holder in HOLDERS:
        if isinstance(content, Mapping) and isinstance(content.get(holder), Mapping):
            content = content[holder]
    tensors = dict(_flat(content)) if isinstance(content, Mapping) else {}
    if not tensors:
        raise ValueError(f"{printable(path)} holds no tensors by name; expected a state dict, or a checkpoint with one")
    return tensors


def _flat(values: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    for name, value in values.items():
        if isinstance(value, Tensor):
            yield f"{prefix}{name}", value.detach()
        elif isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")


def _is_safetensors(path: Path) -> bool:
    """Return whether a file begins like safetensors: the length of a JSON object in eight bytes, then the object."""
    with path.open("rb") as file:
        return file.read(9)[8:] == b"{"


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return load_file(path)


def _read_pickle(path: Path) -> Any:
    """Return what torch.load reads; objects of classes that it does not know become empty stand-ins.

    Lightning checkpoints have such objects in their hyperparameters. Their classes are not imported.
    """
    try:
        unknown = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except ValueError:  # a file in the format before PyTorch 1.6, whose classes cannot be listed
        unknown = []
    with torch.serialization.safe_globals([(_StandIn, name) for name in unknown]):
        return torch.load(path, map_location="cpu", weights_only=True)


class _StandIn:
    """Takes the place of a class that torch.load does not know: an object of it is an OrderedDict.

    That is the one type whose items and attributes the restricted unpickler sets, so that it reads on.
    """

    def __new__(cls, *args: Any, **kwargs: Any) -> OrderedDict:  # type: ignore[misc]
        return OrderedDict()


def _reason(error: Exception) -> str:
    """Return what an error says, without torch.load's advice to read the file without weights_only."""
    text = str(error).partition("WeightsUnpickler error:")
    return (text[2] or text[0]).strip().partition("\n")[0] or type(error).__name__
