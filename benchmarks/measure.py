"""Measure time and memory of a call on a CPU or a GPU."""

import ctypes
import ctypes.util
import gc
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch


class StageTimer:
    """Times the named stages of one call; a stage that is entered several times counts as their sum.

    On a GPU the moments are CUDA events, and work queued earlier is waited for first.

    Example:
        >>> timer = StageTimer("cpu")
        >>> with timer.stage("loss"):
        ...     loss = criterion(query, key)
        >>> timer.seconds()["loss"]
    """

    def __init__(self, device: str) -> None:
        self._device = device
        self._stages: list[tuple[str, Any, Any]] = []  # name, moments of entry and exit
        if device != "cpu":
            torch.cuda.synchronize()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = self._now()
        yield
        self._stages.append((name, start, self._now()))

    def seconds(self) -> dict[str, float]:
        """Return the seconds of each stage."""
        if self._device != "cpu":
            torch.cuda.synchronize()
        total: dict[str, float] = {}
        for name, start, end in self._stages:
            took = end - start if self._device == "cpu" else start.elapsed_time(end) / 1e3
            total[name] = total.get(name, 0.0) + took
        return total

    def _now(self) -> Any:
        if self._device == "cpu":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


def stage_seconds(stages: Callable[[Callable[[], None]], None], device: str) -> list[float]:
    """Return the seconds of each stage: `stages` calls its argument at the start of each one.

    On a GPU the starts are CUDA events, recorded after all earlier work has finished.
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


def graph_seconds(run: Callable[[], object], replays: int = 20, rounds: int = 7) -> float:
    """Return the GPU seconds of a call, captured in a CUDA graph and replayed: the median over rounds of the mean.

    The call's inputs must stay in place. Raises RuntimeError if the call cannot be captured.
    """
    before = torch.cuda.current_stream()
    side = torch.cuda.Stream()
    side.wait_stream(before)
    with torch.cuda.stream(side):
        for _ in range(3):  # warms up: compiles, allocates, queries the device
            run()
    before.wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            run()
    except Exception:
        torch.cuda.set_stream(before)  # a failed capture may leave its stream as the current one
        raise
    graph.replay()

    def replay(mark: Callable[[], None]) -> None:
        mark()
        for _ in range(replays):
            graph.replay()

    return statistics.median(stage_seconds(replay, "cuda")[0] for _ in range(rounds)) / replays


def host_seconds(run: Callable[[], object], calls: int = 20, rounds: int = 7) -> float:
    """Return the host seconds of a call that does not wait for the GPU: the median over rounds of the mean."""
    times = []
    for _ in range(rounds):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(calls):
            run()
        times.append((time.perf_counter() - start) / calls)
    torch.cuda.synchronize()
    return statistics.median(times)


def gpu_is_lost() -> bool:
    """Return whether an illegal access or a similar fault has made every further GPU call of this process fail."""
    if not torch.cuda.is_initialized():
        return False
    try:
        torch.cuda.synchronize()
        torch.zeros(1, device="cuda").add_(1).item()
    except torch.cuda.OutOfMemoryError:
        return False
    except RuntimeError:
        return True
    return False


def copy_rate(device: str, size: int = 2**30, rounds: int = 7) -> float:
    """Return the bytes per second, read and written, of a copy on the device that is larger than any cache."""
    source = torch.empty(size, dtype=torch.uint8, device=device).random_()
    target = torch.empty_like(source)

    def copy(mark: Callable[[], None]) -> None:
        mark()
        target.copy_(source)

    stage_seconds(copy, device)
    return 2 * size / statistics.median(stage_seconds(copy, device)[0] for _ in range(rounds))


def extra_memory(run: Callable[[], object], device: str) -> int | None:
    """Return the peak bytes during a call beyond the bytes held before it; None if the system does not report them.

    On a GPU this is the peak of torch's allocator. On a CPU it is the peak resident memory of the process, which Linux
    resets on request (clear_refs), measured after the allocator has returned its free memory.
    """
    gc.collect()
    if device != "cpu":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    _return_free_memory()
    try:
        Path("/proc/self/clear_refs").write_text("5")
        before = _resident("VmRSS")
        run()
        return max(0, _resident("VmHWM") - before)
    except OSError:  # not Linux, or not permitted
        return None


def free_memory() -> int | None:
    """Return the bytes that the host can allocate without swapping; None if the system does not report them."""
    try:
        return _kilobytes("/proc/meminfo", "MemAvailable")
    except OSError:
        return None


def _resident(name: str) -> int:
    return _kilobytes("/proc/self/status", name)


def _kilobytes(file: str, name: str) -> int:
    line = next(line for line in Path(file).read_text().splitlines() if line.startswith(name + ":"))
    return 1024 * int(line.split()[1])


def _return_free_memory() -> None:
    """Return free memory to the system: glibc keeps freed blocks of up to 32 MiB, whose reuse would not be measured."""
    library = ctypes.CDLL(ctypes.util.find_library("c"))
    if hasattr(library, "malloc_trim"):
        library.malloc_trim(0)
