"""The acceptance run without a GPU: it finishes, and no part affects another part."""

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from sce_fast.benchmarks.acceptance import gpu_kernels
from sce_fast.benchmarks.acceptance import run as acceptance
from sce_fast.benchmarks.acceptance.items import SLOW
from sce_fast.benchmarks.acceptance.supervise import NotRun, Worker

ROOT = Path(__file__).parents[3]
NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="torch sees a CUDA device")


def run_command(tmp_path, *options):
    command = [sys.executable, "-m", "benchmarks.acceptance", "--out", str(tmp_path / "out"), *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    record = json.loads((tmp_path / "out" / "acceptance.json").read_text())
    return done, record, (tmp_path / "out" / "acceptance.md").read_text()


@pytest.mark.slow
@NO_GPU
def test_without_a_gpu_every_part_says_why_it_was_not_run(tmp_path):
    done, record, text = run_command(tmp_path)
    assert done.returncode == 0, done.stderr
    assert record["finished"]
    assert set(record["parts"]) == set(acceptance.PARTS)
    for part in record["parts"].values():
        assert (part["state"], part["reason"]) == ("not run", "torch sees no CUDA device")
    assert record["machine"]["packages"]["torch"] == torch.__version__
    assert "# Acceptance run on a machine without a GPU" in text
    assert f"- torch sees no CUDA device: build; tests; parity and {len(acceptance.PARTS) - 3} more" in text
    assert all(target["reached"] is None for target in record["targets"])
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "acceptance.json", "acceptance.md", "output.log"
    ]  # fmt: skip


@pytest.mark.slow
def test_the_parts_that_measure_run_on_a_cpu(tmp_path):
    done, record, text = run_command(tmp_path, "--device", "cpu")
    assert done.returncode == 0, done.stdout + done.stderr
    states = {name: part["state"] for name, part in record["parts"].items()}
    assert states == {
        "build": "not run", "tests": "not run", "parity": "passed", "loss": "passed", "dtypes": "passed",
        "choices": "not run", "step": "passed", "graph": "not run", "sanitizer": "not run", "loader": "passed",
        "pixels": "passed", "video": "passed",
    }  # fmt: skip
    parity = record["parts"]["parity"]["outcomes"]
    assert {outcome["item"].split(":")[0] for outcome in parity} == set(gpu_kernels.cpu_backends())
    assert all(0 < outcome["data"]["worst"] <= 1 for outcome in parity)
    loss = record["parts"]["loss"]["outcomes"][0]["data"]
    measured = {result["peer"] for result in loss["results"] if result["seconds"]}
    assert {"cpu", "official", "attention", "attention-math", "chunked"} <= measured
    assert loss["left_out"] == sorted(SLOW)
    videos = {outcome["item"]: outcome for outcome in record["parts"]["video"]["outcomes"]}
    assert videos["frames of H.264, BT.601"]["reason"] == "DALI decodes no h264 on a CPU"
    assert videos["frames of VP9, BT.709"]["data"]["mean"] < 1
    assert videos["R3D-50, video files through the loader"]["state"] == "passed"
    assert re.search(r"8, 256, 32 bfloat16 \| cpu \|", text)
    assert re.search(r"\| rows float32, queue bfloat16 \| bfloat16 \| cpu \|", text)
    assert "This run would choose " in text
    assert "Training step, synthetic images, resnet18, batch 4" in text
    assert "DALI, pixels from PNG files: views differ by 0.00 of 255" in text


def test_records_of_a_gpu_have_a_place_of_their_own():
    place = acceptance.results_folder("NVIDIA H100 80GB HBM3")
    assert re.fullmatch(r"benchmarks/results/h100_80gb_hbm3/\d{4}-\d\d-\d\d", str(place))


def test_wrong_options_are_named(tmp_path):
    with pytest.raises(ValueError, match="unknown part 'los': expected some of build, tests, parity"):
        acceptance.main(out=tmp_path, only=("los",))
    with pytest.raises(ValueError, match="device='cuda': expected auto or cpu"):
        acceptance.main(out=tmp_path, device="cuda")


def test_a_process_that_hangs_leaves_time_to_those_behind_it(monkeypatch):
    """Except the build, whose compilers print nothing while they work."""
    monkeypatch.setattr(acceptance, "kernels", lambda context: ["triton", "sm80"])
    machine = {"gpu": "NVIDIA H200", "capability": "9.0", "processors": 16, "compute_sanitizer": "/bin/true"}
    context = acceptance.Context("cuda", machine, "")
    for name in set(acceptance.PARTS) - {"build"}:
        part = acceptance.PARTS[name]
        for worker in part.workers(context):
            assert worker.patience < part.seconds * 0.95, name


def script(code, patience=30.0):
    """Return a worker that runs code, which finds its `events`."""
    head = "import os, sys, time; from pathlib import Path; from benchmarks.acceptance.supervise import Events\n"
    head += "events = Events(Path(sys.argv[1]))\n"
    return Worker("part", lambda events: [sys.executable, "-c", head + code, str(events)], patience, ROOT)


@pytest.fixture
def parts(monkeypatch):
    """Replaces the parts of the run, on a machine that pretends to have a GPU."""
    machine = {
        "gpu": "NVIDIA H200", "capability": "9.0", "multiprocessors": 132, "memory_gib": 140.0, "cuda": "13.0",
        "cudnn": 91000, "processors": 4, "packages": {"torch": "2.11.0"}, "python": "3.12.3",
    }  # fmt: skip
    monkeypatch.setattr(acceptance, "look_at_machine", lambda commit: {**machine, "commit": commit})

    def use(**workers):
        made = {
            name: acceptance.Part(name.title(), 10, lambda context, made=made: made, lambda context: 2)
            for name, made in workers.items()
        }
        monkeypatch.setattr(acceptance, "PARTS", made)

    return use


def run_here(tmp_path, **options):
    passed = acceptance.main(out=tmp_path, **options)
    return passed, json.loads((tmp_path / "acceptance.json").read_text()), (tmp_path / "acceptance.md").read_text()


PASSES = "events.run({'it passes': lambda: {'value': 1}})"
CRASHES = "events.run({'before': lambda: None, 'it crashes': lambda: os.abort(), 'after': lambda: None})"
HANGS = "events.run({'it hangs': lambda: time.sleep(60), 'behind it': lambda: None})"


def test_a_crash_and_a_hang_take_no_other_part_along(tmp_path, parts):
    parts(
        first=[script(CRASHES), script("raise SystemExit('no such driver')")],
        second=[script(HANGS, patience=2.0)],
        third="there is no compute-sanitizer",
        last=[script(PASSES)],
    )
    passed, record, text = run_here(tmp_path, commit="abc123")
    assert not passed
    states = {name: part["state"] for name, part in record["parts"].items()}
    assert states == {"first": "failed", "second": "failed", "third": "not run", "last": "passed"}
    assert record["parts"]["first"]["reason"] == "2 passed, 2 failed"
    assert "it crashes`: crashed: signal 6 (SIGABRT)" in text
    assert "before its first item: no such driver" in text
    assert "it hangs`: hung: no answer for 2 s" in text
    assert "- there is no compute-sanitizer: third" in text
    assert "commit abc123" in text
    assert record["parts"]["last"]["outcomes"][0]["data"] == {"value": 1}
    log = (tmp_path / "output.log").read_text()
    assert log.count("=" * 100) == 6  # starts: two each of the crashing and the hanging process, one each of the others
    assert "no such driver" in log


def test_a_part_that_cannot_say_what_to_run_is_not_run(tmp_path, parts, monkeypatch):
    def broken(context):
        raise NotRun("the package cannot be imported: No module named 'sce_fast.kernels'")

    monkeypatch.setattr(acceptance, "PARTS", {"broken": acceptance.Part("Broken", 1, broken)})
    parts_before = acceptance.PARTS
    passed, record, _ = run_here(tmp_path)
    assert acceptance.PARTS is parts_before
    assert passed
    assert record["parts"]["broken"]["reason"].startswith("the package cannot be imported")


def write_checkout(folder, crash):
    """Write a checkout in which importing the package runs this code."""
    (folder / "tests").mkdir(parents=True)
    (folder / "benchmarks" / "acceptance").mkdir(parents=True)
    (folder / "benchmarks" / "acceptance" / "gpu_kernels.py").write_text(crash)


@pytest.mark.parametrize(
    ("crash", "reason"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", r"crashed: signal 11 \(SIGSEGV\)"),
        (
            "import os; os.write(2, b'what(): bad symbol'); os.abort()",
            r"crashed: signal 6 \(SIGABRT\) what\(\): bad symbol",
        ),
        ("import time; time.sleep(60)", "hung: no answer for 3 s"),
    ],
)
def test_a_package_whose_import_crashes_or_hangs_takes_no_other_part_along(tmp_path, parts, monkeypatch, crash, reason):
    """A shared library may crash the process while it is loaded."""
    checkout = tmp_path / "checkout"
    write_checkout(checkout, crash)
    monkeypatch.setattr(acceptance, "ROOT", checkout)
    monkeypatch.setattr(acceptance, "IMPORT_SECONDS", 3.0)
    parity = acceptance.PARTS["parity"]
    parts(last=[script(PASSES)])
    monkeypatch.setattr(acceptance, "PARTS", {"first": parity, **acceptance.PARTS})
    passed, record, _ = run_here(tmp_path / "out")
    assert not passed
    assert record["finished"]
    assert re.fullmatch(f"importing the package {reason}", record["parts"]["first"]["reason"])
    assert {name: part["state"] for name, part in record["parts"].items()} == {"first": "failed", "last": "passed"}


def test_a_package_that_is_not_installed_is_not_run(monkeypatch, tmp_path):
    write_checkout(tmp_path, "raise ModuleNotFoundError('no torch')")
    monkeypatch.setattr(acceptance, "ROOT", tmp_path)
    with pytest.raises(NotRun, match=r"the package cannot be imported: .*ModuleNotFoundError: no torch$"):
        acceptance.kernels(acceptance.Context("cuda", {}, ""))


def test_the_time_of_all_is_kept(tmp_path, parts):
    """A part may use its share and the unused time of earlier parts; later parts still run."""
    parts(first=[script(HANGS)], second=[script(PASSES)])
    started = time.monotonic()
    passed, record, text = run_here(tmp_path, minutes=4 / 60)
    assert time.monotonic() - started < 20
    assert passed  # a part that is cut off has not failed
    assert record["parts"]["first"]["state"] == "not run"
    assert record["parts"]["second"]["state"] == "passed"
    assert "no time left for it: behind it" in text


def test_a_run_that_is_ended_from_outside_tells_what_it_had(tmp_path, parts):
    parts(first=[script(PASSES)], second=[script(HANGS)], third=[script(PASSES)])

    def end_soon():
        """Wait until the second part runs, then send SIGTERM."""
        for _ in range(600):
            time.sleep(0.05)
            path = tmp_path / "acceptance.json"
            if path.exists() and json.loads(path.read_text())["parts"].get("second"):
                break
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=end_soon).start()
    before = signal.getsignal(signal.SIGTERM)
    _, record, text = run_here(tmp_path)
    assert signal.getsignal(signal.SIGTERM) is before
    assert not record["finished"]
    assert record["parts"]["first"]["state"] == "passed"
    assert record["parts"]["second"]["state"] == "not run"
    assert record["parts"]["third"]["reason"] == "the run was stopped by a signal"
    assert "The run did not finish" in text


def test_both_files_are_there_while_a_part_is_at_work(tmp_path, parts):
    """A run killed with SIGKILL leaves both files."""
    look = f"(time.sleep(0.8), [Path({str(tmp_path)!r}, name).read_text() for name in names])[1]"
    code = f"names = 'acceptance.json', 'acceptance.md'; events.run({{'a': lambda: 1, 'b': lambda: {look}}})"
    parts(first=[script(code)])
    _, record, _ = run_here(tmp_path)
    while_at_work, text = record["parts"]["first"]["outcomes"][1]["data"]
    part = json.loads(while_at_work)["parts"]["first"]
    assert part["state"] == "running"
    assert [outcome["item"] for outcome in part["outcomes"]] == ["a"]
    assert "did not finish" in text


SAMPLE = """
import os, time
import pytest

@pytest.fixture
def broken(): raise RuntimeError("no fixture")

@pytest.mark.gpu
def test_passes(): pass

@pytest.mark.gpu
def test_fails(): assert 1 + 1 == 3, "arithmetic"

@pytest.mark.gpu
@pytest.mark.skip(reason="another GPU")
def test_skips(): pass

@pytest.mark.gpu
def test_crashes(): os.abort()

@pytest.mark.gpu
def test_set_up_fails(broken): pass

@pytest.mark.gpu
def test_hangs(): time.sleep(60)

@pytest.mark.gpu
@pytest.mark.parametrize("n", [1, 2])
def test_after(n): pass

def test_of_a_cpu(): assert False
"""


@pytest.mark.slow
def test_tests_are_items_of_their_own(tmp_path, parts, monkeypatch):
    """The part's own command runs a folder of tests that fail in every way."""
    folder = tmp_path / "checkout"
    (folder / "tests").mkdir(parents=True)
    (folder / "benchmarks").symlink_to(ROOT / "benchmarks")
    (folder / "pytest.ini").write_text("[pytest]\nmarkers = gpu: needs a GPU\n")
    (folder / "tests" / "test_sample.py").write_text(SAMPLE)
    (folder / "tests" / "test_data.py").write_text("import nvidia_of_another_kind")
    (folder / "tests" / "test_typo.py").write_text("x = 1 +")
    monkeypatch.setattr(acceptance, "ROOT", folder)
    context = acceptance.Context("cuda", {"processors": 4}, "")
    workers = acceptance.test_workers(context)
    assert len(workers) == 2
    quick = {"patience": 5.0, "environment": {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}}
    parts(tests=[dataclasses.replace(worker, **quick) for worker in workers])
    _, record, text = run_here(tmp_path / "out")
    found = {outcome["item"].split("::")[-1]: outcome for outcome in record["parts"]["tests"]["outcomes"]}
    assert {name: outcome["state"] for name, outcome in found.items()} == {
        "test_passes": "passed", "test_fails": "failed", "test_skips": "not run", "test_crashes": "failed",
        "test_set_up_fails": "failed", "test_hangs": "failed", "test_after[1]": "passed", "test_after[2]": "passed",
        "tests/test_data.py": "not run", "tests/test_typo.py": "failed",
    }  # fmt: skip
    assert found["test_fails"]["reason"].startswith("AssertionError: arithmetic")
    assert found["test_skips"]["reason"] == "another GPU"
    assert found["test_crashes"]["reason"] == "crashed: signal 6 (SIGABRT)"
    assert "no fixture" in found["test_set_up_fails"]["reason"]
    assert found["test_hangs"]["reason"] == "hung: no answer for 5 s"
    assert "No module named 'nvidia_of_another_kind'" in found["tests/test_data.py"]["reason"]
    assert "SyntaxError" in found["tests/test_typo.py"]["reason"]
    assert "| tests/test_sample.py | 3 | 4 | 1 |" in text
    assert "assert (1 + 1) == 3" in (tmp_path / "out" / "output.log").read_text()
