"""Settle everything on a GPU with one command: build, run the tests marked gpu, measure, and write a report.

    make gpu                                              set up .venv first
    python -m benchmarks.acceptance --out DIR             without a package registry, if the packages are installed

DIR/acceptance.json holds every result, DIR/acceptance.md a one-page report, and DIR/output.log what the parts printed.
Each part runs in processes of its own under a time limit. A process that crashes, hangs or loses the GPU does not
affect the other parts, and both files are rewritten after every result. docs/gpu.md explains the parts. The command
runs in a checkout and needs only Python to start: its first part installs the package.
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
from functools import partial
from pathlib import Path
from typing import Any

from ..machine import command_line
from .build import site_environment
from .report import judged, page
from .supervise import NotRun, Outcome, Worker, describe_exit, shortened, supervise, tail_of

ROOT = Path(__file__).resolve().parents[2]
IMPORT_SECONDS = 60.0  # to import the package, possibly from a cold disk
NOT_FOR_A_CPU = "--device cpu: it needs a GPU"


@dataclass(frozen=True)
class Context:
    """What every part knows about the run."""

    device: str  # "cuda", "cpu" to try the run at small sizes, or "none"
    machine: dict[str, Any]
    only_tests: str  # expression for pytest's -k

    @property
    def processes(self) -> int:
        """The number of processes that may check correctness at the same time."""
        return max(1, min(6, self.machine.get("processors", 1) // 2))


@dataclass(frozen=True)
class Part:
    """One part of the run: a title, a share of the time, and its worker processes or the reason for having none.

    A worker's patience is below the share, so that a hanging worker leaves time for the workers after it. The build is
    an exception, because its compilers print nothing while they work.
    """

    title: str
    seconds: float  # its share; unused time passes to later parts
    workers: Callable[[Context], list[Worker] | str]
    parallel: Callable[[Context], int] = lambda context: 1


def module_worker(name: str, *arguments: str, patience: float, title: str = "") -> Worker:
    """Return a worker that runs a module of this folder."""

    def command(events: Path) -> list[str]:
        return [sys.executable, "-m", f"benchmarks.acceptance.{name}", *arguments, "--events", str(events)]

    return Worker(title or name, command, patience, ROOT, site_environment())


def build_workers(context: Context) -> list[Worker] | str:
    if context.device == "cpu":
        return NOT_FOR_A_CPU
    return [module_worker("build", "--capability", context.machine["capability"], patience=400)]


def test_workers(context: Context) -> list[Worker] | str:
    if context.device == "cpu":
        return NOT_FOR_A_CPU
    count = context.processes

    def command(shard: int) -> Callable[[Path], list[str]]:
        options = ["-m", "gpu", "-q", "--continue-on-collection-errors", "-p", "no:cacheprovider"]
        options += ["-k", context.only_tests] if context.only_tests else []
        options += ["-p", "benchmarks.acceptance.pytest_events", "--shard", f"{shard}/{count}"]
        return lambda events: [sys.executable, "-m", "pytest", *options, "--events", str(events), "tests"]

    titles = [f"tests {shard + 1} of {count}" for shard in range(count)]
    return [Worker(title, command(shard), 60, ROOT, site_environment()) for shard, title in enumerate(titles)]


def parity_workers(context: Context) -> list[Worker] | str:
    return [
        module_worker("items", "parity", "--device", context.device, "--kernel", name, patience=40, title=name)
        for name in kernels(context)
    ]


def kernels(context: Context) -> list[str]:
    """Return the kernel names of gpu_kernels.py, read by a process because that module imports the package."""
    command = [sys.executable, "-m", "benchmarks.acceptance.gpu_kernels", "--device", context.device]
    environment = {**os.environ, **site_environment()}
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=IMPORT_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"importing the package hung: no answer for {IMPORT_SECONDS:g} s") from None
    ending = describe_exit(done.returncode)
    if done.returncode < 0:  # a crash, possibly without a message
        raise RuntimeError(f"importing the package {ending} {tail_of(done.stderr)}".rstrip())
    if done.returncode > 0:
        raise NotRun(f"the package cannot be imported: {tail_of(done.stderr) or ending}")
    return done.stdout.split()


def loss_workers(context: Context) -> list[Worker] | str:
    return [module_worker("items", "loss", "--device", context.device, patience=60, title="loss")]


def dtype_workers(context: Context) -> list[Worker] | str:
    return [module_worker("dtypes", "--device", context.device, patience=30, title="dtypes")]


def choice_workers(context: Context) -> list[Worker] | str:
    if context.device == "cpu":
        return NOT_FOR_A_CPU
    return [module_worker("choices", patience=15)]


def step_workers(context: Context) -> list[Worker] | str:
    return [module_worker("items", "step", "--device", context.device, patience=45, title="step")]


def graph_workers(context: Context) -> list[Worker] | str:
    if context.device == "cpu":
        return NOT_FOR_A_CPU
    return [module_worker("items", "graph", "--device", context.device, patience=30, title="graph")]


def sanitizer_workers(context: Context) -> list[Worker] | str:
    if context.device == "cpu":
        return NOT_FOR_A_CPU
    if context.machine.get("compute_sanitizer") is None:
        return "compute-sanitizer was not found; it comes with the CUDA toolkit"
    return [
        module_worker("sanitize", "--kernel", name, "--tool", tool, patience=55, title=f"{tool} {name}")
        for name in kernels(context)
        for tool in ("memcheck", "racecheck")
    ]


def loader_workers(context: Context) -> list[Worker] | str:
    return [module_worker("items", "loader", "--device", context.device, patience=25, title="loader")]


def pixel_workers(context: Context) -> list[Worker] | str:
    return [module_worker("pixels", "--device", context.device, patience=30, title="pixels")]


def video_workers(context: Context) -> list[Worker] | str:
    return [module_worker("items", "video", "--device", context.device, patience=45, title="video")]


PARTS = {
    "build": Part("Extension built for this GPU", 130, build_workers),
    "tests": Part("Tests marked gpu", 120, test_workers, lambda context: context.processes),
    "parity": Part("Parity at real sizes", 60, parity_workers, lambda context: context.processes),
    "loss": Part("The loss against its peers", 95, loss_workers),
    "dtypes": Part("Mixes of dtypes", 35, dtype_workers),
    "choices": Part("Choices of the Hopper kernel", 25, choice_workers),
    "step": Part("Training step", 50, step_workers),
    "graph": Part("Training step in a CUDA graph", 45, graph_workers),
    "sanitizer": Part("compute-sanitizer", 60, sanitizer_workers, lambda context: context.processes),
    "loader": Part("DALI on the GPU", 30, loader_workers),
    "pixels": Part("Kernel that finishes views", 35, pixel_workers),
    "video": Part("Videos by NVDEC, R3D", 90, video_workers),
}


class Run:
    """The record of a run; its two files are rewritten after every result."""

    def __init__(self, out: Path, settings: dict[str, Any]) -> None:
        self.out = out
        self.lock = threading.RLock()
        self.stopped = threading.Event()  # by a signal
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        self.record: dict[str, Any] = {"started": now, "seconds": 0.0, "finished": False, "settings": settings}
        self.record |= {"machine": None, "parts": {}}
        self.began = time.monotonic()
        out.mkdir(parents=True, exist_ok=True)
        (out / "output.log").write_text("")

    def set_state(self, name: str, state: str, reason: str = "") -> None:
        """Record that a part begins ("running") or how it ended."""
        with self.lock:
            part = self.record["parts"].setdefault(name, {"title": PARTS[name].title, "outcomes": []})
            now = time.monotonic() - self.began
            began = part.setdefault("began", now)
            part |= {"state": state, "reason": reason, "seconds": round(now - began, 1)}
            self.write()
        print(f"{now:6.0f} s  {name:<10}{state}{': ' + reason if reason else ''}", flush=True)

    def add_outcome(self, name: str, outcome: Outcome) -> None:
        """Record an outcome of a part."""
        with self.lock:
            self.record["parts"][name]["outcomes"].append(asdict(outcome))
            self.write()
        if outcome.state == "failed":
            print(f"          {name}: {outcome.item} failed: {outcome.reason[:300]}", flush=True)

    def add_output(self, heading: str, output: str) -> None:
        """Append a process's output to output.log."""
        with self.lock, (self.out / "output.log").open("a") as log:
            log.write(f"{'=' * 100}\n{heading}\n{output.rstrip()}\n")

    def write(self) -> None:
        with self.lock:
            self.record["seconds"] = round(time.monotonic() - self.began, 1)
            self.record["targets"] = judged(self.record)
            for name, text in (("acceptance.json", json.dumps(self.record, indent=1)), ("acceptance.md", self.page())):
                temporary = self.out / f".{name}"
                temporary.write_text(text + "\n")
                temporary.replace(self.out / name)

    def page(self) -> str:
        return page(self.record)


def look_at_machine(commit: str | None) -> dict[str, Any]:
    """Return machine.machine() from a process of its own, which a broken driver may crash."""
    command = [sys.executable, "-m", "benchmarks.machine"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=True)
        machine = json.loads(done.stdout)
    except (subprocess.SubprocessError, ValueError) as error:
        lines = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
        machine = {"gpu": None, "no_gpu": f"looking at the machine failed: {lines[-1] if lines else error}"}
    return {**machine, "command": command_line()} | ({"commit": commit} if commit else {})


def run_part(run: Run, name: str, context: Context, until: float, folder: Path) -> None:
    """Run the workers of a part and record its state."""
    part = PARTS[name]
    if run.stopped.is_set():
        return run.set_state(name, "not run", "the run was stopped by a signal")
    if context.device == "none":
        return run.set_state(name, "not run", context.machine["no_gpu"])
    try:
        workers = part.workers(context)
    except NotRun as error:
        return run.set_state(name, "not run", shortened(str(error)))
    except Exception as error:  # any failure is this part's result, and the other parts continue
        return run.set_state(name, "failed", shortened(str(error) or type(error).__name__))
    if isinstance(workers, str):
        return run.set_state(name, "not run", workers)
    run.set_state(name, "running")

    def time_is_over() -> bool:
        return run.stopped.is_set() or time.monotonic() > until

    with ThreadPoolExecutor(part.parallel(context)) as pool:
        files = (folder / f"{name}_{i}.jsonl" for i in range(len(workers)))
        tasks = [
            pool.submit(supervise, worker, time_is_over, file, partial(run.add_outcome, name), run.add_output)
            for worker, file in zip(workers, files, strict=True)
        ]
        for task in tasks:
            task.result()
    outcomes = run.record["parts"][name]["outcomes"]
    counts = {state: sum(o["state"] == state for o in outcomes) for state in ("passed", "failed", "not run")}
    state = next((state for state in ("failed", "passed") if counts[state]), "not run")
    return run.set_state(name, state, ", ".join(f"{count} {state}" for state, count in counts.items() if count))


def main(
    out: Path = Path("runs/gpu"),
    only: tuple[str, ...] = (),
    minutes: float = 9.5,
    device: str = "auto",
    tests: str = "",
    commit: str | None = None,
) -> bool:
    """Build, test and measure on a GPU, part by part; return False if any part failed.

    Args:
        out: Folder for acceptance.json, acceptance.md and output.log.
        only: Names of the parts to run; all by default.
        minutes: Time limit of the whole run.
        device: auto, or cpu to try the run at small sizes without a GPU.
        tests: Run only the tests that match this expression, as with pytest's -k.
        commit: Commit to record if the checkout is a copy without .git.
    """
    for name in only:
        if name not in PARTS:
            raise ValueError(f"unknown part {name!r}: expected some of {', '.join(PARTS)}")
    if device not in ("auto", "cpu"):
        raise ValueError(f"device={device!r}: expected auto or cpu")
    if not (ROOT / "tests").is_dir():
        raise ValueError(f"{ROOT}: there is no folder tests; run the acceptance run in a checkout")
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
        print(f"To keep the results, commit the first two files in {results_folder(machine['gpu'])}", flush=True)
    return all(part["state"] != "failed" for part in run.record["parts"].values())


def results_folder(gpu: str) -> Path:
    """Return the folder in which the records of a GPU's run are committed."""
    name = re.sub(r"[^a-z0-9]+", "_", gpu.lower().removeprefix("nvidia")).strip("_")
    return Path("benchmarks", "results", name, datetime.date.today().isoformat())


def cli() -> None:
    """Parse the command line with argparse, because tyro may not be installed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.acceptance", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"), help="folder for the results")
    parser.add_argument("--only", default="", help=f"comma-separated parts to run, of {','.join(PARTS)}")
    parser.add_argument("--minutes", type=float, default=9.5, help="time limit of the whole run (9.5)")
    parser.add_argument("--device", choices=("auto", "cpu"), default="auto", help="cpu: small sizes, without a GPU")
    parser.add_argument("--tests", default="", help="run only the tests that match, as with pytest's -k")
    parser.add_argument("--commit", help="commit to record if the checkout is a copy without .git")
    options = vars(parser.parse_args())
    options["only"] = tuple(filter(None, options["only"].split(",")))
    try:
        passed = main(**options)
    except ValueError as error:
        sys.exit(f"acceptance: {error}")
    sys.exit(0 if passed else 1)
