"""What a run tells while it goes: a progress bar, and one JSON object a line for programs."""

import json
import sys
from pathlib import Path
from typing import Any

from tqdm import tqdm

from sce_fast.files import write_atomically

PLAIN_LINE_SECONDS = 10.0


def progress_bar(total: int, description: str, *, initial: int = 0, unit: str = "step") -> tqdm:
    """A bar on a terminal; elsewhere (files, CI) a plain line every few seconds."""
    if sys.stderr.isatty():
        return tqdm(total=total, initial=initial, desc=description, unit=unit, dynamic_ncols=True, mininterval=0.5)
    line = f"{{desc}}: {unit} {{n_fmt}}/{{total_fmt}} [{{elapsed}}<{{remaining}}{{postfix}}]"
    return tqdm(
        total=total, initial=initial, desc=description, mininterval=PLAIN_LINE_SECONDS, file=_Lines(), bar_format=line
    )


class _Lines:
    """A stream that turns tqdm's carriage returns into lines, and says nothing twice."""

    def __init__(self) -> None:
        self._last = ""

    def write(self, text: str) -> None:
        text = text.strip("\r\n ")
        if text and text != self._last:
            sys.stderr.write(text + "\n")
            self._last = text

    def flush(self) -> None:
        sys.stderr.flush()


class JsonLog:
    """Appends events to a file, one JSON object a line.

    Args:
        path: the file.
        until_step: on resuming, lines of later steps are dropped, so that the log reads as if never interrupted.
    """

    def __init__(self, path: Path, until_step: int | None = None) -> None:
        kept = []
        if until_step is not None and path.exists():
            kept = [line for line in read_log(path) if line["step"] <= until_step]
        write_atomically(path, "".join(json.dumps(line) + "\n" for line in kept))
        self._file = path.open("a", buffering=1)

    def write(self, event: str, step: int, **values: Any) -> None:
        self._file.write(json.dumps({"event": event, "step": step, **values}) + "\n")

    def close(self) -> None:
        self._file.close()


def read_log(path: Path) -> list[dict[str, Any]]:
    """The events of a log; a last line cut off by a kill is dropped."""
    events = []
    for line in path.read_text().splitlines():
        try:
            events.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return events
