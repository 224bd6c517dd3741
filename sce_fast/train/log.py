"""The log of a run: one JSON object a line, and TensorBoard curves."""

import json
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

from sce_fast.util.files import printable, write_atomically
from sce_fast.util.terminal import say

LOG = "log.jsonl"


class RunLog:
    """Appends events to FOLDER/log.jsonl, one JSON object a line, and draws curves if TensorBoard is installed.

    Args:
        folder: run folder.
        resumed_at: step of the checkpoint from which the run resumes. Later events are dropped, so that the log reads
            as if the run had never stopped.
        silent: write nothing, for all ranks but the first.

    Raises:
        OSError: the log cannot be written, here or at any event.
    """

    def __init__(self, folder: Path, *, resumed_at: int | None = None, silent: bool = False) -> None:
        self._path = folder / LOG
        self._file: TextIO | None = None
        self._curves: Any = None
        if silent:
            return
        kept = []
        if resumed_at is not None and self._path.exists():
            kept = [line for line in read_log(self._path) if _is_before(line, resumed_at)]
        write_atomically(self._path, "".join(json.dumps(line) + "\n" for line in kept))
        self._file = self._path.open("a", buffering=1)
        self._curves = _tensorboard(folder / "tensorboard")
        for line in kept:
            self._draw(**line)

    def write(self, event: str, step: int, **values: Any) -> None:
        """Append an event.

        Raises:
            OSError: the log cannot be written.
        """
        if self._file is None:
            return
        try:
            self._file.write(json.dumps({"event": event, "step": step, **values}) + "\n")
        except OSError as error:
            raise OSError(f"{printable(self._path)} could not be written: {error}; resume with --resume") from error
        self._draw(event, step, **values)

    def _draw(self, event: str, step: int, **values: Any) -> None:
        if self._curves is None:
            return
        try:
            for name, value in values.items():
                self._curves.add_scalar(f"{event}/{name}", value, step)
        except OSError as error:
            self._curves = None
            say(f"Warning: no more TensorBoard curves: {error}")

    def close(self) -> None:
        with suppress(OSError):  # write has reported a full disk already
            if self._file is not None:
                self._file.close()
            if self._curves is not None:
                self._curves.close()


def _is_before(line: dict[str, Any], resumed_at: int) -> bool:
    """Return whether a resume keeps an event; the evaluation after the checkpoint's step is done again."""
    return line["step"] < resumed_at or (line["step"] == resumed_at and line["event"] == "train")


def _tensorboard(folder: Path) -> Any:
    """Return a new writer; a resume draws its curves again from the log, so that no step appears twice."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    shutil.rmtree(folder, ignore_errors=True)
    return SummaryWriter(folder)


def read_log(path: Path) -> list[dict[str, Any]]:
    """Read the events of a log; a last line that a kill has cut off is dropped."""
    events = []
    for line in path.read_text().splitlines():
        try:
            events.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return events
