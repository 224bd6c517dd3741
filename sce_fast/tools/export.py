"""The export command: a backbone in the files of other programs."""

from pathlib import Path
from typing import Literal

from sce_fast.export import Foreign, Student, export
from sce_fast.tools.arguments import ForeignWeights, Run

Format = Literal["safetensors", "torchvision", "pytorchvideo", "timm", "detectron2", "onnx", "torch-export"]


def export_backbone(
    run: Run,
    /,
    *,
    out: Path,
    format: Format = "safetensors",
    momentum: bool = False,
    weights: Student | None = None,
    foreign: ForeignWeights = Foreign(),  # noqa: B008 (frozen)
) -> Path:
    """Write a backbone for other programs and return out.

    The file is read again and its features are compared with the backbone's before it appears under its name.

    safetensors: torchvision's names for a ResNet, pytorchvideo's for an R3D; every command of sce-fast reads it.
    torchvision, pytorchvideo: a state dict, for torch.load. timm: a folder, for timm.create_model("local-dir:OUT").
    detectron2: a pickle of numpy arrays, for MODEL.WEIGHTS. onnx and torch-export: a graph that runs without sce_fast.

    Args:
        run: Run folder, a file written by sce-fast export, or weights from elsewhere together with --backbone.
        out: New file, or for timm a new folder.
        format: Program that is to read it.
        momentum: Write the momentum encoder's backbone instead of the student's.
        weights: Write the student's own weights, or their average over the steps, which a run with
            --model.evaluation-momentum keeps. Default: the average if there is one.
        foreign: Weights from elsewhere.

    Raises:
        FileNotFoundError: run is no run folder or has no checkpoint yet.
        ValueError: out exists or has another ending than the format's, the format does not take this network, or the
            run has no average.
        RuntimeError: the file that was written gives other features.
    """
    return export(run, out=out, format=format, momentum=momentum, weights=weights, backbone=foreign)
