"""What a run bears. Each fault is made to happen; docs/faults.md says what the user sees and what is kept.

SCE_FAST_WRITE_DOCS=1 pytest tests/train/test_faults.py writes the table anew.
"""

import ctypes
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

import sce_fast.train.checkpoint
from helpers import ranks
from helpers.runs import assert_same_run
from sce_fast.cli import main
from sce_fast.train.checkpoint import checkpoints, load_checkpoint
from sce_fast.train.evaluation import PeriodicEvaluation
from sce_fast.train.step import TrainingStep
from sce_fast.train.stop import REQUEUE

DOCS = Path(__file__).parents[2] / "docs" / "faults.md"
HEADING = """\
# What goes wrong, what is seen, and what is kept

Each of these faults is made to happen by a test in [test_faults.py](../tests/train/test_faults.py), in `sce-fast train`
over nine steps of 8 images with a checkpoint every second step; the tests compare what they see with this table, and
wrote it. `DATA` and `RUN` are the two folders; what image decoders print on their own is left out. "The same bits":
weights, momentum encoder, optimizer, queue, random state and log are those of a run that nothing disturbed. That a run
may also be killed at any moment, [test_kills.py](../tests/train/test_kills.py) shows.
"""
COLUMNS = "\n| fault | status | what the user sees | what is kept |\n|---|--:|---|---|\n"
SAME_BITS = "resumed, the same bits"


@pytest.fixture(scope="module")
def table():
    """Rows as the tests find them, written at the end where that is asked for."""
    sections: dict[str, list[str]] = {}
    yield sections
    if os.environ.get("SCE_FAST_WRITE_DOCS"):
        text = "".join(f"\n## {title}\n{COLUMNS}" + "".join(rows) for title, rows in sections.items())
        DOCS.write_text(HEADING + text)


@pytest.fixture
def tell(table, tmp_path):
    """tell(section, fault, codes, output, kept): the row has to be in the documents."""

    def compare(section, fault, codes, output, kept):
        status = " and ".join(dict.fromkeys(str(code) for code in codes))
        row = f"| {fault} | {status} | {shown(output, tmp_path)} | {kept} |\n"
        table.setdefault(section, []).append(row)
        if not os.environ.get("SCE_FAST_WRITE_DOCS"):
            assert row in DOCS.read_text(), f"{DOCS} lacks the row\n{row}"

    return compare


def shown(output: str, tmp_path: Path) -> str:
    """What was printed, without progress and what every run prints, as the cell of a table."""
    usual = r"(Training|Reading image sizes|Decoding): .*|In RUN: .*|.* decoded in .*|\(SCE_FAST_TRACEBACK.*|"
    usual += r"\d+ steps at .*|\x1b.*"  # and what decoders say in colours
    text = output.replace(str(tmp_path / "data"), "DATA").replace(str(tmp_path / "run"), "RUN")
    lines = [line.rstrip() for line in text.splitlines() if not re.fullmatch(usual, line)]
    return "<br>".join(line.strip().replace("|", r"\|") for line in lines if line) or "nothing"


@pytest.fixture
def data(tmp_path, photo_folder) -> Path:
    return Path(shutil.copytree(photo_folder, tmp_path / "data"))


def words(data, run, *more):
    settings = {
        "--data": data, "--out": run, "--epochs": 3, "--batch-size": 8, "--device": "cpu", "--views.sizes": 32,
        "--model.backbone": "resnet18", "--model.width": 8, "--model.projector-hidden": 16, "--model.dim": 8,
        "--model.predictor-hidden": 16, "--loss.queue-size": 40, "--optimizer.warmup-epochs": 1, "--log-every": 1,
        "--checkpoint-every": 2, "--keep-checkpoints": 9, "--loader-threads": 1,
    }  # fmt: skip
    return ["train", "folder", *(word for pair in settings.items() for word in pair), "--no-pictures", *more]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, photo_folder):
    """undisturbed(ranks): the folder of a run like those of the tests, to which nothing happens."""
    runs: dict[int, Path] = {}

    def make(count=1) -> Path:
        if count not in runs:
            folder = tmp_path_factory.mktemp("undisturbed")
            codes = ranks.command(words(photo_folder, folder / "run"), folder / "told", ranks=count)
            assert codes == [0] * count, (folder / "told.0").read_text()
            runs[count] = folder / "run"
        return runs[count]

    return make


class Broken:
    """A command in which something goes wrong, and what comes of it."""

    def __init__(self, tmp_path, data, *more, fault=None, ranks_=1):
        self.run, self.ranks = tmp_path / "run", ranks_
        self._words, self._told = words(data, self.run, *more), tmp_path / "told"
        self.codes = ranks.command(self._words, self._told, fault, ranks=ranks_)
        self.output = Path(f"{self._told}.0").read_text()

    def newest(self) -> int:
        """The step of the newest checkpoint."""
        return int(checkpoints(self.run / "checkpoints")[-1].name.removeprefix("step_"))

    def resume(self, whole: Path | None = None) -> str:
        """Goes on to the end, where whole tells what must have come out; what that command printed."""
        codes = ranks.command([*self._words, "--resume"], self._told, ranks=self.ranks)
        text = Path(f"{self._told}.0").read_text()
        assert codes == [0] * self.ranks, text
        if whole is not None:
            assert_same_run(self.run, whole)
        return text


def before_step(number, act):
    """Has act() called before the step of this number, which is counted from 1."""
    original = TrainingStep.__call__

    def step(self, parts, *, number: int, **settings):
        if number == due:
            act()
        return original(self, parts, number=number, **settings)

    due = number - 1
    TrainingStep.__call__ = step


NUMBERS = "Numbers that are not finite"


def spoil_a_pixel():
    """On the last rank, in step 6."""
    original, last = TrainingStep._differentiate, int(os.environ.get("WORLD_SIZE", 1)) - 1

    def differentiate(self, views, number, part):
        if number == 5 and self.ranks.rank == last:
            views[0][0, 0, 0, 0] = float("nan")
        return original(self, views, number, part)

    TrainingStep._differentiate = differentiate


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2])
def test_a_nan_among_the_pixels(tell, tmp_path, data, undisturbed, count):
    broken = Broken(tmp_path, data, "--log-every", 9, fault=spoil_a_pixel, ranks_=count)
    names = (broken.run / "not_finite_step_00000006.txt").read_text().splitlines()
    assert len(names) == 8
    assert broken.newest() == 4  # that of step 6 reads the flag before it is written
    log_every = ["--log-every", 9]
    codes = ranks.command(words(data, tmp_path / "whole", *log_every), tmp_path / "told", ranks=count)
    assert codes == [0] * count
    broken.resume(tmp_path / "whole")
    where = "a rank's pixels, of two ranks" if count == 2 else "the pixels"
    tell(NUMBERS, f"a NaN in {where}, step 6", broken.codes, broken.output, f"step 4, the names; {SAME_BITS}")


def spoil_the_gradients(always=False):
    """In step 6, or in each."""
    original = TrainingStep._differentiate

    def differentiate(self, views, number, part):
        measured = original(self, views, number, part)
        if always or number == 5:
            self.parameters[0].grad[0] = float("inf")
        return measured

    TrainingStep._differentiate = differentiate


@pytest.mark.slow
def test_a_gradient_that_is_not_finite(tell, tmp_path, data, undisturbed):
    broken = Broken(tmp_path, data, fault=spoil_the_gradients)
    assert broken.newest() == 4
    broken.resume(undisturbed())
    tell(NUMBERS, "an infinite gradient, step 6", broken.codes, broken.output, f"step 4; {SAME_BITS}")


@pytest.mark.slow
def test_a_float16_gradient_that_overflows_once(tell, tmp_path, data):
    more = ["--precision", "float16", "--checkpoint-every", 1]
    broken = Broken(tmp_path, data, *more, fault=spoil_the_gradients)
    assert broken.codes == [0]
    before, after = (load_checkpoint(broken.run / "checkpoints" / f"step_{step:08d}").tensors for step in (5, 6))
    assert after["guard.scale"] == before["guard.scale"] / 2
    changed = {name.split(".")[-1] for name in before if not torch.equal(before[name], after[name])}
    assert changed <= {"running_mean", "running_var", "num_batches_tracked", "scale", "steps_since_overflow"}
    assert broken.newest() == 9
    kept = "weights and queue as before that step, the loss scale halved; the run goes on"
    tell(NUMBERS, "a float16 gradient that overflows, step 6", broken.codes, broken.output, kept)


@pytest.mark.slow
def test_float16_gradients_that_overflow_always(tell, tmp_path, data):
    more = ["--precision", "float16", "--epochs", 6]
    broken = Broken(tmp_path, data, *more, fault=partial(spoil_the_gradients, always=True))
    tell(NUMBERS, "float16 gradients that overflow at any scale", broken.codes, broken.output, "step 16")


FILES = "Files that are no images"


def truncate(path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


BAD = {
    "a truncated JPEG": truncate,
    "an empty file": lambda path: path.write_bytes(b""),
    "an HTML page named .jpg": lambda path: path.write_text("<html>404</html>"),
    "a broken link": lambda path: (path.unlink(), path.symlink_to("nowhere")),
}


@pytest.mark.parametrize(
    "fault", [name if name == "a truncated JPEG" else pytest.param(name, marks=pytest.mark.slow) for name in BAD]
)
def test_a_bad_file(tell, tmp_path, data, fault):
    BAD[fault](data / "temple" / "010.jpg")
    broken = Broken(tmp_path, data)
    noted = (broken.run / "bad_files.txt").read_text()
    assert noted.startswith(f"{data}/temple/010.jpg\t")
    kept = "all other samples; `bad_files.txt`: " + noted.strip().replace(f"{data}", "DATA").replace("\t", " ⇥ ")
    tell(FILES, fault, broken.codes, broken.output, kept)


@pytest.mark.slow
def test_a_list_that_names_a_missing_file(tell, tmp_path, data):
    names = sorted(str(path.relative_to(data)) for path in data.rglob("*.jpg"))
    (data / "list.txt").write_text("\n".join([*names, "temple/100.jpg"]))
    broken = Broken(tmp_path, data / "list.txt")
    assert (broken.run / "bad_files.txt").read_text() == f"{data}/temple/100.jpg\tmissing\n"
    tell(FILES, "a list file that names a missing one", broken.codes, broken.output, "all other samples")


def remove_in_step_2(path, stops=False):
    before_step(2, path.unlink)
    if stops:
        send(signal.SIGTERM, step=5)


@pytest.mark.slow
def test_a_file_that_vanishes(tell, tmp_path, data):
    """And after it has, the run goes on from a checkpoint with the bits that it would have had."""
    victim = data / "temple" / "010.jpg"
    content = victim.read_bytes()
    assert ranks.command(words(data, tmp_path / "whole"), tmp_path / "told", partial(remove_in_step_2, victim)) == [0]
    victim.write_bytes(content)
    broken = Broken(tmp_path, data, fault=partial(remove_in_step_2, victim, stops=True))
    assert broken.codes == [REQUEUE]
    assert (broken.run / "bad_files.txt").read_text() == f"{victim}\tmissing\n"
    broken.resume(tmp_path / "whole")
    output = broken.output[: broken.output.index("Stopped by")]
    kept = f"all other samples; stopped later and {SAME_BITS}"
    tell(FILES, "a file that vanishes during step 2", ["–"], output, kept)


def break_in_step_2(path):
    before_step(2, lambda: truncate(path))


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2])
def test_an_evaluated_file_that_breaks(tell, tmp_path, data, undisturbed, count):
    """Weights are those of a run without evaluations; a resumed run goes on too."""
    held_out = Path(shutil.copytree(data, tmp_path / "held-out"))
    evaluation = ["--evaluation.train", data, "--evaluation.test", held_out, "--evaluation.every", 2]
    inject = partial(break_in_step_2, held_out / "temple" / "010.jpg")
    broken = Broken(tmp_path, data, *evaluation, fault=inject, ranks_=count)
    assert broken.codes == [0] * count
    (held_out / "temple" / "010.jpg").unlink()
    (held_out / "temple" / "011.jpg").write_bytes(b"")
    shutil.rmtree(checkpoints(broken.run / "checkpoints")[-1])
    text = broken.resume()
    assert "no evaluations from here on: 1 of 24 files cannot be used (1 empty)" in " ".join(text.split())
    ends = [checkpoints(run / "checkpoints")[-1] for run in (broken.run, undisturbed(count))]
    tensors, others = (load_checkpoint(path).tensors for path in ends)
    assert all(torch.equal(tensors[name], others[name]) for name in others if name.startswith(("model.", "queue.")))
    if count == 1:
        output = broken.output.replace(str(held_out), "HELD_OUT")
        kept = "training as it was; the evaluations of step 0 alone"
        tell(FILES, "a file of the evaluation is cut off in step 2", broken.codes, output, kept)


@pytest.mark.slow
def test_too_many_bad_headers(tell, tmp_path, data):
    for path in sorted(data.rglob("*.jpg"))[:4]:
        path.write_bytes(b"")
    broken = Broken(tmp_path, data)
    assert not broken.run.exists()
    tell(FILES, "a sixth of the files is empty", broken.codes, broken.output, "nothing was begun")


@pytest.mark.slow
def test_too_many_bad_files_on_two_ranks_together(tell, tmp_path, data):
    """Each of the two finds fewer than a tenth."""
    for path in sorted(data.rglob("*.jpg"))[:3]:
        truncate(path)
    broken = Broken(tmp_path, data, ranks_=2)
    assert broken.codes == [2, 2]
    assert len((broken.run / "bad_files.txt").read_text().splitlines()) == 3
    told = broken.output[broken.output.index("sce-fast:") :]
    tell(FILES, "an eighth is truncated, found by two ranks together", broken.codes, told, "the last checkpoint")


def truncate_in_step_5(paths):
    before_step(5, lambda: [truncate(path) for path in paths])


@pytest.mark.slow
def test_too_many_files_that_break_at_once(tell, tmp_path, data):
    files = sorted(data.rglob("*.jpg"))[:12]
    broken = Broken(tmp_path, data, fault=partial(truncate_in_step_5, files))
    assert broken.codes == [2]
    assert broken.newest() in (4, 6)  # views of later steps may have been made already
    assert len((broken.run / "bad_files.txt").read_text().splitlines()) >= 3
    lines = broken.output.splitlines()
    first = next(line for line in lines if line.startswith("sce-fast:"))
    told = re.sub(r"\d+", "N", first.replace("10%", "a tenth")).replace("a tenth", "10%") + " …"
    tell(FILES, "half of the files are cut off in step 5", broken.codes, told, "the last checkpoint, `bad_files.txt`")


@pytest.mark.slow
def test_a_scan(tell, tmp_path, data):
    for fault, path in zip(BAD.values(), sorted(data.rglob("*.jpg")), strict=False):
        fault(path)
    told = tmp_path / "told"
    codes = ranks.command(["scan", data], told)
    output = Path(f"{told}.0").read_text()
    tell(FILES, "all of these, before a run: `sce-fast scan DATA`", codes, output, "nothing is changed")


SIGNALS = "Signals"


def send(*numbers, step=5):
    before_step(step, lambda: [os.kill(os.getpid(), number) for number in numbers])


def send_sigterm():
    send(signal.SIGTERM)


def send_sigusr1():
    send(signal.SIGUSR1)


def press_ctrl_c():
    send(signal.SIGINT)


def press_ctrl_c_twice():
    send(signal.SIGINT, signal.SIGINT)


@pytest.mark.parametrize(
    ("fault", "inject"),
    [
        ("SIGTERM", send_sigterm),
        pytest.param("SIGUSR1", send_sigusr1, marks=pytest.mark.slow),
        pytest.param("Ctrl-C", press_ctrl_c, marks=pytest.mark.slow),
    ],
)
def test_a_signal(tell, tmp_path, data, undisturbed, fault, inject):
    broken = Broken(tmp_path, data, fault=inject)
    assert (broken.codes, broken.newest()) == ([REQUEUE], 5)
    broken.resume(undisturbed())
    tell(SIGNALS, f"{fault} during step 5", broken.codes, broken.output, f"step 5; {SAME_BITS}")


@pytest.mark.slow
def test_ctrl_c_twice(tell, tmp_path, data, undisturbed):
    broken = Broken(tmp_path, data, fault=press_ctrl_c_twice)
    assert (broken.codes, broken.newest()) == ([130], 4)
    broken.resume(undisturbed())
    tell(SIGNALS, "Ctrl-C twice during step 5", broken.codes, broken.output, f"step 4; {SAME_BITS}")


def send_sigterm_to_one_rank():
    if os.environ["RANK"] == "1":
        send(signal.SIGTERM)


def test_a_signal_to_one_of_two_ranks(tell, tmp_path, data, undisturbed):
    """The ranks agree on a step to stop at without waiting for one another, hence one later."""
    broken = Broken(tmp_path, data, fault=send_sigterm_to_one_rank, ranks_=2)
    assert (broken.codes, broken.newest()) == ([REQUEUE] * 2, 6)
    broken.resume(undisturbed(2))
    tell(SIGNALS, "SIGTERM to one of two ranks, step 5", broken.codes, broken.output, f"step 6; {SAME_BITS}")


def send_sigterm_to_an_evaluation():
    original, calls = PeriodicEvaluation.features, []

    def features(self, backbone, index):
        calls.append(index)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, backbone, index)

    PeriodicEvaluation.features = features


@pytest.mark.slow
def test_a_signal_during_an_evaluation(tell, tmp_path, data, undisturbed):
    evaluation = ["--evaluation.train", data, "--evaluation.test", data, "--evaluation.every", 2]
    broken = Broken(tmp_path, data, *evaluation, fault=send_sigterm_to_an_evaluation)
    assert (broken.codes, broken.newest()) == ([REQUEUE], 6)
    assert ranks.command(words(data, tmp_path / "whole", *evaluation), tmp_path / "told") == [0]
    broken.resume(tmp_path / "whole")
    kept = f"step 6; {SAME_BITS}, the evaluation first"
    tell(SIGNALS, "SIGTERM during the evaluation after step 6", broken.codes, broken.output, kept)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "handles"),
    [(signal.SIGTERM, True), (signal.SIGUSR1, True), (signal.SIGUSR1, False)],
)
def test_a_signal_to_torchrun(tell, tmp_path, data, number, handles):
    """It passes on what it handles, waits, and ends with a status of its own; of its death the ranks are told."""
    run = tmp_path / "run"
    torchrun, program = (Path(sys.executable).with_name(name) for name in ("torchrun", "sce-fast"))
    named = ["--signals-to-handle", "SIGTERM,SIGINT,SIGUSR1"] if handles else []
    start = [torchrun, "--standalone", "--nproc-per-node", 2, *named]

    def launch(out, *more):
        command = words(data, out, "--epochs", 80, "--checkpoint-every", 1000, *more)
        command = [str(word) for word in (*start, "--no-python", program, *command)]
        return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)

    process = launch(run)
    wait_for_lines(run / "log.jsonl", 3, process)
    process.send_signal(number)
    output, status = process.communicate(timeout=120)[1], process.returncode
    step = int(checkpoints(run / "checkpoints")[-1].name.removeprefix("step_"))
    assert 3 <= step < 240
    for folder, more in ((run, ["--resume"]), (tmp_path / "whole", [])):
        process = launch(folder, *more)
        _, text = process.communicate(timeout=240)
        assert process.returncode == 0, text
    assert_same_run(run, tmp_path / "whole")
    (said,) = (line.replace(f"step {step} ", "step N ") for line in output.splitlines() if line.startswith("Stopped"))
    kept = f"step N; {SAME_BITS}; there is no `summary.json` yet"
    fault = f"{number.name} to `{' '.join(['torchrun', *named])}`, two ranks"
    tell(SIGNALS, fault, [status], said, kept)


def wait_for_lines(path, count, process):
    while not (path.exists() and len(path.read_text().splitlines()) >= count):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.01)


def kill_a_rank():
    if os.environ["RANK"] == "1":
        send(signal.SIGKILL)


@pytest.mark.slow
def test_kill_9_of_one_of_two_ranks(tell, tmp_path, data, undisturbed):
    broken = Broken(tmp_path, data, fault=kill_a_rank, ranks_=2)
    assert (broken.codes, broken.newest()) == ([2, -signal.SIGKILL], 4)
    broken.resume(undisturbed(2))
    tell(SIGNALS, "kill -9 of one of two ranks, step 5", broken.codes, broken.output, f"step 4; {SAME_BITS}")


def kill_while_writing():
    def killed(*_, **__):
        os.kill(os.getpid(), signal.SIGKILL)

    def replace():
        sce_fast.train.checkpoint.flush = killed

    before_step(6, replace)


@pytest.mark.slow
def test_kill_9_while_a_checkpoint_is_written(tell, tmp_path, data, undisturbed):
    broken = Broken(tmp_path, data, fault=kill_while_writing)
    assert (broken.codes, broken.newest()) == ([-signal.SIGKILL], 4)
    broken.resume(undisturbed())
    tell(SIGNALS, "kill -9 while step 6 is saved", broken.codes, broken.output, f"step 4; {SAME_BITS}")


DISKS = "Disks and folders"


def limit_file_size(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def fill_the_disk_before_a_save():
    before_step(5, lambda: limit_file_size(20_000))


def test_a_full_disk_while_saving(tell, tmp_path, data, undisturbed):
    """As a full disk does, a limit on the size of files lets a write fail half way."""
    broken = Broken(tmp_path, data, fault=fill_the_disk_before_a_save)
    assert broken.newest() == 4
    assert not any((broken.run / "checkpoints").glob(".*"))
    broken.resume(undisturbed())
    tell(DISKS, "no room for the checkpoint of step 6", broken.codes, broken.output, f"step 4; {SAME_BITS}")


def fill_the_disk_before_a_line():
    sys.modules["torch.utils.tensorboard"] = None  # as if not installed: its thread would add a traceback of its own
    before_step(6, lambda: limit_file_size(1_000))


@pytest.mark.slow
def test_a_full_disk_while_logging(tell, tmp_path, data, undisturbed):
    broken = Broken(tmp_path, data, fault=fill_the_disk_before_a_line)
    assert broken.newest() == 4
    broken.resume(undisturbed())
    tell(DISKS, "no room for the log's line of step 6", broken.codes, broken.output, f"step 4; {SAME_BITS}")


def obey_permissions():
    """Root may write anywhere; this thread gives that up."""
    if os.geteuid() == 0:
        header, nothing = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
        assert ctypes.CDLL(None).capset(header, nothing) == 0


def make_read_only(folder):
    def forbid():
        folder.chmod(0o500)
        obey_permissions()

    before_step(5, forbid)


@pytest.mark.slow
def test_a_folder_that_becomes_read_only(tell, tmp_path, data, undisturbed):
    folder = tmp_path / "run" / "checkpoints"
    broken = Broken(tmp_path, data, fault=partial(make_read_only, folder))
    folder.chmod(0o700)
    assert broken.newest() == 4
    broken.resume(undisturbed())
    tell(DISKS, "`RUN/checkpoints` becomes read-only in step 5", broken.codes, broken.output, f"step 4; {SAME_BITS}")


@pytest.mark.slow
def test_a_read_only_place_for_a_new_run(tell, tmp_path, data):
    place = tmp_path / "run"
    place.mkdir()
    place.chmod(0o500)
    told = tmp_path / "told"
    codes = ranks.command(words(data, place / "new"), told, obey_permissions)
    place.chmod(0o700)
    assert not any(place.iterdir())
    tell(DISKS, "a new run in a read-only folder", codes, Path(f"{told}.0").read_text(), "nothing was begun")


OTHERS = "Resuming what is not the same"


@pytest.fixture
def begun(tmp_path, data) -> Path:
    assert ranks.command(words(data, tmp_path / "run"), tmp_path / "told") == [0]
    for path in checkpoints(tmp_path / "run" / "checkpoints")[2:]:
        shutil.rmtree(path)
    return tmp_path / "run"


@pytest.mark.slow
def test_two_programs_in_one_folder(tell, tmp_path, data, begun):
    """The second is refused for as long as the first lives."""
    first = ranks.start(train_for_long, data, begun, tmp_path / "trains")
    while not (tmp_path / "trains").exists():
        assert first[0].is_alive()
        time.sleep(0.01)
    codes = ranks.command([*words(data, begun), "--resume"], tmp_path / "told")
    first[0].kill()
    assert ranks.join(first) == [-signal.SIGKILL]
    output = (tmp_path / "told.0").read_text()
    assert ranks.command([*words(data, begun), "--resume"], tmp_path / "told") == [0]
    tell(OTHERS, "`--resume` while the run still goes on", codes, output, "the run as it was")


def train_for_long(data, run, trains):
    before_step(6, lambda: (trains.touch(), time.sleep(60)))
    main([str(word) for word in [*words(data, run), "--resume"]])


def other_networks():
    """As if a later version of the code built another projector."""
    from sce_fast.method import build

    original = build.projector
    build.projector = lambda *settings, **more: nn.Sequential(original(*settings, **more), nn.Identity())


CHANGES = {
    "no `--resume`": ([], lambda data: None, None),
    "another τ": (["--resume", "--loss.temperature", 0.2], lambda data: None, None),
    "a file less": (["--resume"], lambda data: (data / "temple" / "010.jpg").unlink(), None),
    "networks that are built in another way": (["--resume"], lambda data: None, other_networks),
}


@pytest.mark.slow
@pytest.mark.parametrize("change", CHANGES)
def test_what_is_not_the_same_is_refused(tell, tmp_path, data, begun, undisturbed, change):
    more, act, fault = CHANGES[change]
    kept_file = (data / "temple" / "010.jpg").read_bytes()
    act(data)
    codes = ranks.command(words(data, begun, *more), tmp_path / "told", fault)
    output = (tmp_path / "told.0").read_text()
    (data / "temple" / "010.jpg").write_bytes(kept_file)
    assert ranks.command([*words(data, begun), "--resume"], tmp_path / "told") == [0]
    assert_same_run(begun, undisturbed())
    tell(OTHERS, change, codes, output, f"the run as it was; {SAME_BITS}")


def other_threads():
    torch.set_num_threads(2)


@pytest.mark.slow
def test_other_circumstances_are_told(tell, tmp_path, data, begun):
    codes = ranks.command([*words(data, begun), "--resume"], tmp_path / "told", other_threads)
    output = (tmp_path / "told.0").read_text()
    tell(OTHERS, "another number of threads", codes, output, "everything; the run goes on")
