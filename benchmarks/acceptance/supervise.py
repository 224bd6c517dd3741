"""Items of work in processes of their own: one that crashes, hangs or spoils the GPU's context costs itself alone.

A process tells what it does in a file, a JSON object a line:

    {"items": ["a", "b"]}                      what it will do, once
    {"item": "a", "state": "started"}
    {"item": "a", "state": "passed", "reason": "", "seconds": 1.2, "data": null}

States are passed, failed and "not run". A process that ends or falls silent before its last item is started again and
goes on with what is not settled. An item that is at work when time is over was not run; one that had been silent for so
long that it may never have ended has failed. Nothing but the standard library: this runs before the package is
installed.
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
SPOILT = 75  # exit status of a process that cannot use its GPU any more
STARTS = 6  # of one process, before what is left is given up
POLL = 0.1  # seconds
CUT_OFF = "cut off"
SILENT = 30.0  # seconds; what is cut off after so long without a sign of life has failed: it may hang
TAIL = 400  # characters of a process's output that a reason may quote


@dataclass(frozen=True)
class Outcome:
    """What became of one item."""

    item: str
    state: State
    reason: str = ""  # why it failed or was not run
    seconds: float = 0.0
    data: Any = None  # what was measured, as JSON


class NotRun(Exception):
    """Raised by an item that has nothing to run on; the message is the reason."""


class Failure(Exception):
    """Raised by an item that has measured something and failed."""

    def __init__(self, reason: str, data: Any = None) -> None:
        super().__init__(reason)
        self.data = data


class Events:
    """The file, as the process at work sees it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.started_at = 0.0

    def begin(self, items: Iterable[str]) -> list[str]:
        """Says what there is to do; returns what an earlier start has not settled."""
        items = list(items)
        settled = {line["item"] for line in read_lines(self.path) if "item" in line and line["state"] != "started"}
        self._write({"items": items})
        return [item for item in items if item not in settled]

    def start(self, item: str) -> None:
        self.started_at = time.monotonic()
        self._write({"item": item, "state": "started"})

    def at(self, item: str, place: str) -> None:
        """How far an item has come: a sign of life, and what a later start may want to leave out."""
        self._write({"item": item, "state": "started", "at": place})

    def settle(self, item: str, state: State, reason: str = "", data: Any = None) -> None:
        seconds = round(time.monotonic() - self.started_at, 3) if self.started_at else 0.0
        self._write(asdict(Outcome(item, state, reason, seconds, data)))

    def run(self, items: dict[str, Callable[[], Any]], spoilt: Callable[[], bool] = lambda: False) -> None:
        """Runs what is not settled; ends the process where `spoilt` says after a failure that nothing more can run."""
        for item in self.begin(items):
            self.start(item)
            try:
                self.settle(item, "passed", data=items[item]())
            except NotRun as reason:
                self.settle(item, "not run", str(reason))
            except Exception as error:  # whatever it is, it is this item's answer, and the others go on
                reason = str(error) if isinstance(error, Failure) else f"{type(error).__name__}: {error}"
                print(f"{item}: {reason}", flush=True)
                self.settle(item, "failed", first_lines(reason), getattr(error, "data", None))
                if spoilt():
                    os._exit(SPOILT)

    def _write(self, line: dict[str, Any]) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")


@dataclass(frozen=True)
class Work:
    """One process and the items that it runs."""

    name: str
    command: Callable[[Path], list[str]]  # from the path of the file
    patience: float  # seconds for an item from its last sign of life, and for the time before the first
    folder: Path  # where it runs
    environment: dict[str, str] = field(default_factory=dict)


class Watch:
    """The file, as the supervisor sees it: hands on each outcome once."""

    def __init__(self, path: Path, tell: Callable[[Outcome], None]) -> None:
        self.path, self.tell = path, tell
        self.items: list[str] | None = None
        self.open: str | None = None  # the item at work
        self.place = ""  # how far it has come, where it says so
        self.settled: set[str] = set()
        self.seen = 0  # lines
        self.heard_at = time.monotonic()

    def read(self) -> None:
        lines = read_lines(self.path)
        for line in lines[self.seen :]:
            self.heard_at = time.monotonic()
            if "items" in line:
                self.items = line["items"]
            elif line["state"] == "started":
                self.open, self.place = line["item"], line.get("at", "")
            else:
                self.open = None
                self._hand_on(Outcome(**line))
        self.seen = len(lines)

    def settle(self, item: str, state: State, reason: str, seconds: float = 0.0) -> None:
        """An outcome that the process itself could not tell; its next start finds it in the file."""
        outcome = Outcome(item, state, reason, round(seconds, 3))
        text = self.path.read_text() if self.path.exists() else ""
        with self.path.open("a") as file:  # after the half of a line that a killed process may have left
            file.write(("\n" if text and not text.endswith("\n") else "") + json.dumps(asdict(outcome)) + "\n")
        self.open = None
        self._hand_on(outcome)
        self.seen = len(read_lines(self.path))

    def pending(self) -> list[str]:
        return [item for item in self.items or [] if item not in self.settled]

    def _hand_on(self, outcome: Outcome) -> None:
        if outcome.item not in self.settled:
            self.settled.add(outcome.item)
            self.tell(outcome)


def supervise(
    work: Work,
    over: Callable[[], bool],
    events: Path,
    tell: Callable[[Outcome], None],
    keep: Callable[[str, str], None],
) -> None:
    """Runs a process until all its items are settled, it is of no use to start it again, or time is over.

    Args:
        work: The process.
        over: Whether it must end now.
        events: The file between the two.
        tell: Is given each outcome.
        keep: Is given a heading and the output of each start.
    """
    watch = Watch(events, tell)
    for start in range(1, STARTS + 1):
        before = len(watch.settled)
        ending, output = _run_once(work, over, watch)
        keep(f"{work.name}, start {start}: {ending}", output)
        if watch.open is not None:
            state: State = "not run" if ending.startswith(CUT_OFF) else "failed"
            place = f", at {watch.place}" if watch.place else ""
            watch.settle(watch.open, state, ending + place, time.monotonic() - watch.heard_at)
        if watch.items is None:
            state = "not run" if ending.startswith(CUT_OFF) else "failed"
            return tell(Outcome(work.name, state, f"{ending} before its first item: {last_words(output)}"))
        if not watch.pending():
            return None
        if over():
            return _give_up(watch, "no time left for it")
        if len(watch.settled) == before:
            return _give_up(watch, f"the process {ending} without settling another item: {last_words(output)}")
    return _give_up(watch, f"the process was started {STARTS} times and did not come to it")


def _give_up(watch: Watch, reason: str) -> None:
    for item in watch.pending():
        watch.settle(item, "not run", reason)


def _run_once(work: Work, over: Callable[[], bool], watch: Watch) -> tuple[str, str]:
    """(how it ended, what it printed)"""
    log = watch.path.with_suffix(".log")
    with log.open("wb") as output:
        try:
            process = subprocess.Popen(
                work.command(watch.path),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=work.folder,
                env={**os.environ, "PYTHONUNBUFFERED": "1", **work.environment},
                process_group=0,  # so that what it starts can be ended with it
            )
        except OSError as error:
            return f"cannot be started ({error})", ""
    watch.heard_at = time.monotonic()
    ending = ""
    try:
        while process.poll() is None and not ending:
            time.sleep(POLL)
            watch.read()
            silent = time.monotonic() - watch.heard_at
            if over():
                ending = (
                    f"{CUT_OFF} after {silent:.0f} s: no time was left"
                    if silent <= SILENT
                    else f"no answer in {silent:.0f} s when its time was over"
                )
            elif silent > work.patience:
                ending = f"hung: no answer in {work.patience:.0f} s"
    finally:
        end_group(process)
    watch.read()
    return ending or how_it_ended(process.returncode), log.read_text(errors="replace")


def end_group(process: subprocess.Popen) -> None:
    """Ends a process and all that it has started, and waits for it."""
    for sign, wait in ((signal.SIGTERM, 2.0), (signal.SIGKILL, 20.0)):
        try:
            os.killpg(process.pid, sign)
        except ProcessLookupError:
            break
        try:
            process.wait(wait)
        except subprocess.TimeoutExpired:  # a GPU's driver may take a while to let go, or never
            continue
    process.poll()


def how_it_ended(status: int | None) -> str:
    if status is None:
        return "did not end when killed"
    if status == SPOILT:
        return "ended: the GPU could not be used any more"
    if status < 0:
        return f"crashed: signal {-status} ({signal.Signals(-status).name})"
    return f"ended with exit status {status}"


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The complete lines of the file; one that was cut short by a kill is no line."""
    if not path.exists():
        return []
    lines = []
    for line in path.read_text().splitlines(keepends=True):
        try:
            lines.append(json.loads(line) if line.endswith("\n") else None)
        except ValueError:
            lines.append(None)
    return [line for line in lines if line is not None]


def first_lines(text: str, most: int = 600) -> str:
    text = " ".join(text.split())
    return text if len(text) <= most else text[:most] + "…"


def last_words(output: str) -> str:
    text = " ".join(output.split())
    return text if len(text) <= TAIL else "…" + text[-TAIL:]
