"""Causes faults in numbers, files, disks and resumes; docs/faults.md says what the user sees and what is kept.

SCE_FAST_WRITE_DOCS=1 pytest tests/train/test_faults*.py writes the table.
"""

import os
import re
import shutil
import signal
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from helpers import ranks
from helpers.faults import SAME_BITS, Broken, before_step, limit_file_size, obey_permissions, send, words
from helpers.runs import assert_same_run, assert_same_tensors, repeated
from sce_fast.cli import main
from sce_fast.train.checkpoint import checkpoints, load_checkpoint
from sce_fast.train.guard import Guard
from sce_fast.train.step import TrainingStep
from sce_fast.train.stop import REQUEUE


def spoil_a_pixel():
    """Put a NaN among the pixels of the last rank in step 6."""
    original, last = TrainingStep.inputs, int(os.environ.get("WORLD_SIZE", 1)) - 1

    def inputs(self, parts, number):
        for views, shuffles in original(self, parts, number):
            if number == 5 and self.ranks.rank == last:
                views[0][0, 0, 0, 0] = float("nan")
            yield views, shuffles

    TrainingStep.inputs = inputs


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2])
def test_a_nan_among_the_pixels(tell, tmp_path, data, undisturbed, count):
    broken = Broken(tmp_path, data, "--log-every", 9, fault=spoil_a_pixel, ranks_=count)
    names = (broken.run / "not_finite_step_00000006.txt").read_text().splitlines()
    assert len(names) == 8
    assert broken.newest() == 4  # the flag is read before the checkpoint of step 6 is written
    broken.resume()
    assert_same_tensors(broken.run, undisturbed(count))
    (line,), each = (repeated(run / "log.jsonl") for run in (broken.run, undisturbed(count)))
    assert line["step"] == 9
    assert line["loss"] == pytest.approx(sum(step["loss"] for step in each) / 9, rel=1e-12)  # also of steps 1 to 4
    where = "the pixels of one of two ranks" if count == 2 else "the pixels"
    tell(f"a NaN in {where}, step 6", broken.codes, broken.output, f"step 4, the list of images; {SAME_BITS}")


def spoil_the_gradients(always=False):
    """Make a gradient infinite in step 6, or in every step."""
    original = Guard.check

    def check(self, gradients, step):
        if always or step == 5:
            gradients[0][0] = float("inf")
        return original(self, gradients, step)

    Guard.check = check


@pytest.mark.slow
def test_a_gradient_that_is_not_finite(tell, tmp_path, data, undisturbed):
    broken = Broken(tmp_path, data, fault=spoil_the_gradients)
    assert broken.newest() == 4
    broken.resume(undisturbed())
    tell("an infinite gradient, step 6", broken.codes, broken.output, f"step 4; {SAME_BITS}")


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
    kept = "everything; the run continues with weights and queue as before this step and half the loss scale"
    tell("a float16 gradient that overflows, step 6", broken.codes, broken.output, kept)


@pytest.mark.slow
def test_float16_gradients_that_overflow_always(tell, tmp_path, data):
    more = ["--precision", "float16", "--epochs", 6]
    broken = Broken(tmp_path, data, *more, fault=partial(spoil_the_gradients, always=True))
    tell("float16 gradients that overflow at any scale", broken.codes, broken.output, "step 16")


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
    kept = "all other samples; `bad_files.txt` has " + noted.strip().replace(f"{data}", "DATA").replace("\t", " ⇥ ")
    tell(fault, broken.codes, broken.output, kept)


@pytest.mark.slow
def test_a_list_that_names_a_missing_file(tell, tmp_path, data):
    names = sorted(str(path.relative_to(data)) for path in data.rglob("*.jpg"))
    (data / "list.txt").write_text("\n".join([*names, "temple/100.jpg"]))
    broken = Broken(tmp_path, data / "list.txt")
    assert (broken.run / "bad_files.txt").read_text() == f"{data}/temple/100.jpg\tmissing\n"
    tell("a list file that names a missing file", broken.codes, broken.output, "all other samples")


def remove_in_step_2(path, stops=False):
    before_step(2, path.unlink)
    if stops:
        send(signal.SIGTERM, step=5)


@pytest.mark.slow
def test_a_file_that_vanishes(tell, tmp_path, data):
    """The run, stopped later, resumes without the file with the bits of a run that was not stopped."""
    victim = data / "temple" / "010.jpg"
    content = victim.read_bytes()
    assert ranks.command(words(data, tmp_path / "whole"), tmp_path / "told", partial(remove_in_step_2, victim)) == [0]
    victim.write_bytes(content)
    broken = Broken(tmp_path, data, fault=partial(remove_in_step_2, victim, stops=True))
    assert broken.codes == [REQUEUE]
    assert (broken.run / "bad_files.txt").read_text() == f"{victim}\tmissing\n"
    broken.resume(tmp_path / "whole")
    output = broken.output[: broken.output.index("Stopped by")]
    kept = f"all other samples; after a later stop {SAME_BITS}"
    tell("a file that vanishes during step 2", ["–"], output, kept)


def break_in_step_2(path):
    before_step(2, lambda: truncate(path))


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2])
def test_an_evaluated_file_that_breaks(tell, tmp_path, data, undisturbed, count):
    """The weights are those of a run without evaluations, also if the run is resumed."""
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
        kept = "training and its results; only the evaluation before step 1"
        tell("a file of the evaluation is truncated in step 2", broken.codes, output, kept)


@pytest.mark.slow
def test_too_many_bad_headers(tell, tmp_path, data):
    for path in sorted(data.rglob("*.jpg"))[:4]:
        path.write_bytes(b"")
    broken = Broken(tmp_path, data)
    assert not broken.run.exists()
    tell("a sixth of the files are empty", broken.codes, broken.output, "no run folder is made")


@pytest.mark.slow
def test_too_many_bad_files_on_two_ranks_together(tell, tmp_path, data):
    """Each rank finds fewer than a tenth."""
    for path in sorted(data.rglob("*.jpg"))[:3]:
        truncate(path)
    broken = Broken(tmp_path, data, ranks_=2)
    assert broken.codes == [2, 2]
    assert len((broken.run / "bad_files.txt").read_text().splitlines()) == 3
    told = broken.output[broken.output.index("sce-fast:") :]
    fault = "an eighth of the files are truncated; two ranks find them together"
    tell(fault, broken.codes, told, "the last checkpoint")


def truncate_in_step_5(paths):
    before_step(5, lambda: [truncate(path) for path in paths])


@pytest.mark.slow
def test_too_many_files_that_break_at_once(tell, tmp_path, data):
    files = sorted(data.rglob("*.jpg"))[:12]
    broken = Broken(tmp_path, data, fault=partial(truncate_in_step_5, files))
    assert broken.codes == [2]
    assert broken.newest() in (4, 6)  # the loader may be ahead by some steps
    assert len((broken.run / "bad_files.txt").read_text().splitlines()) >= 3
    lines = broken.output.splitlines()
    first = next(line for line in lines if line.startswith("sce-fast:"))
    told = re.sub(r"\d+", "N", first.replace("10%", "a tenth")).replace("a tenth", "10%") + " …"
    tell("half of the files are truncated in step 5", broken.codes, told, "the last checkpoint, `bad_files.txt`")


@pytest.mark.slow
def test_a_scan(tell, tmp_path, data):
    for fault, path in zip(BAD.values(), sorted(data.rglob("*.jpg")), strict=False):
        fault(path)
    told = tmp_path / "told"
    codes = ranks.command(["scan", data], told)
    output = Path(f"{told}.0").read_text()
    tell("`sce-fast scan DATA` over four bad files, before a run", codes, output, "no file is changed")


def fill_the_disk_before_a_save():
    before_step(5, lambda: limit_file_size(20_000))


@pytest.mark.slow
def test_a_full_disk_while_saving(tell, tmp_path, data, undisturbed):
    """A limit on the size of files makes a write fail half-way, as a full disk does."""
    broken = Broken(tmp_path, data, fault=fill_the_disk_before_a_save)
    assert broken.newest() == 4
    assert not any((broken.run / "checkpoints").glob(".*"))
    broken.resume(undisturbed())
    tell("no space for the checkpoint of step 6", broken.codes, broken.output, f"step 4; {SAME_BITS}")


def fill_the_disk_before_a_line(log):
    sys.modules["torch.utils.tensorboard"] = None  # as if not installed: its thread would print a traceback
    before_step(6, lambda: limit_file_size(log.stat().st_size + 10))


@pytest.mark.slow
def test_a_full_disk_while_logging(tell, tmp_path, data, undisturbed):
    log = tmp_path / "run" / "log.jsonl"
    broken = Broken(tmp_path, data, fault=partial(fill_the_disk_before_a_line, log))
    assert broken.newest() == 4
    broken.resume(undisturbed())
    tell("no space for the log line of step 6", broken.codes, broken.output, f"step 4; {SAME_BITS}")


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
    tell("`RUN/checkpoints` becomes read-only in step 5", broken.codes, broken.output, f"step 4; {SAME_BITS}")


@pytest.mark.slow
def test_a_read_only_place_for_a_new_run(tell, tmp_path, data):
    place = tmp_path / "run"
    place.mkdir()
    place.chmod(0o500)
    told = tmp_path / "told"
    codes = ranks.command(words(data, place / "new"), told, obey_permissions)
    place.chmod(0o700)
    assert not any(place.iterdir())
    tell("a new run in a read-only folder", codes, Path(f"{told}.0").read_text(), "nothing is written")


@pytest.fixture
def half_done(tmp_path, undisturbed) -> Path:
    """The folder of a run of which the last checkpoints are gone."""
    run = Path(shutil.copytree(undisturbed(), tmp_path / "run"))
    (run / "summary.json").unlink()
    for path in checkpoints(run / "checkpoints")[2:]:
        shutil.rmtree(path)
    return run


@pytest.mark.slow
def test_two_programs_in_one_folder(tell, tmp_path, data, half_done):
    """The second program is refused for as long as the first lives."""
    first = ranks.start(train_for_long, data, half_done, tmp_path / "trains")
    while not (tmp_path / "trains").exists():
        assert first[0].is_alive()
        time.sleep(0.01)
    codes = ranks.command([*words(data, half_done), "--resume"], tmp_path / "told")
    first[0].kill()
    assert ranks.join(first) == [-signal.SIGKILL]
    output = (tmp_path / "told.0").read_text()
    assert ranks.command([*words(data, half_done), "--resume"], tmp_path / "told") == [0]
    tell("`--resume` while the run is still running", codes, output, "the run, unchanged")


def train_for_long(data, run, trains):
    before_step(6, lambda: (trains.touch(), time.sleep(60)))
    main([str(word) for word in [*words(data, run), "--resume"]])


def other_networks():
    """Build another projector, as a later version of the code might."""
    from sce_fast.method import build

    original = build.projector
    build.projector = lambda *settings, **more: nn.Sequential(original(*settings, **more), nn.Identity())


CHANGES = {
    "no `--resume`": ([], lambda data: None, None),
    "another τ": (["--resume", "--loss.temperature", 0.2], lambda data: None, None),
    "a file is missing": (["--resume"], lambda data: (data / "temple" / "010.jpg").unlink(), None),
    "the code builds other networks": (["--resume"], lambda data: None, other_networks),
}


@pytest.mark.slow
@pytest.mark.parametrize("change", CHANGES)
def test_what_is_not_the_same_is_refused(tell, tmp_path, data, half_done, undisturbed, change):
    more, act, fault = CHANGES[change]
    kept_file = (data / "temple" / "010.jpg").read_bytes()
    act(data)
    codes = ranks.command(words(data, half_done, *more), tmp_path / "told", fault)
    output = (tmp_path / "told.0").read_text()
    (data / "temple" / "010.jpg").write_bytes(kept_file)
    assert ranks.command([*words(data, half_done), "--resume"], tmp_path / "told") == [0]
    assert_same_run(half_done, undisturbed())
    tell(change, codes, output, f"the run, unchanged; {SAME_BITS}")


def other_threads():
    torch.set_num_threads(2)


@pytest.mark.slow
def test_other_circumstances_are_reported(tell, tmp_path, data, half_done):
    codes = ranks.command([*words(data, half_done), "--resume"], tmp_path / "told", other_threads)
    output = (tmp_path / "told.0").read_text()
    tell("another number of threads", codes, output, "everything; the run continues")
