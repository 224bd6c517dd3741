"""The run folder: config, log, checkpoints, summary. What a user has made there is never overwritten."""

import fcntl
import gzip
import json
import os
import zlib
from pathlib import Path
from typing import Any

import torch

from sce_fast.config import TrainConfig, from_json, renamed, to_json
from sce_fast.data.index import ImageIndex
from sce_fast.train.checkpoint import checkpoints, read_state, remove_unfinished
from sce_fast.train.log import LOG
from sce_fast.util.files import counted, printable, write_atomically

CONFIG, CHECKPOINTS = "config.json", "checkpoints"
SUMMARY, BAD_FILES, IMAGES = "summary.json", "bad_files.txt", "images.json.gz"
# What may differ between a run and its continuation: none of it changes a trained number. Folders may have moved; that
# the images are the same is checked by their list.
FREE_TO_CHANGE = frozenset(
    ("resume", "out", "data", "loader_threads", "checkpoint_every", "keep_checkpoints", "pictures", "evaluation.train",
     "evaluation.test")
)  # fmt: skip
LOCK = ".lock"
_held: dict[tuple[int, int], int] = {}  # device and inode of a lock file → descriptor, open to this process's end


def open_run(config: TrainConfig) -> Path | None:
    """Makes the run folder; returns the checkpoint to go on from, or None at the start.

    A folder in which no step has been logged or saved is begun anew.

    Raises:
        ValueError: another process trains in the folder, it holds a run and `resume` was not asked for, or it holds a
            run of another config.
    """
    written = config.out / CONFIG
    config.out.mkdir(parents=True, exist_ok=True)
    _hold(config.out)
    if not has_begun(config.out):
        (config.out / IMAGES).unlink(missing_ok=True)
        write_atomically(written, json.dumps(to_json(config), indent=1) + "\n")
        return None
    if not config.resume:
        raise ValueError(f"out={printable(config.out)} already holds a run; pass --resume to go on, or another --out")
    differences = _differences(renamed(_read_json(written)), to_json(config))
    if differences:
        raise ValueError(
            f"out={printable(config.out)} was begun with another config; resume with the same, or start in another "
            "--out:\n  " + "\n  ".join(differences)
        )
    remove_unfinished(config.out / CHECKPOINTS)
    found = checkpoints(config.out / CHECKPOINTS)
    return found[-1] if found else None


def has_begun(run: Path) -> bool:
    """Whether a folder holds a run with anything to lose."""
    if not (run / CONFIG).exists():
        return False
    log = run / LOG
    return bool(checkpoints(run / CHECKPOINTS)) or (log.exists() and log.stat().st_size > 0)


def _hold(run: Path) -> None:
    """Keeps other processes out of a run folder for as long as this one lives, where the file system has locks."""
    path = run / LOCK
    if path.exists() and _identity(os.stat(path)) in _held:
        return
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        os.close(descriptor)
        raise ValueError(
            f"out={printable(run)} is in use: another process trains there; wait for its end, or give another --out"
        ) from None
    except OSError:  # a file system without locks
        os.close(descriptor)
        return
    _held[_identity(os.fstat(descriptor))] = descriptor


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def as_begun(config: TrainConfig, index: ImageIndex) -> ImageIndex:
    """The list of images that a run to be resumed began with: what it had replaced and is gone now is bad in it."""
    found = checkpoints(config.out / CHECKPOINTS)
    if not (config.resume and found and (config.out / IMAGES).exists()):
        return index
    state = read_state(found[-1])
    if state["data_fingerprint"] == index.fingerprint:
        return index
    begun, now = _read_images(config.out), set(index.listing.names)
    gone = begun.keys() - now
    if not gone or now - begun.keys() or gone - state["bad_files"].keys():
        return index  # another one, which keep_image_list will say
    return index.listed_as(list(begun))


def _read_images(run: Path) -> dict[str, list[int]]:
    path = run / IMAGES
    try:
        return dict(json.loads(gzip.decompress(path.read_bytes())))
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise ValueError(f"{printable(path)} cannot be read: {error}; without it the list is not compared") from error


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{printable(path)} is damaged: {error}") from error


def keep_image_list(run: Path, index: ImageIndex) -> None:
    """Writes the names and sizes of the images that a run began with, or compares them with those of now.

    An image that was unreadable then or is now, of size 0, is no difference: training replaces it.

    Raises:
        ValueError: images are missing, new or changed; it says which.
    """
    path = run / IMAGES
    now = dict(zip(index.listing.names, index.sizes.tolist(), strict=True))
    if not path.exists():
        content = gzip.compress(json.dumps(list(now.items())).encode(), compresslevel=4, mtime=0)
        write_atomically(path, content)
        return
    before = _read_images(run)
    changed = [
        name
        for name in before.keys() & now.keys()
        if before[name] != now[name] and [0, 0] not in (before[name], now[name])
    ]
    differences = counted(
        {
            "missing": sorted(before.keys() - now.keys()),
            "new": sorted(now.keys() - before.keys()),
            "of another size": sorted(changed),
        }
    )
    if not differences and list(before) != list(now):
        differences = ["the same images in another order"]
    if differences:
        raise ValueError(
            f"data={printable(index.listing.root)} is not what the run in {printable(run)} began with; restore it, or "
            "start in another --out:\n  " + "\n  ".join(differences)
        )


def require_same_images(config: TrainConfig, index: ImageIndex, fingerprint: str) -> None:
    """Makes sure that a checkpoint was made over this list of images.

    Raises:
        ValueError: it was not.
    """
    if index.fingerprint != fingerprint:
        raise ValueError(
            f"data={printable(config.data)} is not what the newest checkpoint in {printable(config.out)} was trained "
            f"on: the list of its {len(index)} images has the fingerprint {index.fingerprint}, expected {fingerprint}"
        )


def read_config(run: Path) -> TrainConfig:
    """The config of a run folder.

    Raises:
        FileNotFoundError: the folder holds no run.
    """
    path = run / CONFIG
    if not path.exists():
        raise FileNotFoundError(f"{printable(run)} is not a run folder: it has no {CONFIG}")
    return from_json(_read_json(path))


def write_summary(run: Path, values: dict[str, Any]) -> None:
    """Writes summary.json; a run folder that has one is finished."""
    write_atomically(run / SUMMARY, json.dumps(values, indent=1) + "\n")


def choose_device(name: str) -> torch.device:
    """The device of a config's "auto", "cpu" or "cuda"; under torchrun each process of a machine has a GPU of its own.

    Raises:
        ValueError: cuda is asked for and there is none.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("device='cuda': torch sees no CUDA device; use --device cpu, or check the driver")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    torch.cuda.set_device(device)
    return device


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
