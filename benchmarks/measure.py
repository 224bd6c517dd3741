"""Time and memory of a call, on a CPU and on a GPU."""

import ctypes
import ctypes.util
import gc
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import torch


def stage_seconds(stages: Callable[[Callable[[], None]], None], device: str) -> list[float]:
    """Seconds between the moments at which `stages` calls what it is given, and from the last to its end.

    On a GPU the moments are CUDA events, and what was queued before is waited for first.
    """
    if device == "cpu":
        times: list[float] = []
        stages(lambda: times.append(time.perf_counter()))
        times.append(time.perf_counter())
        return [later - earlier for earlier, later in pairwise(times)]
    events: list[torch.cuda.Event] = []

    def mark() -> None:
        events.append(torch.cuda.Event(enable_timing=True))
        events[-1].record()

    torch.cuda.synchronize()
    stages(mark)
    mark()
    torch.cuda.synchronize()
    return [earlier.elapsed_time(later) / 1e3 for earlier, later in pairwise(events)]


def extra_memory(run: Callable[[], object], device: str) -> int | None:
    """Bytes that a call takes at its peak beyond what is held before it; None where the system does not tell.

    On a CPU the peak resident memory of this process, whose record Linux resets on request (clear_refs), after what the
    allocator keeps has been handed back; on a GPU that of torch's allocator.
    """
    gc.collect()
    if device != "cpu":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    _hand_memory_back()
    try:
        Path("/proc/self/clear_refs").write_text("5")
        before = _resident("VmRSS")
        run()
        return max(0, _resident("VmHWM") - before)
    except OSError:  # not Linux, or not allowed
        return None


def free_memory() -> int | None:
    """Bytes that new allocations on the host can have without swapping; None where the system does not tell."""
    try:
        return _kilobytes("/proc/meminfo", "MemAvailable")
    except OSError:
        return None


def _resident(name: str) -> int:
    return _kilobytes("/proc/self/status", name)


def _kilobytes(file: str, name: str) -> int:
    line = next(line for line in Path(file).read_text().splitlines() if line.startswith(name + ":"))
    return 1024 * int(line.split()[1])


def _hand_memory_back() -> None:
    """glibc keeps freed blocks of up to 32 MiB, and what is kept would be taken again without a trace."""
    library = ctypes.CDLL(ctypes.util.find_library("c"))
    if hasattr(library, "malloc_trim"):
        library.malloc_trim(0)
