"""Runs of `sce-fast train` in which something goes wrong, and docs/faults.md, the table of what comes of it."""

import ctypes
import os
import re
import resource
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from helpers import ranks
from helpers.runs import assert_same_run
from sce_fast.train.checkpoint import checkpoints
from sce_fast.train.step import TrainingStep

DOCS = Path(__file__).parents[2] / "docs" / "faults.md"
WRITE = "SCE_FAST_WRITE_DOCS"
HEADING = f"""\
# Faults: what the user sees, and what is kept

The tests in [test_faults.py](../tests/train/test_faults.py),
[test_faults_signals.py](../tests/train/test_faults_signals.py),
[test_faults_videos.py](../tests/train/test_faults_videos.py) and
[test_faults_shards.py](../tests/train/test_faults_shards.py) cause each of these faults. Unless a row says otherwise,
the faulty command is `sce-fast train` over nine steps of 8 images, or of 4 videos, with a checkpoint every second step.
The tests compare what they see with this table; `{WRITE}=1 pytest tests/train/test_faults*.py` writes it.

`DATA` and `RUN` stand for the two folders. Messages of the decoders are left out. "Same bits on resume" means
that weights, momentum encoder, optimizer, queue, random state and log are those of a run without the fault.
[test_kills.py](../tests/train/test_kills.py) shows the same for runs killed at any moment.
"""
COLUMNS = "\n| fault | exit status | what the user sees | what is kept |\n|---|--:|---|---|\n"
SAME_BITS = "same bits on resume"
SECTIONS = {
    "Non-finite numbers": (
        "a NaN in the pixels, step 6",
        "a NaN in the pixels of one of two ranks, step 6",
        "an infinite gradient, step 6",
        "a float16 gradient that overflows, step 6",
        "float16 gradients that overflow at any scale",
    ),
    "Bad files": (
        "a truncated JPEG",
        "an empty file",
        "an HTML page named .jpg",
        "a broken link",
        "a list file that names a missing file",
        "a file that vanishes during step 2",
        "a file of the evaluation is truncated in step 2",
        "a sixth of the files are empty",
        "an eighth of the files are truncated; two ranks find them together",
        "half of the files are truncated in step 5",
        "`sce-fast scan DATA` over four bad files, before a run",
    ),
    "Videos": (
        "a truncated video",
        "a video without frames",
        "a file with sound only",
        "an HTML page named .mp4",
        "a video without permission to read it",
        "zeros in the middle of a video",
        "zeros in the middle of a video that DALI decodes",
        "a video that vanishes during step 2",
        "a video is replaced by a smaller one in step 2",
        "a video that DALI decodes is replaced by a smaller one in step 2",
        "a video of the evaluation is truncated in step 2",
        "a quarter of the videos are empty",
        "half of the videos are truncated in step 5",
        "a decoder thread runs out of memory in step 5",
        "a decoder thread is ended in step 5",
        "no space for the checkpoint of step 6 of a run on videos",
        "SIGTERM during step 5 of a run on videos",
        "a video has another length than before, with `--resume`",
        "`sce-fast scan DATA` over four bad videos, before a run",
    ),
    "Shards": (
        "a truncated tar shard",
        "a tar shard that is an HTML page",
        "an empty tar shard",
        "a member of a shard that is an HTML page named .jpg",
        "a truncated JPEG in a shard",
        "an empty member of a shard",
        "a pattern in braces that names a missing shard",
        "a shard that vanishes during step 2 of 15",
        "a shard is replaced by another one in step 2",
        "a shard of the evaluation vanishes in step 2",
        "two of twelve shards are missing",
        "an eighth of the members of the shards are empty",
        "half of the shards vanish in step 2",
        "a truncated Parquet table",
        "a row of a Parquet table without an image",
        "a Parquet table without a column of images",
        "`--data` names a compressed tar file",
        "the cached index of the shards is missing on resume",
        "the cached index of the shards is truncated on resume",
        "a shard has other images than before, with `--resume`",
        "`sce-fast scan DATA` over five bad shards, before a run",
    ),
    "Signals": (
        "SIGTERM during step 5",
        "SIGUSR1 during step 5",
        "Ctrl-C during step 5",
        "Ctrl-C twice during step 5",
        "SIGTERM to one of two ranks, step 5",
        "SIGTERM during the evaluation after step 6",
        "SIGTERM to `torchrun --signals-to-handle SIGTERM,SIGINT,SIGUSR1`, two ranks",
        "SIGUSR1 to `torchrun --signals-to-handle SIGTERM,SIGINT,SIGUSR1`, two ranks",
        "SIGUSR1 to `torchrun`, two ranks",
        "kill -9 of one of two ranks, step 5",
        "kill -9 while the checkpoint of step 6 is written",
    ),
    "Disks and folders": (
        "no space for the checkpoint of step 6",
        "no space for the log line of step 6",
        "`RUN/checkpoints` becomes read-only in step 5",
        "a new run in a read-only folder",
    ),
    "Resuming after a change": (
        "`--resume` while the run is still running",
        "no `--resume`",
        "another τ",
        "a file is missing",
        "the code builds other networks",
        "another number of threads",
    ),
}


def tell(fault: str, codes: Sequence[int | None], output: str, kept: str) -> None:
    """Require this row in docs/faults.md, or write it there."""
    assert any(fault in faults for faults in SECTIONS.values()), fault
    status = " and ".join(dict.fromkeys(str(code) for code in codes))
    row = f"| {fault} | {status} | {output} | {kept} |"
    if os.environ.get(WRITE):
        DOCS.write_text(document({**rows(DOCS.read_text()), fault: row}))
    else:
        assert row in DOCS.read_text().splitlines(), f"{DOCS} lacks the row\n{row}"


def rows(text: str) -> dict[str, str]:
    """Return the rows of a document by fault."""
    return {line.split(" | ")[0].removeprefix("| "): line for line in text.splitlines() if line.startswith("| ")}


def document(found: Mapping[str, str]) -> str:
    """Return the document with these rows, in the order of SECTIONS; unknown rows are dropped."""
    text = HEADING
    for title, faults in SECTIONS.items():
        text += f"\n## {title}\n{COLUMNS}" + "".join(found[fault] + "\n" for fault in faults if fault in found)
    return text


def shown(output: str, tmp_path: Path) -> str:
    """Return a program's output as a table cell, without progress and what every run prints."""
    usual = r"(Training|Reading image headers|Reading shards|Reading videos|Decoding): .*|In RUN: .*|.* decoded in .*|"
    usual += r"\(SCE_FAST_TRACEBACK.*|"
    usual += r"(Memory|Time): .*|Warning: \d+ of \d+ (images|videos) in test are in train too, .*|"
    usual += r"\d+ (images|videos), .*|\d+ steps at .*"
    usual += r"|Image decoder: .*|Warning: loss.queue_size=8: the queue holds the keys of 67% .*"
    usual += r"|Found \d+ (images|videos), .*|  (resnet18|r3d18) of width .* Options override them\."  # of the recipe
    text = output.replace(str(tmp_path / "data"), "DATA").replace(str(tmp_path / "run"), "RUN")
    lines = [line.rstrip() for line in text.splitlines() if not re.fullmatch(usual, line)]
    return "<br>".join(line.strip().replace("|", r"\|") for line in lines if line) or "nothing"


SETTINGS = {
    "--epochs": 3, "--batch-size": 8, "--device": "cpu", "--views.sizes": 32, "--model.backbone": "resnet18",
    "--model.width": 8, "--model.projector-hidden": 16, "--model.dim": 8, "--model.predictor-hidden": 16,
    "--loss.queue-size": 8, "--optimizer.warmup-epochs": 1, "--log-every": 1, "--checkpoint-every": 2,
    "--keep-checkpoints": 9, "--loader-threads": 1,
}  # fmt: skip
VIDEO_SETTINGS = SETTINGS | {
    "--batch-size": 4, "--model.backbone": "r3d18", "--clips.frames": 4, "--clips.seconds": 0.4,
}  # fmt: skip


def words(data: Path, run: Path, *more: object) -> list[object]:
    return _words("folder", SETTINGS, data, run, more)


def video_words(data: Path, run: Path, *more: object) -> list[object]:
    return _words("videos", VIDEO_SETTINGS, data, run, more)


def _words(recipe: str, settings: Mapping[str, object], data: Path, run: Path, more: Iterable[object]) -> list[object]:
    named = {"--data": data, "--out": run, **settings}
    return ["train", recipe, *(word for pair in named.items() for word in pair), "--no-pictures", *more]


class Broken:
    """A command in which something goes wrong: its exit codes, its output and its run folder."""

    def __init__(
        self,
        tmp_path: Path,
        data: Path,
        *more: object,
        fault: Callable[[], object] | None = None,
        ranks_: int = 1,
        videos: bool = False,
    ) -> None:
        self.run, self.ranks = tmp_path / "run", ranks_
        self._words, self._told = (video_words if videos else words)(data, self.run, *more), tmp_path / "told"
        self.codes = ranks.command(self._words, self._told, fault, ranks=ranks_)
        self.output = Path(f"{self._told}.0").read_text()

    def newest(self) -> int:
        """Return the step of the newest checkpoint."""
        return int(checkpoints(self.run / "checkpoints")[-1].name.removeprefix("step_"))

    def resume(self, whole: Path | None = None) -> str:
        """Resume the run to its end and compare it with `whole`; return what the command printed."""
        codes = ranks.command([*self._words, "--resume"], self._told, ranks=self.ranks)
        text = Path(f"{self._told}.0").read_text()
        assert codes == [0] * self.ranks, text
        if whole is not None:
            assert_same_run(self.run, whole)
        return text


def before_step(number: int, act: Callable[[], object]) -> None:
    """Have act() called before the step of this number, which is counted from 1."""
    original = TrainingStep.__call__

    def step(self: TrainingStep, parts: Iterable[list[Tensor]], *, number: int, **settings: Any) -> dict[str, Tensor]:
        if number == due:
            act()
        return original(self, parts, number=number, **settings)

    due = number - 1
    TrainingStep.__call__ = step  # type: ignore[method-assign]


def send(*numbers: int, step: int = 5) -> None:
    """Have this process send itself signals before a step."""

    def send_all() -> None:
        for number in numbers:
            os.kill(os.getpid(), number)

    before_step(step, send_all)


def limit_file_size(size: int) -> None:
    """Make writes beyond a size fail half-way, as on a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def obey_permissions() -> None:
    """Drop the capabilities of this thread, since root may read and write anywhere."""
    if os.geteuid() == 0:
        header, nothing = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
        assert ctypes.CDLL(None).capset(header, nothing) == 0
