"""The run folder: config, image list, log, checkpoints, summary. Other files in it are never touched."""

import fcntl
import gzip
import json
import os
import zlib
from pathlib import Path
from typing import Any

import torch

from sce_fast.config import TrainConfig, from_json, to_json
from sce_fast.data.index import ImageIndex
from sce_fast.train.checkpoint import checkpoints, read_state, remove_unfinished
from sce_fast.train.log import LOG
from sce_fast.util.files import counted, printable, write_atomically

CONFIG, CHECKPOINTS = "config.json", "checkpoints"
SUMMARY, BAD_FILES, IMAGES = "summary.json", "bad_files.txt", "images.json.gz"
# Settings that a resume may change, since no trained number depends on them. Folders may have moved; the image list is
# compared by itself.
FREE_TO_CHANGE = frozenset(
    ("resume", "out", "data", "loader_threads", "checkpoint_every", "keep_checkpoints", "pictures", "wandb",
     "evaluation.train", "evaluation.test")
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
    if not holds_a_run(config.out):
        (config.out / IMAGES).unlink(missing_ok=True)
        write_atomically(config.out / CONFIG, json.dumps(to_json(config), indent=1) + "\n")
        return None
    if not config.resume:
        raise ValueError(f"out={printable(config.out)} already holds a run; pass --resume to go on, or another --out")
    # Read as a config, so that a setting may have had another name when the run began.
    differences = _differences(to_json(read_config(config.out)), to_json(config))
    if differences:
        raise ValueError(
            f"out={printable(config.out)} holds a run with another config; resume with the same config, or start in "
            "another --out:\n  " + "\n  ".join(differences)
        )
    remove_unfinished(config.out / CHECKPOINTS)
    found = checkpoints(config.out / CHECKPOINTS)
    return found[-1] if found else None


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


def index_at_start(config: TrainConfig, index: ImageIndex) -> ImageIndex:
    """Return the image list that a run to be resumed began with.

    Images that the run had already replaced and that have vanished since are put back, as bad files. Any other
    difference returns `index` as it is; write_or_check_image_list reports it.
    """
    found = checkpoints(config.out / CHECKPOINTS)
    if not (config.resume and found and (config.out / IMAGES).exists()):
        return index
    state = read_state(found[-1])
    if state["data_fingerprint"] == index.fingerprint:
        return index
    before, now = _read_image_list(config.out), set(index.listing.names)
    gone = before.keys() - now
    if not gone or now - before.keys() or gone - state["bad_files"].keys():
        return index
    return index.listed_as(list(before))


def write_or_check_image_list(run: Path, index: ImageIndex) -> None:
    """Write the names and sizes of a new run's images, or compare them with those that the run began with.

    An image of size 0, which is an unreadable one, then or now, is no difference: training replaces it.

    Raises:
        ValueError: images are missing, new or changed; the message names them.
    """
    path = run / IMAGES
    now = dict(zip(index.listing.names, index.sizes.tolist(), strict=True))
    if not path.exists():
        content = gzip.compress(json.dumps(list(now.items())).encode(), compresslevel=4, mtime=0)
        write_atomically(path, content)
        return
    before = _read_image_list(run)
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
            f"data={index.listing.title} differs from the images that the run in {printable(run)} began "
            "with; restore them, or start in another --out:\n  " + "\n  ".join(differences)
        )


def require_same_images(config: TrainConfig, index: ImageIndex, fingerprint: str) -> None:
    """Raise ValueError unless a checkpoint's fingerprint is that of this image list."""
    if index.fingerprint != fingerprint:
        raise ValueError(
            f"data={printable(config.data)} is not what the newest checkpoint in {printable(config.out)} was trained "
            f"on: the list of its {len(index)} images has the fingerprint {index.fingerprint}, expected {fingerprint}"
        )


def _read_image_list(run: Path) -> dict[str, list[int]]:
    path = run / IMAGES
    try:
        return dict(json.loads(gzip.decompress(path.read_bytes())))
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise ValueError(
            f"{printable(path)} cannot be read: {error}; remove it to resume without comparing the image lists"
        ) from error


def read_config(run: Path) -> TrainConfig:
    """Read the config of a run folder.

    Raises:
        FileNotFoundError: the folder holds no run.
        ValueError: config.json is damaged, or was written by a version with other settings.
    """
    path = run / CONFIG
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
