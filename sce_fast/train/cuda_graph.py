"""Recording work on a GPU in a CUDA graph. This has not run on a GPU yet."""

import gc
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

WAITED = "called a synchronizing CUDA operation"  # torch's warning
NOT_IN_A_CAPTURE = "torch/nn/modules/_functions.py"  # torch's SyncBatchNorm waits only where it is not captured


class CudaRecorder:
    """Records work on a stream of its own.

    Args:
        device: a GPU.

    Example:
        >>> recorder = CudaRecorder(torch.device("cuda"))
        >>> with recorder.aside():
        ...     step()  # allocates and compiles
        >>> replay = recorder.record(step)
        >>> replay()  # does the work of a step
    """

    def __init__(self, device: torch.device) -> None:
        self._device, self._stream = device, torch.cuda.Stream(device)

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Run the work inside on the recorder's stream, between earlier and later work of the current stream."""
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            yield
        current.wait_stream(self._stream)

    @contextmanager
    def waits(self) -> Iterator[list[str]]:
        """Collect where the host waits for the GPU inside, as FILE:LINE; the list is filled at the end.

        torch does not notice waits of torch.distributed.
        """
        places: list[str] = []
        mode = torch.cuda.get_sync_debug_mode()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                yield places
            finally:
                torch.cuda.set_sync_debug_mode(mode)
        for warning in caught:
            if WAITED in str(warning.message):
                if not warning.filename.endswith(NOT_IN_A_CAPTURE):
                    places.append(f"{warning.filename}:{warning.lineno}")
            elif "debug mode is a prototype" not in str(warning.message):
                warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)

    def record(self, run: Callable[[], None]) -> Callable[[], None]:
        """Capture what a function does on the GPU, without doing it; return the function that does it.

        Raises:
            RuntimeError: the function does what cannot be captured. Afterwards torch may not be able to use the GPU.
        """
        graph, current = torch.cuda.CUDAGraph(), torch.cuda.current_stream(self._device)
        gc.collect()  # frees the memory of the steps before, so that the graph's own fits
        try:
            # The loader's threads may allocate memory meanwhile, which the mode "global" forbids to all threads.
            with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
                run()
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            torch.cuda.set_stream(current)  # a failed capture leaves its own
            cause = error.__context__ or error  # the end of a failed capture raises another error
            raise RuntimeError(f"the training step cannot be captured: {cause}; run without --cuda-graph") from error
        return graph.replay
