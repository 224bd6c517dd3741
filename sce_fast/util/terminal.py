"""Progress bars and messages on standard error."""

import sys
from typing import Any

from tqdm import tqdm

PLAIN_LINE_SECONDS = 10.0


def progress_bar(
    total: int, description: str, *, initial: int = 0, unit: str = "step", silent: bool = False, delay: float = 0.0
) -> tqdm:
    """Return a progress bar; outside a terminal (file, CI) it prints a plain line every few seconds, if not silent.

    With a delay, nothing is shown of what takes fewer seconds.
    """
    if silent:
        return tqdm(total=total, initial=initial, disable=True)
    shared: dict[str, Any] = {"total": total, "initial": initial, "desc": description, "delay": delay}
    if sys.stderr.isatty():
        return tqdm(**shared, unit=unit, dynamic_ncols=True, mininterval=0.5)
    line = f"{{desc}}: {unit} {{n_fmt}}/{{total_fmt}} [{{elapsed}}<{{remaining}}{{postfix}}]"
    return tqdm(**shared, mininterval=PLAIN_LINE_SECONDS, file=_Lines(), bar_format=line)


def say(text: str) -> None:
    """Print a line on standard error, above any progress bar."""
    tqdm.write(text, file=sys.stderr)


class _Lines:
    """A stream that turns tqdm's carriage returns into lines and prints no line twice in a row."""

    def __init__(self) -> None:
        self._last = ""

    def write(self, text: str) -> None:
        text = text.strip("\r\n ")
        if text and text != self._last:
            sys.stderr.write(text + "\n")
            self._last = text

    def flush(self) -> None:
        sys.stderr.flush()
