"""The weights that the backbone of a new run starts with, and their record in the run folder."""

import hashlib
import json
from pathlib import Path
from typing import Any

from torch import nn

from sce_fast.backbones import build_backbone
from sce_fast.backbones.weights import read_weights
from sce_fast.config import TrainConfig
from sce_fast.train.checkpoint import TENSORS, checkpoints
from sce_fast.train.folder import CHECKPOINTS
from sce_fast.util.files import printable, write_atomically

INIT = "init.json"
STUDENT = r"model\.backbone\."  # in the tensors of a checkpoint


def initial_backbone(config: TrainConfig, backbone: nn.Module | None = None) -> nn.Module:
    """Return the backbone of a new run, on the CPU, with the weights of config.init.

    Args:
        config: whose init is a run folder, of which the student's backbone is taken, or a file that read_weights takes.
        backbone: a module to load them into, in place of the config's backbone.

    Raises:
        FileNotFoundError: the file, or a checkpoint in the folder, does not exist.
        ValueError: its weights are not those of this network.
    """
    if backbone is None:
        model = config.model
        sizes = config.image_sizes()
        backbone = build_backbone(model.backbone, width=model.width, small_input=model.small_input, sizes=sizes)
    file = _file(config)
    try:
        tensors = read_weights(file, backbone, pattern=STUDENT if file.name == TENSORS else None)
    except (FileNotFoundError, ValueError) as error:
        raise type(error)(f"init: {error}") from error
    backbone.load_state_dict(tensors)
    return backbone


def write_init(config: TrainConfig) -> None:
    """Write init.json into the run folder: the file that the weights came from, and its SHA-256."""
    file = _file(config)
    with file.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    values: dict[str, Any] = {"init": str(config.init), "file": str(file.resolve()), "sha256": digest}
    write_atomically(config.out / INIT, json.dumps(values, indent=1) + "\n")


def _file(config: TrainConfig) -> Path:
    """Return the file of the weights: in a run folder, that of its newest checkpoint."""
    assert config.init is not None
    if not config.init.is_dir():
        return config.init
    found = checkpoints(config.init / CHECKPOINTS)
    if not found:
        raise FileNotFoundError(
            f"init={printable(config.init)}: expected a file of weights, or a run folder with a checkpoint"
        )
    return found[-1] / TENSORS
