"""A run that is killed goes on from its folder alone, and ends with the bits of one that nothing disturbed."""

import dataclasses
import os
import random
import signal
import sys
import time
from pathlib import Path

import pytest

from helpers import ranks
from helpers.runs import assert_same_run, small_config
from sce_fast.config import EvaluationConfig
from sce_fast.train import train

KILLS = 20


def finished(config, count, timeout=120):
    return ranks.join(ranks.start(train, config, ranks=count), timeout) == [0] * count


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_killed_at_twenty_random_moments(photo_folder, tmp_path, precision, count):
    """While it starts, steps, saves or evaluates; of two ranks one is killed, which the other must not wait for.

    Every fourth kill waits for the next save. A run that is over before its kill is compared, and another one begun.
    """
    changes = dict(epochs=8, precision=precision, checkpoint_every=1, loader_threads=1)
    whole = small_config(photo_folder, tmp_path / "whole", **changes)
    started = time.monotonic()
    assert finished(whole, count)
    duration = time.monotonic() - started
    moments, kills, runs, while_saving = random.Random(count), 0, 0, 0
    config = dataclasses.replace(whole, out=tmp_path / "0", resume=True)
    while kills < KILLS:
        processes = ranks.start(train, config, ranks=count)
        time.sleep(moments.uniform(0, 0.8 * duration))
        victim = moments.choice(processes)
        if kills % 4 == 3:
            victim = processes[0]  # which saves for all
            wait_for_a_save(config.out, victim)
        if victim.is_alive():
            os.kill(victim.pid, signal.SIGKILL)
        codes = ranks.join(processes, timeout=60)
        if codes[processes.index(victim)] == -signal.SIGKILL:
            kills += 1
            assert None not in codes, "a rank waits for one that is gone"
            while_saving += any(config.out.glob("checkpoints/.*"))
            continue
        assert codes == [0] * count
        assert_same_run(config.out, whole.out)
        runs += 1
        config = dataclasses.replace(config, out=tmp_path / str(runs))
    assert finished(config, count)
    assert_same_run(config.out, whole.out)
    print(f"{kills} kills in {runs + 1} runs, {while_saving} of them while a checkpoint was written or removed")
    assert while_saving, "no kill fell into a save"


def wait_for_a_save(run, process):
    while process.is_alive() and not any(run.glob("checkpoints/.writing_*")):
        time.sleep(0.0005)


def train_until_file_operation(config, fatal, counted):
    """Trains, and kills itself right before the operation of this number on a file of the run folder."""
    folder, done = os.fsencode(config.out), 0

    def before(event, arguments):
        nonlocal done
        if event not in ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir") or not arguments:
            return
        path = arguments[0]
        if isinstance(path, (str, bytes, os.PathLike)) and os.fsencode(path).startswith(folder):
            done += 1
            if done == fatal:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(before)
    train(config)
    Path(counted).write_text(str(done))


@pytest.mark.slow
def test_killed_before_each_file_operation(photo_folder, tmp_path):
    """Two checkpoints, of which one is kept, so that each kind of operation comes at least once."""
    changes = dict(
        epochs=1, batch_size=12, checkpoint_every=1, keep_checkpoints=1, loader_threads=1, evaluation=EvaluationConfig()
    )
    whole = small_config(photo_folder, tmp_path / "whole", **changes)
    ranks.run(train_until_file_operation, whole, 0, tmp_path / "counted")
    operations = int((tmp_path / "counted").read_text())
    assert operations > 30
    for number in range(1, operations + 1):
        config = dataclasses.replace(whole, out=tmp_path / str(number))
        killed = ranks.start(train_until_file_operation, config, number, tmp_path / "never")
        assert ranks.join(killed) == [-signal.SIGKILL]
        assert finished(dataclasses.replace(config, resume=True), 1), number
        assert_same_run(config.out, whole.out)
        assert not any(config.out.glob("checkpoints/.*")), "half a checkpoint was left behind"
