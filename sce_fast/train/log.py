"""The log of a run: one JSON object a line, and curves of its numbers."""

import json
import math
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

from sce_fast.train.curves import Curves
from sce_fast.util.files import printable, write_atomically
from sce_fast.util.terminal import say

LOG = "log.jsonl"
# The values of an event that depend on the time. All others are the same if the run is repeated, or killed and resumed.
TIMING = ("images_per_second", "videos_per_second", "data_wait_share", "seconds", "time")


class RunLog:
    """Appends events to FOLDER/log.jsonl, one JSON object a line, and draws their numbers.

    Each event ends with its `time`, in seconds since 1970. A value that is not finite is written as null.

    Args:
        folder: run folder.
        curves: where to draw the events.
        resumed_at: step of the checkpoint from which the run resumes. Later events are dropped, so that the log reads
            as if the run had never stopped.
        silent: write nothing, for all ranks but the first.

    Raises:
        OSError: the log cannot be written, here or at any event.
    """

    def __init__(
        self, folder: Path, curves: Sequence[Curves] = (), *, resumed_at: int | None = None, silent: bool = False
    ) -> None:
        self._path = folder / LOG
        self._file: TextIO | None = None
        self._curves = list(curves)
        if silent:
            return
        kept = []
        if resumed_at is not None and self._path.exists():
            kept = [line for line in read_log(self._path) if _is_before(line, resumed_at)]
        write_atomically(self._path, "".join(json.dumps(line) + "\n" for line in kept))
        self._file = self._path.open("a", buffering=1)
        for line in kept:
            self._draw(line, earlier=True)

    def write(self, event: str, step: int, **values: Any) -> None:
        """Append an event.

        Raises:
            OSError: the log cannot be written.
        """
        if self._file is None:
            return
        line = {"event": event, "step": step, **values, "time": round(time.time(), 3)}
        line = {name: None if isinstance(v, float) and not math.isfinite(v) else v for name, v in line.items()}
        try:
            self._file.write(json.dumps(line) + "\n")
        except OSError as error:
            raise OSError(f"{printable(self._path)} could not be written: {error}; resume with --resume") from error
        self._draw(line)

    def _draw(self, line: dict[str, Any], *, earlier: bool = False) -> None:
        """Draw an event; curves that cannot be drawn end with a warning, and training continues."""
        place = ("event", "step", "time")
        numbers = {name: value for name, value in line.items() if name not in place and value is not None}
        for curves in [curves for curves in self._curves if curves.needs_earlier_events or not earlier]:
            try:
                curves.draw(line["event"], line["step"], numbers, line.get("time", time.time()))
            except Exception as error:
                self._curves.remove(curves)
                say(f"Warning: no more curves in {curves.name}: {error}")

    def close(self, *, finished: bool = True) -> None:
        """Close the log and its curves; finished is false if the run has stopped before its last step."""
        if self._file is not None:
            with suppress(OSError):  # write has reported a full disk already
                self._file.close()
        for curves in self._curves:
            try:
                curves.close(finished=finished)
            except Exception as error:
                say(f"Warning: curves in {curves.name} are incomplete: {error}")


def _is_before(line: dict[str, Any], resumed_at: int) -> bool:
    """Return whether a resume keeps an event; the evaluation after the checkpoint's step is done again."""
    return line["step"] < resumed_at or (line["step"] == resumed_at and line["event"] == "train")


def read_log(path: Path) -> list[dict[str, Any]]:
    """Read the events of a log; a last line that a kill has cut off is dropped."""
    events = []
    for line in path.read_text().splitlines():
        try:
            events.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return events
