"""Run items of work in supervised processes: an item that crashes or hangs costs only its own result.

A worker process reports through a file with one JSON object a line:

    {"items": ["a", "b"]}                      all items, once per start
    {"item": "a", "state": "started"}
    {"item": "a", "state": "passed", "reason": "", "seconds": 1.2, "data": null}

An item passes, fails or is "not run". A process that ends or hangs before its last item is restarted and continues with
the unsettled items. When time runs out, the current item counts as not run, or as failed if it has been silent for so
long that it may hang. This module imports only the standard library, because it runs before the package is installed.
"""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

State = Literal["passed", "failed", "not run"]
GPU_LOST = 75  # exit status of a process that can no longer use its GPU
MAX_STARTS = 6  # of one process
POLL_SECONDS = 0.1
CUT_OFF = "cut off"
SILENT_SECONDS = 30.0  # an item cut off after this long without a sign of life has failed: it may hang
TAIL_CHARACTERS = 400  # of a process's output that a reason quotes


@dataclass(frozen=True)
class Outcome:
    """The result of one item."""

    item: str
    state: State
    reason: str = ""  # why it failed or was not run
    seconds: float = 0.0
    data: Any = None  # measurements, as JSON


class NotRun(Exception):
    """Raised by an item that cannot run here; the message is the reason."""


class Failure(Exception):
    """Raised by an item that failed after measuring something."""

    def __init__(self, reason: str, data: Any = None) -> None:
        super().__init__(reason)
        self.data = data


class Events:
    """The worker's end of the file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.started_at = 0.0

    def begin(self, items: Iterable[str]) -> list[str]:
        """Write the names of all items and return the items that no earlier start has settled."""
        items = list(items)
        settled = {line["item"] for line in read_lines(self.path) if "item" in line and line["state"] != "started"}
        self._write({"items": items})
        return [item for item in items if item not in settled]

    def start(self, item: str) -> None:
        self.started_at = time.monotonic()
        self._write({"item": item, "state": "started"})

    def progress(self, item: str, place: str) -> None:
        """Write how far an item has come: a sign of life, and a place that a later start may leave out."""
        self._write({"item": item, "state": "started", "at": place})

    def settle(self, item: str, state: State, reason: str = "", data: Any = None) -> None:
        seconds = round(time.monotonic() - self.started_at, 3) if self.started_at else 0.0
        self._write(asdict(Outcome(item, state, reason, seconds, data)))

    def run(self, items: dict[str, Callable[[], Any]], gpu_is_lost: Callable[[], bool] = lambda: False) -> None:
        """Run the unsettled items; exit with GPU_LOST if `gpu_is_lost` returns True after a failure."""
        for item in self.begin(items):
            self.start(item)
            try:
                self.settle(item, "passed", data=items[item]())
            except NotRun as error:
                self.settle(item, "not run", str(error))
            except Exception as error:  # any failure is this item's result, and the other items continue
                reason = str(error) if isinstance(error, Failure) else f"{type(error).__name__}: {error}"
                print(f"{item}: {reason}", flush=True)
                self.settle(item, "failed", shortened(reason), getattr(error, "data", None))
                if gpu_is_lost():
                    os._exit(GPU_LOST)

    def _write(self, line: dict[str, Any]) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")


@dataclass(frozen=True)
class Worker:
    """A process that runs items."""

    name: str
    command: Callable[[Path], list[str]]  # from the path of the event file
    patience: float  # seconds from an item's last sign of life, or from the start, until the process counts as hung
    folder: Path  # working directory
    environment: dict[str, str] = field(default_factory=dict)


class EventReader:
    """The supervisor's end of the file; passes on each outcome once."""

    def __init__(self, path: Path, on_outcome: Callable[[Outcome], None]) -> None:
        self.path, self.on_outcome = path, on_outcome
        self.items: list[str] | None = None
        self.current: str | None = None  # the started item
        self.place = ""  # how far it has come, if it says so
        self.settled: set[str] = set()
        self.lines_read = 0
        self.heard_at = time.monotonic()

    def read(self) -> None:
        lines = read_lines(self.path)
        for line in lines[self.lines_read :]:
            self.heard_at = time.monotonic()
            if "items" in line:
                self.items = line["items"]
            elif line["state"] == "started":
                self.current, self.place = line["item"], line.get("at", "")
            else:
                self.current = None
                self._pass_on(Outcome(**line))
        self.lines_read = len(lines)

    def settle(self, item: str, state: State, reason: str, seconds: float = 0.0) -> None:
        """Write an outcome that the process could not report, so that its next start skips the item."""
        outcome = Outcome(item, state, reason, round(seconds, 3))
        text = self.path.read_text() if self.path.exists() else ""
        with self.path.open("a") as file:  # a killed process may have left half a line
            file.write(("\n" if text and not text.endswith("\n") else "") + json.dumps(asdict(outcome)) + "\n")
        self.current = None
        self._pass_on(outcome)
        self.lines_read = len(read_lines(self.path))

    def pending(self) -> list[str]:
        return [item for item in self.items or [] if item not in self.settled]

    def _pass_on(self, outcome: Outcome) -> None:
        if outcome.item not in self.settled:
            self.settled.add(outcome.item)
            self.on_outcome(outcome)


def supervise(
    worker: Worker,
    time_is_over: Callable[[], bool],
    events: Path,
    on_outcome: Callable[[Outcome], None],
    on_output: Callable[[str, str], None],
) -> None:
    """Run a worker until all its items are settled, a restart would not help, or time is over.

    Args:
        worker: The process.
        time_is_over: Returns whether the process must end now.
        events: File that the worker reports to.
        on_outcome: Called with each outcome.
        on_output: Called after each start with a heading and the output.
    """
    reader = EventReader(events, on_outcome)
    for start in range(1, MAX_STARTS + 1):
        before = len(reader.settled)
        ending, output = _run_process(worker, time_is_over, reader)
        on_output(f"{worker.name}, start {start}: {ending}", output)
        state: State = "not run" if ending.startswith(CUT_OFF) else "failed"
        if reader.current is not None:
            place = f", at {reader.place}" if reader.place else ""
            reader.settle(reader.current, state, ending + place, time.monotonic() - reader.heard_at)
        if reader.items is None:
            return on_outcome(Outcome(worker.name, state, f"{ending} before its first item: {tail_of(output)}"))
        if not reader.pending():
            return None
        if time_is_over():
            return _give_up(reader, "no time left for it")
        if len(reader.settled) == before:
            return _give_up(reader, f"the process {ending} without settling another item: {tail_of(output)}")
    return _give_up(reader, f"the process was started {MAX_STARTS} times and did not reach it")


def _give_up(reader: EventReader, reason: str) -> None:
    for item in reader.pending():
        reader.settle(item, "not run", reason)


def _run_process(worker: Worker, time_is_over: Callable[[], bool], reader: EventReader) -> tuple[str, str]:
    """Start the process, wait for its end, and return (how it ended, what it printed)."""
    log = reader.path.with_suffix(".log")
    with log.open("wb") as output:
        try:
            process = subprocess.Popen(
                worker.command(reader.path),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=worker.folder,
                env={**os.environ, "PYTHONUNBUFFERED": "1", **worker.environment},
                process_group=0,  # end_group also ends the process's children
            )
        except OSError as error:
            return f"cannot be started ({error})", ""
    reader.heard_at = time.monotonic()
    ending = ""
    try:
        while process.poll() is None and not ending:
            time.sleep(POLL_SECONDS)
            reader.read()
            silent = time.monotonic() - reader.heard_at
            if time_is_over():
                ending = (
                    f"{CUT_OFF} after {silent:.0f} s: no time was left"
                    if silent <= SILENT_SECONDS
                    else f"no answer for {silent:.0f} s when its time was over"
                )
            elif silent > worker.patience:
                ending = f"hung: no answer for {worker.patience:.0f} s"
    finally:
        end_group(process)
    reader.read()
    return ending or describe_exit(process.returncode), log.read_text(errors="replace")


def end_group(process: subprocess.Popen[Any]) -> None:
    """End a process and all its children, and wait for it."""
    for sign, wait in ((signal.SIGTERM, 2.0), (signal.SIGKILL, 20.0)):
        try:
            os.killpg(process.pid, sign)
        except ProcessLookupError:
            break
        try:
            process.wait(wait)
        except subprocess.TimeoutExpired:  # a GPU driver may release a process late or never
            continue
    process.poll()


def describe_exit(status: int | None) -> str:
    """Return an exit status in words; None is a process that survived SIGKILL."""
    if status is None:
        return "did not end when killed"
    if status == GPU_LOST:
        return "ended: the GPU could no longer be used"
    if status < 0:
        return f"crashed: signal {-status} ({signal.Signals(-status).name})"
    return f"ended with exit status {status}"


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the complete lines of the file; a kill may have cut a line short."""
    if not path.exists():
        return []
    lines: list[dict[str, Any]] = []
    for line in path.read_text().splitlines(keepends=True):
        if line.endswith("\n"):
            try:
                lines.append(json.loads(line))
            except ValueError:
                continue
    return lines


def shortened(text: str, most: int = 600) -> str:
    """Return the text on one line, cut after `most` characters."""
    text = " ".join(text.split())
    return text if len(text) <= most else text[:most] + "…"


def tail_of(output: str) -> str:
    """Return the end of a process's output on one line."""
    text = " ".join(output.split())
    return text if len(text) <= TAIL_CHARACTERS else "…" + text[-TAIL_CHARACTERS:]
