"""Stop a run on a signal: after the current step, with everything saved, so that it can be resumed."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

from sce_fast.util.terminal import say

REQUEUE = 75  # EX_TEMPFAIL of sysexits.h: a temporary failure, try again later
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class Stopped(SystemExit):
    """Ends the program with exit status REQUEUE: the run was asked to stop, is saved, and can be resumed."""

    def __init__(self) -> None:
        super().__init__(REQUEUE)


class StopRequest:
    """Catches SIGTERM, SIGUSR1 and Ctrl-C while it is open; the run checks `name` after each step.

    A second Ctrl-C raises KeyboardInterrupt at once. Outside the main thread, where Python delivers no signals, it
    catches none.

    Example:
        >>> with StopRequest() as request:
        ...     for batch in loader:
        ...         step(batch)
        ...         if request.name:
        ...             save()
        ...             raise Stopped
    """

    def __init__(self) -> None:
        self.name: str | None = None  # of the signal
        self._at_once = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Within this context everything is saved, so a request ends the run at once."""
        if self.name:
            raise Stopped
        self._at_once = True
        try:
            yield
        finally:
            self._at_once = False

    def _note(self, number: int, _: FrameType | None) -> None:
        again = self.name is not None
        self.name = signal.Signals(number).name
        if self._at_once:
            raise Stopped
        if number == signal.SIGINT:
            if again:
                raise KeyboardInterrupt
            say("Ctrl-C: finishing this step, then saving; press Ctrl-C again to stop at once")
