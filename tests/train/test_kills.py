"""A run that is killed resumes from its folder alone, and ends with the bits of a run that was never disturbed."""

import dataclasses
import itertools
import json
import os
import random
import shutil
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from helpers import ranks
from helpers.runs import assert_same_run, small_config
from sce_fast.config import EvaluationConfig
from sce_fast.train import train
from sce_fast.train.checkpoint import checkpoints

KILLS = 7  # of each precision and number of ranks


def finished(config, count, timeout=120):
    return ranks.join(ranks.start(train, config, ranks=count), timeout) == [0] * count


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_killed_at_random_moments(photo_folder, tmp_path, precision, count):
    """Killed while it starts, steps, saves or evaluates. Of two ranks one is killed; the other must not hang.

    Every third kill waits for the next save. A run that ends before its kill is compared, and a new one begun.
    """
    changes = dict(epochs=5, precision=precision, checkpoint_every=1, loader_threads=1)
    whole = small_config(photo_folder, tmp_path / "whole", **changes)
    started = time.monotonic()
    assert finished(whole, count)
    duration = time.monotonic() - started
    moments, kills, runs, while_saving = random.Random(f"{precision} {count}"), 0, 0, 0
    config = dataclasses.replace(whole, out=tmp_path / "0", resume=True)
    while kills < KILLS:
        processes = ranks.start(train, config, ranks=count)
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


def progress(config):
    """Return the share of the steps up to the newest checkpoint, at most 0.8 so that a kill can come late."""
    found = checkpoints(config.out / "checkpoints")
    return min(0.8, int(found[-1].name.removeprefix("step_")) / (config.epochs * 3)) if found else 0.0


def wait_for_a_save(run, process):
    while process.is_alive() and not any(run.glob("checkpoints/.writing_*")):
        time.sleep(0.0005)


OPERATIONS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir")


def watch(folder, act):
    """Have act(number, operation, path) called right before each operation on a file of the folder, in any thread."""
    lock, numbers, acting = threading.RLock(), itertools.count(1), []

    def before(event, arguments):
        if event not in OPERATIONS or not arguments or not isinstance(arguments[0], (str, bytes, os.PathLike)):
            return
        path = os.fsencode(arguments[0])
        if not path.startswith(os.fsencode(folder)):
            return
        with lock:  # other threads wait; this one comes here again for the files that act() itself opens
            if not acting:
                acting.append(path)
                act(next(numbers), event, os.fsdecode(path))
                acting.clear()

    sys.addaudithook(before)


def content(folder):
    """Return the names and bytes of a folder's files. TensorBoard's, whose names hold a time, are left out."""
    paths = [path for path in sorted(folder.rglob("*")) if path.parent.name != "tensorboard"]
    return [(str(path.relative_to(folder)), path.read_bytes() if path.is_file() else None) for path in paths]


def train_and_copy(config, copies):
    """Train; before each file operation copy the run folder to copies/NUMBER if it has changed since the last copy."""
    last, operations = [], {}

    def copy(number, operation, path):
        now = [content(config.out)] if config.out.exists() else []
        if now != last:
            last[:] = now
            shutil.copytree(config.out, copies / str(number))
        operations[number] = (operation, path)

    watch(config.out, copy)
    train(config)
    (copies / "operations.json").write_text(json.dumps(list(operations.items())))


def train_until_file_operation(config, fatal):
    """Train until the process kills itself, right before the file operation of this number."""

    def kill(number, *_):
        if number == fatal:
            os.kill(os.getpid(), signal.SIGKILL)

    watch(config.out, kill)
    train(config)


def train_all(configs):
    for config in configs:
        train(config)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory, photo_folder):
    """A run, and a copy of its folder for every different state that a kill before a file operation leaves.

    The run writes two checkpoints and keeps one, so that each kind of operation comes at least once.
    """
    folder = tmp_path_factory.mktemp("recorded")
    copies = folder / "copies"
    copies.mkdir()
    whole = small_config(
        photo_folder, folder / "whole", epochs=1, batch_size=12, checkpoint_every=1, keep_checkpoints=1,
        loader_threads=1, evaluation=EvaluationConfig(),
    )  # fmt: skip
    ranks.run(train_and_copy, whole, copies)
    operations = {number: tuple(rest) for number, rest in json.loads((copies / "operations.json").read_text())}
    return whole, copies, operations


@pytest.mark.slow
def test_resumed_from_the_state_before_each_file_operation(recorded, tmp_path):
    """Operations that find the same files with the same content share one resume."""
    whole, copies, operations = recorded
    assert len(operations) > 30
    states = [path for path in Path(shutil.copytree(copies, tmp_path / "copies")).iterdir() if path.is_dir()]
    assert len(states) > 15
    configs = [dataclasses.replace(whole, out=path, resume=True) for path in states]
    workers = [ranks.start(train_all, part)[0] for part in (configs[::2], configs[1::2])]
    assert ranks.join(workers) == [0, 0]
    for state in states:
        assert_same_run(state, whole.out)
        assert not any(state.glob("checkpoints/.*")), "half a checkpoint was left behind"
    print(f"{len(states)} states before {len(operations)} operations")


@pytest.mark.slow
@pytest.mark.parametrize("operation", OPERATIONS)
def test_killed_before_a_file_operation_of_each_kind(recorded, tmp_path, operation):
    """Killed before the last operation of its kind: the folder is as it was copied there, and the run resumes."""
    whole, copies, operations = recorded
    number = max(n for n, (kind, path) in operations.items() if kind == operation and "tensorboard" not in path)
    copied = max(int(path.name) for path in copies.iterdir() if path.name.isdigit() and int(path.name) <= number)
    config = dataclasses.replace(whole, out=tmp_path / "run")
    killed = ranks.start(train_until_file_operation, config, number)
    assert ranks.join(killed) == [-signal.SIGKILL]
    names = [[name for name, _ in content(folder)] for folder in (config.out, copies / str(copied))]
    assert names[0] == names[1]
    assert finished(dataclasses.replace(config, resume=True), 1)
    assert_same_run(config.out, whole.out)
    assert not any(config.out.glob("checkpoints/.*")), "half a checkpoint was left behind"
