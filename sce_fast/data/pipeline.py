"""DALI pipelines of any kind of data: how they are built and read."""

from collections.abc import Callable
from typing import Any

import torch
from numpy.typing import NDArray
from nvidia.dali.pipeline import Pipeline
from torch import Tensor

from sce_fast.native import CPU

# The inputs of one batch. Each is one array (N, …), or a list of N arrays where their shapes differ; DALI takes several
# times as long for a list.
Feed = tuple[NDArray | list[NDArray], ...]


def build_pipeline(
    graph: Callable[..., Pipeline], *, batch_size: int, threads: int, device: str, prefetch: int = 2
) -> Pipeline:
    """Build the pipeline of a function that pipeline_def has decorated.

    Image decoders print lines about odd files, without their names, to standard error. From now on only the first line
    of each kind appears, if the CPU kernels are built.

    Args:
        device: "cpu", or "gpu" for the current CUDA device.
        prefetch: number of batches that DALI prepares in advance.
    """
    if CPU.module is not None:
        CPU.module.filter_decoder_messages()
    pipeline = graph(
        batch_size=batch_size,
        num_threads=threads,
        device_id=None if device == "cpu" else torch.cuda.current_device(),
        prefetch_queue_depth=prefetch,
    )
    pipeline.build()
    return pipeline


def shut_down(pipeline: Any) -> None:
    """End a pipeline: wait for the batches that it prepares in advance, and end its threads.

    A pipeline that is only dropped may be part of a cycle, such as error → traceback → frame → error, until the garbage
    collector finds it. The collector runs in any thread. If a Python function of the graph starts it in one of the
    pipeline's own threads, that thread waits for its own end, and the process aborts.
    """
    pipeline._shutdown()  # DALI 2.4 has no public method; the pipeline's destructor and DALI's exit handler call this


def next_outputs(pipeline: Any, device: str) -> list[Tensor]:
    """Return the next outputs of a pipeline without a copy; on a GPU they are ordered on the current stream."""
    outputs = pipeline.run() if device == "cpu" else pipeline.run(torch.cuda.current_stream())
    return [torch.from_dlpack(output.as_tensor()) for output in outputs]
