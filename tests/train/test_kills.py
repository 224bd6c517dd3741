"""A run that is killed resumes from its folder alone, and ends with the bits of a run that was never disturbed."""

import dataclasses
import itertools
import json
import os
import random
import signal
import sys
import threading
import time

import pytest
import torch

from helpers import ranks
from helpers.runs import assert_same_run, small_config, small_video_config
from sce_fast.config import EvaluationConfig
from sce_fast.distributed import process_group
from sce_fast.train import train
from sce_fast.train.checkpoint import checkpoints

KILLS = 10  # of each run


def finished(config, count, timeout=120):
    return ranks.join(ranks.start(train, config, ranks=count), timeout) == [0] * count


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_killed_at_random_moments(photo_folder, tmp_path, precision, count):
    changes = dict(epochs=5, precision=precision, checkpoint_every=1, loader_threads=1)
    kill_at_random_moments(small_config(photo_folder, tmp_path / "whole", **changes), tmp_path, count)


@pytest.mark.slow
def test_a_run_on_videos_killed_at_random_moments(video_folder, tmp_path):
    whole = small_video_config(video_folder, tmp_path / "whole", epochs=4, checkpoint_every=1, loader_threads=2)
    kill_at_random_moments(whole, tmp_path, count=1)


def kill_at_random_moments(whole, tmp_path, count):
    """Kill a run while it starts, steps, saves or evaluates. Of two ranks one is killed; the other must not hang.

    Every third kill waits for the next save. A run that ends before its kill is compared, and a new one begun. No rank
    is killed before it has joined the others, who would wait for it: under torchrun, torchrun ends them.
    """
    started = time.monotonic()
    assert finished(whole, count)
    duration = time.monotonic() - started
    moments, kills, runs, while_saving = random.Random(f"{whole.precision} {count}"), 0, 0, 0
    config = dataclasses.replace(whole, out=tmp_path / "0", resume=True)
    while kills < KILLS:
        processes = ranks.start(train_once_joined, config, tmp_path, ranks=count)
        wait_until_joined(tmp_path, processes)
        time.sleep(moments.uniform(0, 0.8 * duration * (1 - progress(config))))
        victim = moments.choice(processes)
        if kills % 3 == 2:
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


def train_once_joined(config, folder):
    """Train; leave a file in the folder when this process has joined the other ranks."""
    with process_group(torch.device("cpu")):
        (folder / f"{os.getpid()}.joined").touch()
        train(config)


def wait_until_joined(folder, processes):
    missing = {process.pid for process in processes}
    while missing:
        missing = {pid for pid in missing if not (folder / f"{pid}.joined").exists()}
        assert all(process.is_alive() for process in processes if process.pid in missing)
        time.sleep(0.001)


def progress(config):
    """Return the share of the steps up to the newest checkpoint, at most 0.8 so that a kill can come late."""
    found = checkpoints(config.out / "checkpoints")
    return min(0.8, int(found[-1].name.removeprefix("step_")) / (config.epochs * 3)) if found else 0.0


def wait_for_a_save(run, process):
    while process.is_alive() and not any(run.glob("checkpoints/.writing_*")):
        time.sleep(0.0005)


def watch(folder, act):
    """Have act(number) called right before each operation on a file of the folder, in any thread."""
    lock, numbers, acting = threading.RLock(), itertools.count(1), []

    def before(event, arguments):
        if event not in ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir") or not arguments:
            return
        path = arguments[0]
        if not isinstance(path, (str, bytes, os.PathLike)) or not os.fsencode(path).startswith(os.fsencode(folder)):
            return
        with lock:  # other threads wait; this one comes here again for the files that act() itself opens
            if not acting:
                acting.append(path)
                act(next(numbers))
                acting.clear()

    sys.addaudithook(before)


def train_and_note_changes(config, noted):
    """Train; write how many file operations there are, and the numbers of those that find the folder changed.

    TensorBoard's files do not count: another thread writes them, and a resume begins them anew.
    """
    last, changed, operations = None, [], 0

    def note(number):
        nonlocal last, operations
        paths = [path for path in sorted(config.out.rglob("*")) if path.parent.name != "tensorboard"]
        now = config.out.exists(), [(path, path.read_bytes() if path.is_file() else None) for path in paths]
        if now != last:
            changed.append(number)
        last, operations = now, number

    watch(config.out, note)
    train(config)
    noted.write_text(json.dumps([operations, changed]))


def train_until_file_operation(config, fatal):
    """Train until the process kills itself, right before the file operation of this number."""
    watch(config.out, lambda number: number == fatal and os.kill(os.getpid(), signal.SIGKILL))
    train(config)


@pytest.mark.slow
def test_killed_before_each_file_operation(photo_folder, tmp_path):
    """Killed in every state of the folder in which an operation finds it.

    The run writes two checkpoints and keeps one, so that each kind of operation comes at least once.
    """
    changes = dict(
        epochs=1, batch_size=12, checkpoint_every=1, keep_checkpoints=1, loader_threads=1, evaluation=EvaluationConfig()
    )
    whole = small_config(photo_folder, tmp_path / "whole", **changes)
    ranks.run(train_and_note_changes, whole, tmp_path / "noted")
    operations, changed = json.loads((tmp_path / "noted").read_text())
    assert operations > 30
    assert len(changed) > 20
    for number in changed:
        config = dataclasses.replace(whole, out=tmp_path / str(number))
        killed = ranks.start(train_until_file_operation, config, number)
        assert ranks.join(killed) == [-signal.SIGKILL]
        assert finished(dataclasses.replace(config, resume=True), 1), number
        assert_same_run(config.out, whole.out)
        assert not any(config.out.glob("checkpoints/.*")), "half a checkpoint was left behind"
    print(f"{len(changed)} kills for {operations} operations")
