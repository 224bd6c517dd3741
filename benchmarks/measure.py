"""Time and memory of a call, on a CPU and on a GPU."""

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


def graph_seconds(run: Callable[[], object], replays: int = 20, rounds: int = 7) -> float:
    """GPU seconds of a call that is captured in a CUDA graph and replayed again and again: the median round's mean.

    What the call reads must stay where it is. Raises RuntimeError where it cannot be captured.
    """
    before = torch.cuda.current_stream()
    side = torch.cuda.Stream()
    side.wait_stream(before)
    with torch.cuda.stream(side):
        for _ in range(3):  # whatever is compiled, allocated or asked of the device once
            run()
    before.wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            run()
    except Exception:
        torch.cuda.set_stream(before)  # a failed capture may leave its own behind
        raise
    graph.replay()

    def replay(mark: Callable[[], None]) -> None:
        mark()
        for _ in range(replays):
            graph.replay()

    return statistics.median(stage_seconds(replay, "cuda")[0] for _ in range(rounds)) / replays


def host_seconds(run: Callable[[], object], calls: int = 20, rounds: int = 7) -> float:
    """Seconds for which a call holds the host while the GPU has other work: the median round's mean."""
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
    """Whether an illegal access or the like has ended this process's use of its GPU: every further call would fail."""
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
    """Bytes a second, read and written together, of a copy on the device that no cache holds."""
    source = torch.empty(size, dtype=torch.uint8, device=device).random_()
    target = torch.empty_like(source)

    def copy(mark: Callable[[], None]) -> None:
        mark()
        target.copy_(source)

    stage_seconds(copy, device)
    return 2 * size / statistics.median(stage_seconds(copy, device)[0] for _ in range(rounds))


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
