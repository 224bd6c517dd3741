"""The temporal difference of clips in a DALI graph: our kernel on a CPU, DALI's operators on a GPU."""

from collections.abc import Callable
from functools import partial
from typing import Any

from nvidia.dali import fn, types

from sce_fast.native import CPU


def difference_operator(device: str, threads: int) -> Callable[[Any], Any]:
    """Return the operator that shows each frame's grey minus its neighbour's: (grey − grey' + 255) / 2, three times.

    Halves are rounded upwards. Where a frame equals its neighbour, the result is 128.

    Args:
        device: "cpu" or "gpu", where the clips are.
        threads: number of threads of our kernel.

    Returns:
        A function of clips (2F, H, W, 3) uint8, F frames and then the neighbour of each, that returns (F, H, W, 3).
    """
    if device == "cpu" and CPU.module is not None:
        return partial(_native, threads=threads)
    return _from_dali_operators


def _native(clip: Any, threads: int) -> Any:
    def run(clips: list) -> list:
        return CPU.module.temporal_difference(clips, threads)

    # The output of a Python function has no layout, but the next operators need one.
    return fn.reinterpret(fn.python_function(clip, function=run, batch_processing=True), layout="FHWC")


def _from_dali_operators(clip: Any) -> Any:
    # In integers, thousandths of a grey level, as in csrc/cpu: both ways give the same bits.
    r, g, b = (fn.cast(fn.slice(clip, channel, 1, axes=[3]), dtype=types.INT32) for channel in range(3))
    grey = 299 * r + 587 * g + 114 * b
    frames, neighbours = (fn.slice(grey, rel_start=half / 2, rel_shape=0.5, axes=[0]) for half in range(2))
    value = fn.cast((frames - neighbours + 256000) // 2000, dtype=types.UINT8)
    return fn.reinterpret(fn.cat(value, value, value, axis=3), layout="FHWC")
