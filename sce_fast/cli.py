"""Command-line entry point: a table of commands. Their options are the parameters of the functions they run."""

import argparse
import dataclasses
import importlib
import importlib.metadata
import inspect
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import sce_fast
from sce_fast.util.files import printable
from sce_fast.util.names import pick
from sce_fast.util.settings import unchecked

# Modules whose distribution has another name.
DISTRIBUTIONS = {"nvidia": "nvidia-dali-cuda130", "sklearn": "scikit-learn", "PIL": "pillow"}


NOWHERE = Path("\0")  # no file or folder has this name, so a recipe that looks at its images finds none


@dataclass(frozen=True)
class Command:
    """A command that runs a function. The function's signature and docstring give the options and their help."""

    usage: str  # what follows the command's name
    help: str  # one line
    function: str  # module:function, imported when the command runs
    show: Callable[[Any], str] | None = None  # what to print of the function's result
    passed: Callable[[Any], bool] = lambda result: result is not False  # otherwise the exit status is 1

    def run(self, prog: str, arguments: list[str]) -> None:
        module, _, name = self.function.partition(":")
        function = getattr(importlib.import_module(module), name)
        if arguments or inspect.signature(function).parameters:
            import tyro

            function = partial(tyro.cli, function, args=arguments, prog=prog)
        result = function()
        if self.show is not None:
            print(self.show(result))
        if not self.passed(result):
            sys.exit(1)


@dataclass(frozen=True)
class Recipe:
    """Training with a recipe, which is called with the settings that are typed as options."""

    make: Callable[..., Any]
    usage = "--data DIR"

    @property
    def help(self) -> str:
        return self.description.splitlines()[0]

    @property
    def description(self) -> str:
        return (inspect.getdoc(self.make) or self.make.__name__).partition("\n\nArgs:")[0]

    def run(self, prog: str, arguments: list[str]) -> None:
        from sce_fast.tools.dry_run import dry_run
        from sce_fast.tools.train import pretrain

        config, is_dry = self.parse(prog, arguments)
        if is_dry:
            dry_run(config)
        else:
            pretrain(config)

    def parse(self, prog: str, arguments: list[str]) -> tuple[Any, bool]:
        """Return the config of the command, and whether the run is a dry one.

        With --resume, the settings that are not typed are those of the run in the folder, if it holds one.
        """
        import tyro

        from sce_fast.train.folder import holds_a_run, read_config
        from sce_fast.train.resuming import resumed_config

        default = self.make(NOWHERE)
        out = _value_of("--out", arguments) or default.out
        resumes = "--resume" in arguments and holds_a_run(Path(out))
        shown = _with_dry_run(unchecked(read_config(out) if resumes else default))
        if not resumes:
            object.__setattr__(shown, "data", tyro.MISSING)
        parsed = tyro.cli(type(shown), default=shown, args=arguments, prog=prog, description=self.description)
        given = _given(parsed, _typed_options(arguments))
        is_dry = given.pop("dry_run", False)
        return resumed_config(given.pop("out", out), **given) if resumes else self.make(**given), is_dry


def _with_dry_run(settings: Any) -> Any:
    """Return settings with one more: dry_run, which belongs to the command and not to the config."""
    from tyro.conf import FlagCreatePairsOff, arg

    help = "Build and check everything, print the plan and take two steps with a small batch, without training."
    entry = ("dry_run", Annotated[bool, FlagCreatePairsOff, arg(help=help)], dataclasses.field(default=False))
    base = type(settings)
    kind = dataclasses.make_dataclass(base.__name__, [entry], bases=(base,), frozen=True, kw_only=True)
    kind.__doc__ = base.__doc__
    return kind(**{field.name: getattr(settings, field.name) for field in dataclasses.fields(settings)})


def _value_of(option: str, arguments: list[str]) -> str | None:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument(option, nargs="?", dest="value")
    return parser.parse_known_args(arguments)[0].value


def _typed_options(arguments: list[str]) -> set[str]:
    """Return the options among the arguments as names of settings, such as "loss.temperature"."""
    options = {word[2:].partition("=")[0].replace("-", "_") for word in arguments if word.startswith("--")}
    return options | {re.sub(r"(^|\.)no_", r"\1", option) for option in options}


def _given(settings: Any, typed: set[str], prefix: str = "") -> dict[str, Any]:
    """Return the values of the settings that are typed, by name; those of sections as dicts."""
    found: dict[str, Any] = {}
    for field in dataclasses.fields(settings):
        value, name = getattr(settings, field.name), f"{prefix}{field.name}"
        if dataclasses.is_dataclass(value):
            if section := _given(value, typed, f"{name}."):
                found[field.name] = section
        elif name in typed:
            found[field.name] = value
    return found


@dataclass(frozen=True)
class Group:
    """A command that is followed by the name of one of several commands; without a name it lists them."""

    kind: str  # what the names stand for, in messages
    usage: str
    help: str
    commands: Callable[[], Mapping[str, "Command | Recipe | Group"]]  # called when needed: it may import a module
    note: str = ""

    def run(self, prog: str, arguments: list[str]) -> None:
        if not arguments or arguments[0] in ("-h", "--help"):
            print(self.listing(prog))
            sys.exit(0 if arguments else 2)
        name, *rest = arguments
        pick(self.kind, name, self.commands()).run(f"{prog} {name}", rest)

    def listing(self, prog: str) -> str:
        commands = self.commands()
        names = {name: f"{name} {command.usage}".rstrip() for name, command in commands.items()}
        width = max(map(len, names.values())) + 2
        lines = [f"usage: {prog} {self.usage} …", f"       {prog} {self.usage.split()[0]} --help for its options", ""]
        lines += [f"  {names[name]:<{width}}{command.help}" for name, command in commands.items()]
        return "\n".join([*lines, *(["", self.note] if self.note else [])])


def recipes() -> dict[str, Recipe]:
    """Return the recipes as commands."""
    from sce_fast.recipes import RECIPES

    return {name: Recipe(make) for name, make in RECIPES.items()}


def _bench(name: str, help: str) -> Command:
    return Command("", help, f"sce_fast.benchmarks.{name}:main")


EVALUATIONS = {
    "knn": Command("[RUN]", "weighted vote of the nearest train images", "sce_fast.tools.evaluate:knn"),
    "logistic": Command("[RUN]", "logistic regression on frozen features", "sce_fast.tools.evaluate:logistic"),
    "linear": Command(
        "[RUN]", "the papers' protocol: linear classifiers trained by SGD on augmented images or clips",
        "sce_fast.tools.linear:linear",
    ),
    "semi-supervised": Command(
        "RUN", "fine-tune the backbone on 1 % or 10 % of the labels", "sce_fast.tools.semi_supervised:semi_supervised"
    ),
    "finetune": Command(
        "RUN", "fine-tune a backbone of clips on UCF101, HMDB51, Something-Something or your own videos",
        "sce_fast.tools.finetune:finetune",
    ),
    "transfer": Command(
        "RUN", "logistic regression on frozen features of up to eleven data sets, or your own",
        "sce_fast.tools.transfer:transfer",
    ),
    "svm": Command(
        "RUN VOCDEVKIT", "mAP of one-vs-all SVMs on frozen features, from few and from all images of VOC2007",
        "sce_fast.tools.svm:svm",
    ),
    "retrieval": Command(
        "[RUN]", "share of query videos whose nearest videos in a bank have their class",
        "sce_fast.tools.retrieval:retrieval",
    ),
}  # fmt: skip
BENCHMARKS = {
    "loss": _bench("loss", "loss and gradient of every backend and peer: time, FLOP/s, share of the GEMM rate, memory"),
    "step": _bench("step", "seconds per training step, images/s, and the share of loss, momentum update and queue"),
    "loop": _bench("loop", "the trainer against a bare loop over the same batches, and the cost of checkpoints"),
    "overhead": _bench("overhead", "microseconds per call of sce_loss, of the bare kernel and of the autograd engine"),
    "queue": _bench("queue", "errors of loss and gradient with a 16-bit queue against a float32 queue, in float64"),
    "dtypes": _bench("dtypes", "machine code, and on a GPU time, of the loss for each mix of dtypes; needs Triton"),
    "loader": _bench("loader", "images/s of the loader and of its peers"),
    "shards": _bench("shards", "images/s of the loader from tar shards and Parquet tables, against files"),
    "small": _bench("small", "what the recipe folder learns from small data sets; about half an hour"),
    "motions": _bench("motions", "the video demo's accuracy for several seeds; about twenty minutes"),
    "coefficient": _bench(
        "coefficient", "accuracy for several λ and seeds: the demo in half an hour, --data emoji in one to two"
    ),
    "acceptance": _bench("acceptance.run", "build, tests, parity and benchmarks on a GPU; exit status 1 on failure"),
}
COMMANDS: dict[str, Command | Group] = {
    "demo": Command(
        "", "learn from real digit images in two to four minutes on two CPU cores", "sce_fast.tools.demo:run_demo"
    ),
    "demo-video": Command(
        "", "learn motions from videos of digits, in five to six minutes on two CPU cores",
        "sce_fast.tools.demo_video:run_demo_video",
    ),
    "scan": Command(
        "DIR", "decode every image and name the bad files; exit status 1 if there are any", "sce_fast.tools.scan:scan",
        show=lambda scan: scan.table(), passed=lambda scan: not scan.bad_files(),
    ),
    "split": Command(
        "SPLIT VIDEOS --part PART", "write a list file of a published split: UCF101, HMDB51, Kinetics, SSv2",
        "sce_fast.tools.split:write_split", show=printable,
    ),
    "train": Group(
        "recipe", "RECIPE --data DIR", "pretrain on images or videos; --dry-run checks, --resume continues", recipes
    ),
    "recipes": Command(
        "", "list the recipes with their data, lengths and published results", "sce_fast.tools.recipes:list_recipes",
        show=str,
    ),
    "resume": Command(
        "RUN", "go on with a run from its newest checkpoint, or extend it", "sce_fast.tools.train:resume_run",
        passed=lambda summary: True,
    ),
    "evaluate": Group(
        "evaluation", "METHOD [RUN]", "accuracy on labelled images and videos: " + ", ".join(EVALUATIONS),
        lambda: EVALUATIONS,
    ),
    "embed": Command(
        "RUN DIR", "write features of images, with file names, as safetensors", "sce_fast.tools.embed:embed",
        show=printable,
    ),
    "export": Command(
        "RUN --out FILE", "write the backbone for other programs: safetensors, torchvision, timm, detectron2, onnx, …",
        "sce_fast.tools.export:export_backbone", show=printable,
    ),
    "report": Command(
        "RUN", "draw curves and pictures of a run", "sce_fast.tools.report:write_report",
        show=lambda pictures: "\n".join(map(printable, pictures)),
    ),
    "doctor": Command(
        "", "versions, devices, and which backends of the loss run here", "sce_fast.tools.doctor:diagnose", show=str
    ),
    "parity": Command(
        "", "errors of each backend against float64; exit status 1 if one is too large",
        "sce_fast.tools.parity:compare_backends",
    ),
    "bench": Group(
        "benchmark", "NAME", "measure against named peers: " + ", ".join(BENCHMARKS), lambda: BENCHMARKS
    ),
}  # fmt: skip
MAIN = Group(
    "command",
    "COMMAND",
    "",
    lambda: COMMANDS,
    note="A first look: sce-fast demo          your own images: sce-fast train folder --data DIR\n"
    "sce-fast --version prints the version",
)


def main(arguments: list[str] | None = None) -> None:
    """Run a command. Bad input ends in one line on standard error and exit status 2."""
    is_rank, status = int(os.environ.get("WORLD_SIZE", 1)) > 1, 0
    try:
        with _warnings_as_lines():
            _run(sys.argv[1:] if arguments is None else arguments)
    except SystemExit as end:
        if not is_rank:
            raise
        status = int(end.code or 0)
    if is_rank:
        _end_at_once(status)


def _end_at_once(status: int) -> None:
    """End a rank without shutting the interpreter down.

    torch's DDP leaves gloo's threads running. Now and then such an interpreter aborts at shutdown (torch 2.13:
    "terminate called without an active exception"), and torchrun would report a finished run as failed.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _run(arguments: list[str]) -> None:
    if arguments == ["--version"]:
        print(f"sce-fast {sce_fast.__version__}")
        return
    try:
        _refuse_empty(arguments)
        MAIN.run("sce-fast", arguments)
    except (ValueError, TypeError, OSError, ImportError, RuntimeError, MemoryError) as error:
        if os.environ.get("SCE_FAST_TRACEBACK") == "1":
            raise
        print(
            f"sce-fast: {error}{_what_to_install(error)}\n(SCE_FAST_TRACEBACK=1 shows the traceback)", file=sys.stderr
        )
        sys.exit(2)
    except KeyboardInterrupt:
        print("sce-fast: interrupted", file=sys.stderr)
        sys.exit(130)


def _refuse_empty(arguments: list[str]) -> None:
    """Raise an error if an argument is empty, as an unset shell variable is: as a path it would be the current folder.

    Raises:
        ValueError: see above; the message shows where the argument stands.
    """
    for i, argument in enumerate(arguments):
        if argument == "" or re.fullmatch(r"--[\w.-]+=", argument):
            before = f" after {arguments[i - 1]}" if argument == "" and i else ""
            raise ValueError(f"an argument is empty{before or f': {argument}'}; is a shell variable unset?")


@contextmanager
def _warnings_as_lines() -> Iterator[None]:
    """Print this package's warnings as one line, above a progress bar; other packages' warnings as before."""
    show = warnings.showwarning

    def show_line(message: Warning | str, category: type[Warning], filename: str, *place: Any, **more: Any) -> None:
        if issubclass(category, UserWarning) and Path(filename).is_relative_to(Path(__file__).parent):
            from sce_fast.util.terminal import say

            say(f"Warning: {message}")
        else:
            show(message, category, filename, *place, **more)

    warnings.showwarning = show_line
    try:
        yield
    finally:
        warnings.showwarning = show


def _what_to_install(error: Exception) -> str:
    """Return the end of a message that says how to install a missing module, or nothing."""
    module = (error.name or "").split(".")[0] if isinstance(error, ImportError) else ""
    packages = extra_with(DISTRIBUTIONS.get(module, module))
    return "; pip install " + " ".join(f"'{package}'" for package in packages) if packages else ""


def extra_with(distribution: str) -> list[str]:
    """Return all requirements of the first extra of this package that has a distribution, by the package's metadata."""
    try:
        requirements = importlib.metadata.requires("sce_fast") or []
    except importlib.metadata.PackageNotFoundError:  # imported from a folder without being installed
        return []
    extras: dict[str, dict[str, str]] = {}
    for requirement in requirements:  # such as: tqdm>=4.66; extra == "train"
        found = re.fullmatch(r"""(([\w.-]+)[^;]*);.*\bextra == ["']([\w-]+)["']""", requirement)
        if found:
            extras.setdefault(found[3], {})[found[2]] = found[1]
    return next((list(extra.values()) for extra in extras.values() if distribution in extra), [])


if __name__ == "__main__":
    main()
