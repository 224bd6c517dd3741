"""Stops runs by signals and kills; docs/faults.md says what the user sees and what is kept.

SCE_FAST_WRITE_DOCS=1 pytest tests/train/test_faults*.py writes the table.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import sce_fast.train.checkpoint
from helpers import faults, ranks
from helpers.faults import SAME_BITS, Broken, before_step, send, words
from helpers.runs import assert_same_run
from sce_fast.train.checkpoint import checkpoints
from sce_fast.train.evaluation import PeriodicEvaluation
from sce_fast.train.stop import REQUEUE

EPOCHS, STEPS = 40, 120
LONG = ("--epochs", EPOCHS, "--checkpoint-every", 1000)  # long enough for a signal to come before the end


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
    tell(f"{fault} during step 5", broken.codes, broken.output, f"step 5; {SAME_BITS}")


@pytest.mark.slow
def test_ctrl_c_twice(tell, tmp_path, data, undisturbed):
    broken = Broken(tmp_path, data, fault=press_ctrl_c_twice)
    assert (broken.codes, broken.newest()) == ([130], 4)
    broken.resume(undisturbed())
    tell("Ctrl-C twice during step 5", broken.codes, broken.output, f"step 4; {SAME_BITS}")


def send_sigterm_to_one_rank():
    if os.environ["RANK"] == "1":
        send(signal.SIGTERM)


@pytest.mark.slow
def test_a_signal_to_one_of_two_ranks(tell, tmp_path, data, undisturbed):
    """The ranks agree on the step to stop at without waiting for one another, so they stop one step later."""
    broken = Broken(tmp_path, data, fault=send_sigterm_to_one_rank, ranks_=2)
    assert (broken.codes, broken.newest()) == ([REQUEUE] * 2, 6)
    broken.resume(undisturbed(2))
    tell("SIGTERM to one of two ranks, step 5", broken.codes, broken.output, f"step 6; {SAME_BITS}")


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
    kept = f"step 6; {SAME_BITS}, which begins with the evaluation"
    tell("SIGTERM during the evaluation after step 6", broken.codes, broken.output, kept)


@pytest.fixture(scope="module")
def long_run(tmp_path_factory, photo_folder):
    """The folder of a run on two ranks that has time for a signal to torchrun, undisturbed."""
    folder = tmp_path_factory.mktemp("long")
    assert ranks.command(words(photo_folder, folder / "run", *LONG), folder / "told", ranks=2) == [0, 0]
    return folder / "run"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "handles"),
    [(signal.SIGTERM, True), (signal.SIGUSR1, True), (signal.SIGUSR1, False)],
)
def test_a_signal_to_torchrun(tell, tmp_path, data, long_run, number, handles):
    """torchrun forwards the signals that it handles and waits; if it dies, Linux sends SIGTERM to the ranks.

    One of the three runs is resumed under torchrun too.
    """
    run = tmp_path / "run"
    torchrun, program = (Path(sys.executable).with_name(name) for name in ("torchrun", "sce-fast"))
    named = ["--signals-to-handle", "SIGTERM,SIGINT,SIGUSR1"] if handles else []
    start = [torchrun, "--standalone", "--nproc-per-node", 2, *named, "--no-python", program]

    def launch(*more):
        command = [str(word) for word in (*start, *words(data, run, *LONG, *more))]
        return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)

    process = launch()
    wait_for_lines(run / "log.jsonl", 3, process)
    process.send_signal(number)
    output, status = process.communicate(timeout=120)[1], process.returncode
    step = int(checkpoints(run / "checkpoints")[-1].name.removeprefix("step_"))
    assert 3 <= step < STEPS
    assert not (run / "summary.json").exists()
    if number == signal.SIGTERM:
        process = launch("--resume")
        _, text = process.communicate(timeout=240)
        assert process.returncode == 0, text
    else:
        assert ranks.command(words(data, run, *LONG, "--resume"), tmp_path / "told", ranks=2) == [0, 0]
    assert_same_run(run, long_run)
    (said,) = (line.replace(f"step {step} ", "step N ") for line in output.splitlines() if line.startswith("Stopped"))
    kept = f"step N; {SAME_BITS}; no `summary.json` yet"
    fault = f"{number.name} to `{' '.join(['torchrun', *named])}`, two ranks"
    tell(fault, [status], said, kept)


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
    tell("kill -9 of one of two ranks, step 5", broken.codes, broken.output, f"step 4; {SAME_BITS}")


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
    tell("kill -9 while the checkpoint of step 6 is written", broken.codes, broken.output, f"step 4; {SAME_BITS}")


def test_the_table_holds_every_fault_once_and_in_order():
    text = faults.DOCS.read_text()
    assert faults.rows(text).keys() >= {fault for titles in faults.SECTIONS.values() for fault in titles}
    assert faults.document(faults.rows(text)) == text
