"""What a person sees on a terminal while something runs: a progress bar, and lines above it."""

import sys

from tqdm import tqdm

PLAIN_LINE_SECONDS = 10.0


def progress_bar(total: int, description: str, *, initial: int = 0, unit: str = "step", silent: bool = False) -> tqdm:
    """A bar on a terminal; elsewhere (files, CI) a plain line every few seconds; nothing when silent."""
    if silent:
        return tqdm(total=total, initial=initial, disable=True)
    if sys.stderr.isatty():
        return tqdm(total=total, initial=initial, desc=description, unit=unit, dynamic_ncols=True, mininterval=0.5)
    line = f"{{desc}}: {unit} {{n_fmt}}/{{total_fmt}} [{{elapsed}}<{{remaining}}{{postfix}}]"
    return tqdm(
        total=total, initial=initial, desc=description, mininterval=PLAIN_LINE_SECONDS, file=_Lines(), bar_format=line
    )


def say(text: str) -> None:
    """A line on standard error, above a bar that is drawn there."""
    tqdm.write(text, file=sys.stderr)


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
