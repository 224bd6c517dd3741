"""sce-fast: a word for what to do; its options are made from the configs and functions themselves."""

import dataclasses
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from sce_fast.util.files import printable
from sce_fast.util.names import pick

EXTRA_OF = {
    "nvidia": "cuda130",
    "tyro": "train",
    "tqdm": "train",
    "safetensors": "train",
    "numpy": "train",
    "sklearn": "evaluate",
    "matplotlib": "pictures",
    "PIL": "pictures",
}
_WARN = warnings.showwarning
USAGE = """\
usage: sce-fast COMMAND …            sce-fast COMMAND --help for its options

{commands}

A first look: sce-fast demo          your own images: sce-fast train folder --data DIR"""


def train(arguments: list[str]) -> None:
    """train RECIPE --data DIR: pretrain on images; --resume goes on where a run stopped"""
    import tyro

    from sce_fast.recipes import RECIPES

    if not arguments or arguments[0] in ("-h", "--help"):
        recipes = "\n".join(f"  {name:<10}{_first_line(make)}" for name, make in RECIPES.items())
        print(
            f"usage: sce-fast train RECIPE --data DIR …     sce-fast train RECIPE --help for its options\n\n{recipes}"
        )
        sys.exit(0 if arguments else 2)
    name, *rest = arguments
    make = pick("recipe", name, RECIPES)
    default = dataclasses.replace(make(data=Path()), data=tyro.MISSING)
    config = tyro.cli(
        type(default), default=default, args=rest, prog=f"sce-fast train {name}", description=make.__doc__
    )
    from sce_fast.tools.train import pretrain
    from sce_fast.train.folder import SUMMARY

    summary = pretrain(config)
    if int(os.environ.get("RANK", 0)) > 0:
        return
    print(f"{summary.steps} steps at {summary.images_per_second} images/s, final loss {summary.final_loss:.4f}")
    out = printable(config.out)
    pictures = [path.name for path in sorted(config.out.glob("*.png"))]
    print(f"In {out}: {', '.join([SUMMARY, *pictures])}; next, sce-fast embed {out} DIR")


def embed(arguments: list[str]) -> None:
    """embed RUN DIR: features of images as safetensors, with file names"""
    import tyro

    from sce_fast.config import Device

    def run(
        run: Annotated[Path, tyro.conf.Positional],
        data: Annotated[Path, tyro.conf.Positional],
        /,
        out: Path | None = None,
        device: Device = "auto",
        batch_size: int = 256,
    ) -> None:
        """Features of all images under DATA from the backbone of RUN.

        Args:
            run: Run folder, or a file that sce-fast export has written.
            data: Folder or list file of images.
            out: The file; by default features_NAME.safetensors in the run folder, or beside the exported file.
            device: auto takes the GPU when there is one.
            batch_size: Images at a time.
        """
        from sce_fast.tools.embed import embed

        print(printable(embed(run, data, out=out, device=device, batch_size=batch_size)))

    tyro.cli(run, args=arguments, prog="sce-fast embed")


def export(arguments: list[str]) -> None:
    """export RUN --out FILE: the backbone as safetensors with torchvision's parameter names"""
    import tyro

    def run(run: Annotated[Path, tyro.conf.Positional], /, out: Path, momentum: bool = False) -> None:
        """Writes the backbone of RUN's newest checkpoint, with its architecture and normalisation as metadata.

        Args:
            run: Run folder.
            out: The file, which must not exist.
            momentum: The momentum encoder's backbone instead of the student's.
        """
        from sce_fast.export import export

        print(printable(export(run, out=out, momentum=momentum)))

    tyro.cli(run, args=arguments, prog="sce-fast export")


def evaluate(arguments: list[str]) -> None:
    """evaluate knn | linear: what frozen features are worth on labelled images"""
    methods = {"knn": _evaluate_knn, "linear": _evaluate_linear}
    if not arguments or arguments[0] in ("-h", "--help"):
        lines = "\n".join(f"  {name:<8}{_first_line(method)}" for name, method in methods.items())
        print(
            f"usage: sce-fast evaluate METHOD …     sce-fast evaluate METHOD --help for its options\n\n{lines}\n\n"
            "The published linear protocol (SGD on augmented images) and transfer are not there yet."
        )
        sys.exit(0 if arguments else 2)
    name, *rest = arguments
    pick("evaluation", name, methods)(rest)


def _evaluate_knn(arguments: list[str]) -> None:
    """the vote of the nearest train images, weighted by similarity"""
    import tyro

    from sce_fast.tools.evaluate import knn

    print(tyro.cli(knn, args=arguments, prog="sce-fast evaluate knn"))


def _evaluate_linear(arguments: list[str]) -> None:
    """logistic regression on frozen features"""
    import tyro

    from sce_fast.tools.evaluate import linear

    print(tyro.cli(linear, args=arguments, prog="sce-fast evaluate linear"))


def scan(arguments: list[str]) -> None:
    """scan DIR: decode every image and name the bad ones; exit status 1 if there are any"""
    import tyro

    def run(
        data: Annotated[Path, tyro.conf.Positional],
        /,
        quick: bool = False,
        threads: int | None = None,
        out: Path | None = None,
    ) -> bool:
        """Looks for files that training would have to replace: missing, empty, damaged, no images.

        Args:
            data: Folder or list file of images.
            quick: Read headers alone; a truncated file may look good.
            threads: That decode; by default one for each core.
            out: File for the bad ones, which must not exist: a line each of path, tab, reason.
        """
        from sce_fast.tools.scan import scan

        found = scan(data, quick=quick, threads=threads, out=out)
        print(found.table())
        return not found.bad

    if not tyro.cli(run, args=arguments, prog="sce-fast scan"):
        sys.exit(1)


def demo(arguments: list[str]) -> None:
    """demo: learn from real digit images in about two minutes on two CPU cores"""
    import tyro

    from sce_fast.tools.demo import run_demo

    tyro.cli(run_demo, args=arguments, prog="sce-fast demo")


def report(arguments: list[str]) -> None:
    """report RUN: curves and pictures of a run"""
    import tyro

    def run(run: Annotated[Path, tyro.conf.Positional], /) -> None:
        """Draws loss, kNN, view pairs and nearest neighbours into the run folder.

        Args:
            run: Run folder.
        """
        from sce_fast.tools.report import write_report

        for picture in write_report(run):
            print(printable(picture))

    tyro.cli(run, args=arguments, prog="sce-fast report")


def doctor(arguments: list[str]) -> None:
    """doctor: versions, devices, and which backends of the loss run here"""
    import tyro

    def run() -> None:
        """Prints what is installed, what is missing, and which backends of the loss serve which dtypes."""
        from sce_fast.tools.doctor import report

        print(report())

    tyro.cli(run, args=arguments, prog="sce-fast doctor")


def parity(arguments: list[str]) -> None:
    """parity: each backend's errors against float64, beside plain PyTorch's; exit status 1 if one fails"""
    import tyro

    from sce_fast.tools.parity import main

    if not tyro.cli(main, args=arguments, prog="sce-fast parity"):
        sys.exit(1)


def bench(arguments: list[str]) -> None:
    """bench loss | step | loop | overhead | queue | loader | coefficient | acceptance: measure against named peers"""
    import tyro

    from sce_fast.benchmarks import coefficient, loader, loop, loss, overhead, queue, step
    from sce_fast.benchmarks.acceptance import run as acceptance

    benchmarks: dict[str, Callable[..., Any]] = {
        "loss": loss.main,
        "step": step.main,
        "loop": loop.main,
        "overhead": overhead.main,
        "queue": queue.main,
        "loader": loader.main,
        "coefficient": coefficient.main,
        "acceptance": acceptance.main,
    }
    if not arguments or arguments[0] in ("-h", "--help"):
        lines = "\n".join(f"  {name:<13}{_first_line(main)}" for name, main in benchmarks.items())
        print(f"usage: sce-fast bench NAME …     sce-fast bench NAME --help for its options\n\n{lines}")
        sys.exit(0 if arguments else 2)
    name, *rest = arguments
    result = tyro.cli(pick("benchmark", name, benchmarks), args=rest, prog=f"sce-fast bench {name}")
    if result is False:
        sys.exit(1)


COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "demo": demo,
    "scan": scan,
    "train": train,
    "evaluate": evaluate,
    "embed": embed,
    "export": export,
    "report": report,
    "doctor": doctor,
    "parity": parity,
    "bench": bench,
}


def main(arguments: list[str] | None = None) -> None:
    """Runs a command; what is wrong with the user's input ends in one line and exit status 2."""
    is_rank, status = int(os.environ.get("WORLD_SIZE", 1)) > 1, 0
    try:
        _run(arguments)
    except SystemExit as end:
        if not is_rank:
            raise
        status = int(end.code or 0)
    if is_rank:
        _end_at_once(status)


def _end_at_once(status: int) -> None:
    """Ends a rank without taking the interpreter down.

    torch's DDP leaves gloo's threads running, and now and then such an interpreter aborts while it ends (torch 2.13:
    "terminate called without an active exception"), so that torchrun would call a finished run failed.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _run(arguments: list[str] | None) -> None:
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE.format(commands="\n".join(f"  {_first_line(command)}" for command in COMMANDS.values())))
        sys.exit(0 if arguments else 2)
    name, *rest = arguments
    warnings.showwarning = _show_warning
    try:
        pick("command", name, COMMANDS)(rest)
    except (ValueError, TypeError, OSError, ImportError, RuntimeError, MemoryError) as error:
        if os.environ.get("SCE_FAST_TRACEBACK") == "1":
            raise
        print(f"sce-fast: {error}{_what_to_install(error)}\n(SCE_FAST_TRACEBACK=1 shows where)", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("sce-fast: interrupted", file=sys.stderr)
        sys.exit(130)


def _show_warning(message: Warning | str, category: type[Warning], filename: str, *place: Any, **more: Any) -> None:
    """This package's own warnings as a line for users, above a progress bar; others with the place they come from."""
    if issubclass(category, UserWarning) and Path(filename).is_relative_to(Path(__file__).parent):
        from sce_fast.util.terminal import say

        say(f"Warning: {message}")
    else:
        _WARN(message, category, filename, *place, **more)


def _what_to_install(error: Exception) -> str:
    """The extra that brings a missing module."""
    module = (error.name or "").split(".")[0] if isinstance(error, ImportError) else ""
    return f"; pip install 'sce_fast[{EXTRA_OF[module]}]'" if module in EXTRA_OF else ""


def _first_line(function: Callable[..., Any]) -> str:
    return (function.__doc__ or "").strip().splitlines()[0]
