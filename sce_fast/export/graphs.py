"""Backbones as graphs that run without their Python code: ONNX, and torch.export's programs."""

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

INPUT, OUTPUT = "images", "features"  # names in an ONNX file; also for clips


def write_onnx(path: Path, network: nn.Module, inputs: Tensor, metadata: Mapping[str, str]) -> None:
    """Write a network as ONNX, for any number of inputs of this size; metadata become its metadata_props.

    Raises:
        ImportError: onnx or onnxscript is missing.
    """
    import onnx
    import onnxscript  # noqa: F401 (torch needs it, and says so less clearly)

    with _quiet():
        program: Any = torch.onnx.export(
            _exported(network, inputs),
            (inputs,),
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamo=True,
            verbose=False,
        )
    model = program.model_proto
    onnx.helper.set_model_props(model, dict(metadata))
    onnx.save(model, path)


def read_onnx(path: Path) -> Callable[[Tensor], Tensor]:
    """Return the function of an ONNX file, computed by onnxruntime.

    Raises:
        ImportError: onnxruntime is missing.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    return lambda inputs: torch.from_numpy(session.run(None, {INPUT: inputs.numpy()})[0])


def write_torch_export(path: Path, network: nn.Module, inputs: Tensor, metadata: Mapping[str, str]) -> None:
    """Write a network as torch.export.save does, for any number of inputs of this size; metadata are extra files."""
    with path.open("wb") as file, _quiet():
        torch.export.save(_exported(network, inputs), file, extra_files=dict(metadata))


def read_torch_export(path: Path) -> Callable[[Tensor], Tensor]:
    """Return the function of a program that write_torch_export has written."""
    with path.open("rb") as file, _quiet():
        return torch.export.load(file).module()


def _exported(network: nn.Module, inputs: Tensor) -> torch.export.ExportedProgram:
    return torch.export.export(network, (inputs,), dynamic_shapes=({0: torch.export.Dim("batch")},))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporters' own warnings, on torchvision's operators and on deprecations in torch, to themselves."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
