"""Items that crash, hang, lose the GPU or never start: each affects only its own result."""

import json
import os
import re
import sys
import time
from pathlib import Path

import pytest

from sce_fast.benchmarks.acceptance import supervise as s

ROOT = Path(__file__).parents[3]
# A process whose items do what their names say.
WORKER = """
import os, signal, subprocess, sys, time
from pathlib import Path
from benchmarks.acceptance.supervise import Events, Failure, NotRun  # importing sce_fast takes seconds

def crash():
    os.kill(os.getpid(), signal.SIGSEGV)

def leave_a_child():
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    return {"child": child.pid}

def fail():
    raise Failure("too far off", {"error": 3})

def not_run():
    raise NotRun("there is no such thing")

def half_a_line():
    with open(sys.argv[-1], "a") as file:
        file.write('{"item": "half a li')
    os._exit(0)

does = {
    "pass": lambda: {"value": 1}, "fail": fail, "crash": crash, "hang": lambda: time.sleep(60), "not run": not_run,
    "raise": lambda: 1 / 0, "child": leave_a_child, "half": half_a_line, "print": lambda: print("a word\\n" * 100),
    "lose": fail,
    "far": lambda: [events.progress("far", "the second row"), time.sleep(60)],
    "lively": lambda: [(events.progress("lively", str(i)), time.sleep(0.3)) for i in range(200)],
}
names = sys.argv[1].split(",")
lost = [name for name in names if name.startswith("lose")]
events = Events(Path(sys.argv[-1]))
events.run({name: does[name.split(".")[0]] for name in names}, lambda: bool(lost))
"""


@pytest.fixture
def run(tmp_path):
    """Supervises a process with these items; returns their outcomes and the output of each start."""
    script = tmp_path / "worker.py"
    script.write_text(WORKER)

    def run(*items, patience=20.0, seconds=60.0, command=None):
        outcomes, kept = [], []
        until = time.monotonic() + seconds

        def default(events):
            return [sys.executable, str(script), ",".join(items), str(events)]

        worker = s.Worker("work", command or default, patience, tmp_path, {"PYTHONPATH": str(ROOT)})
        s.supervise(
            worker, lambda: time.monotonic() > until, tmp_path / "events.jsonl", outcomes.append,
            lambda heading, output: kept.append((heading, output)),
        )  # fmt: skip
        names = [outcome.item for outcome in outcomes]
        assert len(names) == len(set(names))
        return {outcome.item: outcome for outcome in outcomes}, kept

    return run


def test_each_answer_is_told_with_its_reason_and_data(run):
    outcomes, kept = run("pass", "fail", "not run", "raise", "print")
    assert list(outcomes) == ["pass", "fail", "not run", "raise", "print"]
    assert (outcomes["pass"].state, outcomes["pass"].data) == ("passed", {"value": 1})
    assert (outcomes["fail"].state, outcomes["fail"].reason) == ("failed", "too far off")
    assert outcomes["fail"].data == {"error": 3}
    assert (outcomes["not run"].state, outcomes["not run"].reason) == ("not run", "there is no such thing")
    assert (outcomes["raise"].state, outcomes["raise"].reason) == ("failed", "ZeroDivisionError: division by zero")
    ((heading, output),) = kept
    assert heading == "work, start 1: ended with exit status 0"
    assert "a word\na word" in output


def test_a_crash_costs_one_item(run):
    outcomes, kept = run("pass.1", "crash", "pass.2")
    assert [outcome.state for outcome in outcomes.values()] == ["passed", "failed", "passed"]
    assert outcomes["crash"].reason == "crashed: signal 11 (SIGSEGV)"
    assert [heading for heading, _ in kept] == [
        "work, start 1: crashed: signal 11 (SIGSEGV)", "work, start 2: ended with exit status 0"
    ]  # fmt: skip


def test_a_hang_costs_one_item(run):
    started = time.monotonic()
    outcomes, _ = run("hang", "pass", patience=2.0)
    assert outcomes["hang"].state == "failed"
    assert outcomes["hang"].reason == "hung: no answer for 2 s"
    assert outcomes["pass"].state == "passed"
    assert time.monotonic() - started < 30


def test_a_lost_gpu_starts_another_process(run):
    outcomes, kept = run("lose", "pass")
    assert (outcomes["lose"].state, outcomes["lose"].reason) == ("failed", "too far off")
    assert outcomes["pass"].state == "passed"
    assert kept[0][0] == "work, start 1: ended: the GPU could no longer be used"


def test_time_that_is_over_ends_what_runs_and_names_what_did_not(run):
    outcomes, _ = run("pass", "hang", "pass.2", seconds=2.5)
    assert outcomes["pass"].state == "passed"
    assert outcomes["hang"].state == outcomes["pass.2"].state == "not run"
    assert outcomes["hang"].reason.startswith("cut off after")
    assert outcomes["pass.2"].reason == "no time left for it"


@pytest.mark.parametrize(
    ("item", "place"), [("hang", ""), pytest.param("far", ", at the second row", marks=pytest.mark.slow)]
)
def test_what_has_been_silent_when_time_is_over_has_failed(run, monkeypatch, item, place):
    monkeypatch.setattr(s, "SILENT_SECONDS", 1.0)
    outcomes, kept = run("pass", item, "pass.2", seconds=3.5)
    assert outcomes[item].state == "failed"
    assert re.fullmatch(rf"no answer for \d s when its time was over{place}", outcomes[item].reason)
    assert (outcomes["pass.2"].state, outcomes["pass.2"].reason) == ("not run", "no time left for it")
    assert len(kept) == 1  # there was no time for a restart


@pytest.mark.slow
def test_what_shows_signs_of_life_when_time_is_over_was_not_run(run, monkeypatch):
    monkeypatch.setattr(s, "SILENT_SECONDS", 1.0)
    outcomes, _ = run("lively", patience=1.5, seconds=3.5)
    assert outcomes["lively"].state == "not run"
    assert re.fullmatch(r"cut off after 0 s: no time was left, at \d+", outcomes["lively"].reason)


def test_a_process_that_never_begins_is_one_failure_with_its_last_words(run):
    outcomes, _ = run(command=lambda events: [sys.executable, "-c", "raise ImportError('no libcuda')"])
    assert outcomes["work"].state == "failed"
    assert "ended with exit status 1 before its first item" in outcomes["work"].reason
    assert outcomes["work"].reason.endswith("ImportError: no libcuda")
    outcomes, _ = run(command=lambda events: ["/no/such/program"])
    assert "cannot be started" in outcomes["work"].reason


def test_a_process_that_crashes_at_every_item_is_not_started_for_ever(run):
    names = [f"crash.{i}" for i in range(s.MAX_STARTS + 2)]
    outcomes, kept = run(*names)
    assert len(kept) == s.MAX_STARTS
    assert [outcome.state for outcome in outcomes.values()] == ["failed"] * s.MAX_STARTS + ["not run"] * 2
    assert "started 6 times" in outcomes[names[-1]].reason


def test_a_line_cut_short_by_a_kill_is_no_answer(run):
    outcomes, _ = run("half", "pass")
    assert outcomes["half"].state == "failed"
    assert outcomes["half"].reason == "ended with exit status 0"
    assert outcomes["pass"].state == "passed"


def test_what_a_process_leaves_behind_is_ended_with_it(run):
    outcomes, _ = run("child")
    child = outcomes["child"].data["child"]
    for _ in range(50):
        try:
            state = Path(f"/proc/{child}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except FileNotFoundError:
            return
        if state == "Z":  # a zombie: it has ended, but nobody has waited for it
            return
        time.sleep(0.1)
    os.kill(child, 9)
    pytest.fail("the child still runs")


def test_the_second_start_does_what_is_left(tmp_path):
    path = tmp_path / "events.jsonl"
    s.Events(path).run({"a": lambda: 1})
    calls = []
    s.Events(path).run({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")})
    assert calls == ["b"]
    assert [json.loads(line).get("state") for line in path.read_text().splitlines()] == [
        None, "started", "passed", None, "started", "passed"
    ]  # fmt: skip
