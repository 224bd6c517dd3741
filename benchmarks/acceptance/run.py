"""One command that settles everything on a GPU: builds, runs all tests marked gpu, measures, and writes two pages.

    make gpu                                              sets up .venv first
    python -m benchmarks.acceptance --out DIR             where the packages are there and no registry is reached

DIR/acceptance.json holds every answer, DIR/acceptance.md one page of it, DIR/output.log what the parts printed. Each
part runs in processes of its own with a time limit; what crashes, hangs or spoils the GPU's context takes no other part
along, and both files are written anew with every answer. docs/gpu.md says what each part tells. The command runs in a
checkout and needs nothing but Python to start: the package is installed by its first part.
"""

import argparse
import datetime
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .build import with_site
from .report import judged, page
from .supervise import NotRun, Outcome, Work, first_lines, how_it_ended, last_words, supervise

ROOT = Path(__file__).resolve().parents[2]
IMPORT_SECONDS = 60.0  # for the import of the package, from a cold disk too
NOT_FOR_A_CPU = "--device cpu: it needs a GPU"


@dataclass(frozen=True)
class Context:
    """What the parts are told."""

    device: str  # "cuda", or "cpu" to try this out at small sizes
    machine: dict[str, Any]
    only_tests: str  # an expression for pytest's -k

    @property
    def processes(self) -> int:
        """How many may work on correctness at a time."""
        return max(1, min(6, self.machine.get("processors", 1) // 2))


@dataclass(frozen=True)
class Part:
    """A line of the table: what it is, its share of the time, and its processes or why there are none.

    A process is patient for less than the share, so that one that hangs leaves time to those behind it; but for the
    build, whose compilers say nothing for as long as they work.
    """

    title: str
    seconds: float  # its share; what one part leaves goes to those after it
    works: Callable[[Context], list[Work] | str]
    at_a_time: Callable[[Context], int] = lambda context: 1


def module(name: str, *arguments: str, patience: float, title: str = "") -> Work:
    """A module of this folder as a process."""

    def command(events: Path) -> list[str]:
        return [sys.executable, "-m", f"benchmarks.acceptance.{name}", *arguments, "--events", str(events)]

    return Work(title or name, command, patience, ROOT, with_site())


def build(context: Context) -> list[Work] | str:
    if context.device == "cpu":
        return NOT_FOR_A_CPU
    return [module("build", "--capability", context.machine["capability"], patience=400, title="build")]


def tests(context: Context) -> list[Work] | str:
    if context.device == "cpu":
        return NOT_FOR_A_CPU
    count = context.processes

    def command(shard: int) -> Callable[[Path], list[str]]:
        options = ["-m", "gpu", "-q", "--continue-on-collection-errors", "-p", "no:cacheprovider"]
        options += ["-k", context.only_tests] if context.only_tests else []
        mine = ["-p", "benchmarks.acceptance.pytest_events", "--shard", f"{shard}/{count}"]
        return lambda events: [sys.executable, "-m", "pytest", *options, *mine, "--events", str(events), "tests"]

    return [Work(f"tests {shard + 1} of {count}", command(shard), 60, ROOT, with_site()) for shard in range(count)]


def parity(context: Context) -> list[Work] | str:
    return [
        module("work", "parity", "--device", context.device, "--kernel", name, patience=40, title=name)
        for name in kernels(context)
    ]


def kernels(context: Context) -> list[str]:
    """Of gpu_kernels.py, by a process: its table imports the package."""
    names = "KERNELS" if context.device == "cuda" else "backends_of_a_cpu()"
    code = f"from sce_fast.benchmarks.acceptance.gpu_kernels import KERNELS, backends_of_a_cpu; print(*{names})"
    command, environment = [sys.executable, "-c", code], {**os.environ, **with_site()}
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=IMPORT_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"importing the package hung: no answer in {IMPORT_SECONDS:g} s") from None
    if done.returncode < 0:  # a crash, which may have said nothing
        raise RuntimeError(f"importing the package {how_it_ended(done.returncode)} {last_words(done.stderr)}".rstrip())
    if done.returncode > 0:
        raise NotRun(f"the package cannot be imported: {last_words(done.stderr) or how_it_ended(done.returncode)}")
    return done.stdout.split()


def loss(context: Context) -> list[Work] | str:
    return [module("work", "loss", "--device", context.device, patience=60, title="loss")]


def step(context: Context) -> list[Work] | str:
    return [module("work", "step", "--device", context.device, patience=45, title="step")]


def sanitizer(context: Context) -> list[Work] | str:
    if context.device == "cpu":
        return NOT_FOR_A_CPU
    if context.machine.get("compute_sanitizer") is None:
        return "there is no compute-sanitizer; it comes with the CUDA toolkit"
    return [
        module("sanitize", "--kernel", name, "--tool", tool, patience=55, title=f"{tool} {name}")
        for name in kernels(context)
        for tool in ("memcheck", "racecheck")
    ]


def loader(context: Context) -> list[Work] | str:
    return [module("work", "loader", "--device", context.device, patience=25, title="loader")]


PARTS = {
    "build": Part("Extension built for this GPU", 110, build),
    "tests": Part("Tests marked gpu", 130, tests, lambda context: context.processes),
    "parity": Part("Parity at real sizes", 70, parity, lambda context: context.processes),
    "loss": Part("The loss against its peers", 130, loss),
    "step": Part("Training step", 50, step),
    "sanitizer": Part("compute-sanitizer", 60, sanitizer, lambda context: context.processes),
    "loader": Part("DALI on the GPU", 30, loader),
}


class Run:
    """The record, and the two files that are written anew with each answer."""

    def __init__(self, out: Path, settings: dict[str, Any]) -> None:
        self.out = out
        self.lock = threading.RLock()
        self.stopped = threading.Event()  # from outside
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        self.record: dict[str, Any] = {"started": now, "seconds": 0.0, "finished": False, "settings": settings}
        self.record |= {"machine": None, "parts": {}}
        self.began = time.monotonic()
        out.mkdir(parents=True, exist_ok=True)
        (out / "output.log").write_text("")

    def part(self, name: str, state: str, reason: str = "") -> None:
        """A part begins ("running") or ends."""
        with self.lock:
            part = self.record["parts"].setdefault(name, {"title": PARTS[name].title, "outcomes": []})
            now = time.monotonic() - self.began
            began = part.setdefault("began", now)
            part |= {"state": state, "reason": reason, "seconds": round(now - began, 1)}
            self.write()
        print(f"{now:6.0f} s  {name:<10}{state}{': ' + reason if reason else ''}", flush=True)

    def tell(self, name: str) -> Callable[[Outcome], None]:
        def tell(outcome: Outcome) -> None:
            with self.lock:
                self.record["parts"][name]["outcomes"].append(asdict(outcome))
                self.write()
            if outcome.state == "failed":
                print(f"          {name}: {outcome.item} failed: {outcome.reason[:300]}", flush=True)

        return tell

    def keep(self, heading: str, output: str) -> None:
        with self.lock, (self.out / "output.log").open("a") as log:
            log.write(f"{'=' * 100}\n{heading}\n{output.rstrip()}\n")

    def write(self) -> None:
        with self.lock:
            self.record["seconds"] = round(time.monotonic() - self.began, 1)
            self.record["targets"] = judged(self.record)
            for name, text in (("acceptance.json", json.dumps(self.record, indent=1)), ("acceptance.md", self.page())):
                part_written = self.out / f".{name}"
                part_written.write_text(text + "\n")
                part_written.replace(self.out / name)

    def page(self) -> str:
        return page(self.record)


def look_at_machine(commit: str | None) -> dict[str, Any]:
    """gpu_machine.py in a process of its own: a broken driver must not take this one along."""
    command = [sys.executable, "-m", "benchmarks.machine"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=True)
        machine = json.loads(done.stdout)
    except (subprocess.SubprocessError, ValueError) as error:
        said = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
        machine = {"gpu": None, "no_gpu": f"looking at the machine failed: {said[-1] if said else error}"}
    return machine | ({"commit": commit} if commit else {})


def run_part(run: Run, name: str, context: Context, until: float, folder: Path) -> None:
    """All processes of a part, some at a time."""
    part, tell = PARTS[name], run.tell(name)
    if run.stopped.is_set():
        return run.part(name, "not run", "the run was ended from outside")
    if context.device == "none":
        return run.part(name, "not run", context.machine["no_gpu"])
    try:
        works = part.works(context)
    except NotRun as reason:
        return run.part(name, "not run", first_lines(str(reason)))
    except Exception as error:  # whatever it is, it is this part's answer, and the others go on
        return run.part(name, "failed", first_lines(str(error) or type(error).__name__))
    if isinstance(works, str):
        return run.part(name, "not run", works)
    run.part(name, "running")
    with ThreadPoolExecutor(part.at_a_time(context)) as pool:
        files = (folder / f"{name}_{i}.jsonl" for i in range(len(works)))
        tasks = [
            pool.submit(supervise, work, lambda: run.stopped.is_set() or time.monotonic() > until, file, tell, run.keep)
            for work, file in zip(works, files, strict=True)
        ]
        for task in tasks:
            task.result()
    outcomes = run.record["parts"][name]["outcomes"]
    counts = {state: sum(o["state"] == state for o in outcomes) for state in ("passed", "failed", "not run")}
    state = next((state for state in ("failed", "passed") if counts[state]), "not run")
    return run.part(name, state, ", ".join(f"{count} {state}" for state, count in counts.items() if count))


def main(
    out: Path = Path("runs/gpu"),
    only: tuple[str, ...] = (),
    minutes: float = 9.5,
    device: str = "auto",
    tests: str = "",
    commit: str | None = None,
) -> bool:
    """Runs the parts one after another; False where one failed.

    Args:
        out: Folder of acceptance.json, acceptance.md and output.log.
        only: Some of the parts, by default all.
        minutes: For everything.
        device: auto, or cpu to try the run itself out at small sizes without a GPU.
        tests: Only tests that match, as pytest's -k.
        commit: Named in the record where the checkout is a copy without .git.
    """
    for name in only:
        if name not in PARTS:
            raise ValueError(f"unknown part {name!r}: expected some of {', '.join(PARTS)}")
    if device not in ("auto", "cpu"):
        raise ValueError(f"device={device!r}: expected auto or cpu")
    if not (ROOT / "tests").is_dir():
        raise ValueError(f"{ROOT}: the acceptance run needs a checkout, with its tests")
    chosen = [name for name in PARTS if not only or name in only]
    run = Run(out, {"parts": chosen, "minutes": minutes, "device": device})
    before = {sign: signal.signal(sign, lambda *_: run.stopped.set()) for sign in (signal.SIGTERM, signal.SIGINT)}
    end = run.began + 60 * minutes
    machine = run.record["machine"] = look_at_machine(commit)
    context = Context("cpu" if device == "cpu" else "cuda" if machine["gpu"] else "none", machine, tests)
    try:
        with tempfile.TemporaryDirectory(prefix="acceptance_") as folder:
            for i, name in enumerate(chosen):
                share = PARTS[name].seconds / sum(PARTS[later].seconds for later in chosen[i:])
                now = time.monotonic()
                run_part(run, name, context, now + share * max(end - now, 0), Path(folder))
        run.record["finished"] = not run.stopped.is_set()
    finally:
        run.write()
        for sign, handler in before.items():
            signal.signal(sign, handler)
    print(f"\n{run.page()}\n\nIn {out}: acceptance.json, acceptance.md, output.log", flush=True)
    if machine["gpu"]:
        print(f"To keep it, commit the first two in {place_of_results(machine['gpu'])}", flush=True)
    return all(part["state"] != "failed" for part in run.record["parts"].values())


def place_of_results(gpu: str) -> Path:
    """Where the records of a GPU's run are committed."""
    name = re.sub(r"[^a-z0-9]+", "_", gpu.lower().removeprefix("nvidia")).strip("_")
    return Path("benchmarks", "results", name, datetime.date.today().isoformat())


def command_line() -> None:
    """By argparse: tyro may not be there."""
    options = argparse.ArgumentParser(prog="python -m benchmarks.acceptance", description=__doc__.splitlines()[0])
    options.add_argument("--out", type=Path, default=Path("runs/gpu"), help="folder for the answers")
    options.add_argument("--only", default="", help=f"some of {','.join(PARTS)}, with commas between them")
    options.add_argument("--minutes", type=float, default=9.5, help="for everything (9.5)")
    options.add_argument("--device", choices=("auto", "cpu"), default="auto", help="cpu: small sizes, to try this out")
    options.add_argument("--tests", default="", help="only tests that match, as pytest's -k")
    options.add_argument("--commit", help="named in the record where the checkout is a copy without .git")
    given = vars(options.parse_args())
    given["only"] = tuple(filter(None, given["only"].split(",")))
    try:
        passed = main(**given)
    except ValueError as error:
        sys.exit(f"acceptance: {error}")
    sys.exit(0 if passed else 1)


if __name__ == "__main__":
    command_line()
