"""The acceptance run without a GPU: it ends in order, and nothing takes the other parts along."""

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from sce_fast.benchmarks import loss
from sce_fast.benchmarks import machine as gpu_machine
from sce_fast.benchmarks.acceptance import build as gpu_build
from sce_fast.benchmarks.acceptance import gpu_kernels, sanitize
from sce_fast.benchmarks.acceptance import run as acceptance
from sce_fast.benchmarks.acceptance import work as acceptance_work
from sce_fast.benchmarks.acceptance.report import page, targets
from sce_fast.benchmarks.acceptance.supervise import Events, NotRun, Work, read_lines
from sce_fast.benchmarks.peers import peers
from sce_fast.loss import cuda as native_cuda
from sce_fast.loss.backends import BACKENDS, Backend
from sce_fast.native import CUDA

ROOT = Path(__file__).parents[3]
NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="what is said where torch sees no CUDA device")


def run_command(tmp_path, *options):
    command = [sys.executable, "-m", "benchmarks.acceptance", "--out", str(tmp_path / "out"), *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    record = json.loads((tmp_path / "out" / "acceptance.json").read_text())
    return done, record, (tmp_path / "out" / "acceptance.md").read_text()


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
    assert "- torch sees no CUDA device: build; tests; parity and 4 more" in text
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
        "build": "not run", "tests": "not run", "parity": "passed", "loss": "passed", "step": "passed",
        "sanitizer": "not run", "loader": "passed",
    }  # fmt: skip
    parity = record["parts"]["parity"]["outcomes"]
    assert {outcome["item"].split(":")[0] for outcome in parity} == set(gpu_kernels.backends_of_a_cpu())
    assert all(0 < outcome["data"]["worst"] <= 1 for outcome in parity)
    loss = record["parts"]["loss"]["outcomes"][0]["data"]
    measured = {result["peer"] for result in loss["results"] if result["seconds"]}
    assert {"cpu", "official", "attention", "attention-math", "chunked"} <= measured
    assert loss["left_out"] == sorted(acceptance_work.SLOW)
    assert record["parts"]["loader"]["outcomes"][-1]["reason"] == "the package has no video path yet"
    assert re.search(r"8, 256, 32 bfloat16 \| cpu \|", text)
    assert "Training step, synthetic images, resnet18, batch 4" in text
    assert "DALI, pixels from PNG files: views differ by 0.00 of 255" in text


def test_records_of_a_gpu_have_a_place_of_their_own():
    place = acceptance.place_of_results("NVIDIA H100 80GB HBM3")
    assert re.fullmatch(r"benchmarks/results/h100_80gb_hbm3/\d{4}-\d\d-\d\d", str(place))


def test_tools_of_the_cuda_toolkit_are_looked_for(tmp_path, monkeypatch):
    program = tmp_path / "bin" / "compute-sanitizer"
    program.parent.mkdir()
    program.touch(mode=0o755)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert gpu_machine.find_tool("compute-sanitizer") == str(program)
    assert gpu_machine.find_tool("no-such-tool") is None


def test_wrong_options_are_named(tmp_path):
    with pytest.raises(ValueError, match="unknown part 'los': expected some of build, tests, parity"):
        acceptance.main(out=tmp_path, only=("los",))
    with pytest.raises(ValueError, match="device='cuda': expected auto or cpu"):
        acceptance.main(out=tmp_path, device="cuda")


# ---------------------------------------------------------------------------------------------- parts that go wrong


def script(code, patience=30.0):
    """A process that runs code with `events` at hand."""
    head = "import os, sys, time; from pathlib import Path; from benchmarks.acceptance.supervise import Events\n"
    head += "events = Events(Path(sys.argv[1]))\n"
    return Work("part", lambda events: [sys.executable, "-c", head + code, str(events)], patience, ROOT)


@pytest.fixture
def parts(monkeypatch):
    """Puts other parts in the place of the real ones, on a machine that is said to have a GPU."""
    machine = {
        "gpu": "NVIDIA H200", "capability": "9.0", "multiprocessors": 132, "memory_gib": 140.0, "cuda": "13.0",
        "cudnn": 91000, "processors": 4, "packages": {"torch": "2.11.0"}, "python": "3.12.3",
    }  # fmt: skip
    monkeypatch.setattr(acceptance, "look_at_machine", lambda commit: {**machine, "commit": commit})

    def use(**works):
        made = {
            name: acceptance.Part(name.title(), 10, lambda context, made=made: made, lambda context: 2)
            for name, made in works.items()
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
    assert "it hangs`: hung: no answer in 2 s" in text
    assert "- there is no compute-sanitizer: third" in text
    assert "commit abc123" in text
    assert record["parts"]["last"]["outcomes"][0]["data"] == {"value": 1}
    log = (tmp_path / "output.log").read_text()
    assert log.count("=" * 100) == 6  # starts: two of what crashed, two of what hung, one each of the others
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


@pytest.mark.parametrize(
    ("crash", "reason"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", r"crashed: signal 11 \(SIGSEGV\)"),
        (
            "import os; os.write(2, b'what(): bad symbol'); os.abort()",
            r"crashed: signal 6 \(SIGABRT\) what\(\): bad symbol",
        ),
        ("import time; time.sleep(60)", "hung: no answer in 3 s"),
    ],
)
def test_a_package_whose_import_crashes_or_hangs_takes_no_other_part_along(tmp_path, parts, monkeypatch, crash, reason):
    """As a shared library that the loader brings down the process with does."""
    checkout = tmp_path / "checkout"
    (checkout / "tests").mkdir(parents=True)
    (checkout / "sce_fast.py").write_text(crash)
    monkeypatch.setattr(acceptance, "ROOT", checkout)
    monkeypatch.setattr(acceptance, "IMPORT_SECONDS", 3.0, raising=False)
    parity = acceptance.PARTS["parity"]
    parts(last=[script(PASSES)])
    monkeypatch.setattr(acceptance, "PARTS", {"first": parity, **acceptance.PARTS})
    passed, record, _ = run_here(tmp_path / "out")
    assert not passed
    assert record["finished"]
    assert re.fullmatch(f"importing the package {reason}", record["parts"]["first"]["reason"])
    assert {name: part["state"] for name, part in record["parts"].items()} == {"first": "failed", "last": "passed"}


def test_a_package_that_is_not_installed_is_not_run(monkeypatch, tmp_path):
    monkeypatch.setattr(acceptance, "ROOT", tmp_path)
    (tmp_path / "sce_fast.py").write_text("raise ModuleNotFoundError('no torch')")
    with pytest.raises(NotRun, match=r"the package cannot be imported: .*ModuleNotFoundError: no torch$"):
        acceptance.kernels(acceptance.Context("cuda", {}, ""))


def test_the_time_of_all_is_kept(tmp_path, parts):
    """A part may take its share and what was left before it; what comes later still has its turn."""
    parts(first=[script(HANGS)], second=[script(PASSES)])
    started = time.monotonic()
    passed, record, text = run_here(tmp_path, minutes=4 / 60)
    assert time.monotonic() - started < 20
    assert passed  # nothing failed: it was cut off
    assert record["parts"]["first"]["state"] == "not run"
    assert record["parts"]["second"]["state"] == "passed"
    assert "no time left for it: behind it" in text


def test_a_run_that_is_ended_from_outside_tells_what_it_had(tmp_path, parts):
    parts(first=[script(PASSES)], second=[script(HANGS)], third=[script(PASSES)])

    def end_soon():
        """Once the second part is at work."""
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
    assert record["parts"]["third"]["reason"] == "the run was ended from outside"
    assert "The run has not come to its end" in text


def test_both_files_are_there_while_a_part_is_at_work(tmp_path, parts):
    """What a run that is killed outright leaves behind."""
    look = f"(time.sleep(0.8), [Path({str(tmp_path)!r}, name).read_text() for name in names])[1]"
    code = f"names = 'acceptance.json', 'acceptance.md'; events.run({{'a': lambda: 1, 'b': lambda: {look}}})"
    parts(first=[script(code)])
    _, record, _ = run_here(tmp_path)
    while_at_work, text = record["parts"]["first"]["outcomes"][1]["data"]
    part = json.loads(while_at_work)["parts"]["first"]
    assert part["state"] == "running"
    assert [outcome["item"] for outcome in part["outcomes"]] == ["a"]
    assert "has not come to its end" in text


# ---------------------------------------------------------------------------------------------- tests as items

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


def test_tests_are_items_of_their_own(tmp_path, parts, monkeypatch):
    """By the part's own command, on a folder of tests that go wrong in every way."""
    folder = tmp_path / "checkout"
    (folder / "tests").mkdir(parents=True)
    (folder / "benchmarks").symlink_to(ROOT / "benchmarks")
    (folder / "pytest.ini").write_text("[pytest]\nmarkers = gpu: needs a GPU\n")
    (folder / "tests" / "test_sample.py").write_text(SAMPLE)
    (folder / "tests" / "test_data.py").write_text("import nvidia_of_another_kind")
    (folder / "tests" / "test_typo.py").write_text("x = 1 +")
    monkeypatch.setattr(acceptance, "ROOT", folder)
    context = acceptance.Context("cuda", {"processors": 4}, "")
    works = acceptance.tests(context)
    assert len(works) == 2
    parts(tests=[Work(w.name, w.command, 5.0, w.folder, {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}) for w in works])
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
    assert found["test_hangs"]["reason"] == "hung: no answer in 5 s"
    assert "No module named 'nvidia_of_another_kind'" in found["tests/test_data.py"]["reason"]
    assert "SyntaxError" in found["tests/test_typo.py"]["reason"]
    assert "| tests/test_sample.py | 3 | 4 | 1 |" in text
    assert "assert (1 + 1) == 3" in (tmp_path / "out" / "output.log").read_text()


# ---------------------------------------------------------------------------------------------- the page


def result(peer, seconds, graph=None, host=None):
    title = f"sce_fast {peer}" if peer in ("cuda", "triton") else peer
    return {"peer": peer, "title": title, "seconds": seconds, "graph": graph, "host": host}


def shape(n, *results):
    return {
        "shape": {"n": n, "k": 65536, "d": 256, "dtype": "bfloat16"}, "operations": 8 * n * 65536 * 256,
        "queue_bytes": 65536 * 512, "gemm": {"edge": 8192, "flops": 790e12}, "copy": 3e12, "left_out": ["flex"],
        "results": list(results),
    }  # fmt: skip


def outcome(item, state="passed", reason="", data=None):
    return {"item": item, "state": state, "reason": reason, "seconds": 1.0, "data": data}


def record_of(gpu="NVIDIA H100 80GB HBM3", fast=True, **parts):
    factor = 1.0 if fast else 2.0
    loss = [
        outcome("first try", "failed", "crashed: signal 11 (SIGSEGV)"),
        outcome("N 1024", data=shape(
            1024, result("cuda", factor * 240e-6, factor * 215e-6, 50e-6), result("triton", 400e-6, 380e-6, 60e-6),
            result("official", 3e-3), result("attention", 290e-6, 280e-6), result("attention-cudnn", 270e-6),
        )),
        outcome("N 256", data=shape(
            256, result("cuda", factor * 90e-6, factor * 70e-6, 50e-6), result("official", 9e-4),
        )),
    ]  # fmt: skip
    step = {
        "seconds": 0.11, "images_per_second": 2327.0, "share_of_ours": factor * 0.007, "backend": "cuda",
        "stages": {"loss": 4e-4, "momentum": 2e-4, "queue": 2e-5},
        "settings": {"model": {"backbone": "resnet50"}, "batch_size": 256, "size": 224, "precision": "bfloat16"},
    }  # fmt: skip
    machine = {
        "gpu": gpu, "capability": "9.0", "multiprocessors": 132, "memory_gib": 79.2, "cuda": "13.0", "cudnn": 91000,
        "packages": {"torch": "2.11.0"}, "driver": "580.1", "commit": "abc", "python": "3.12.3", "processors": 16,
    }  # fmt: skip
    outcomes = {"loss": loss, "step": [outcome("synthetic images", data=step)], **parts}
    made = {
        name: {"title": name.title(), "state": "passed", "reason": "", "seconds": 2.0, "outcomes": those}
        for name, those in outcomes.items()
    }
    return {
        "started": "2026-11-24T00:00:00+00:00", "seconds": 500.0, "finished": True, "machine": machine, "parts": made,
    }  # fmt: skip


def test_targets_are_judged_by_the_fastest_of_ours_and_of_the_peers():
    found = targets(record_of())
    assert [target.reached for target in found] == [True] * 6
    assert found[0].measured == "639 TFLOP/s (sce_fast cuda)"
    assert found[1].measured == "12.5 × (sce_fast cuda)"
    assert found[2].measured == "1.12 × (sce_fast cuda against attention-cudnn)"
    assert found[3].measured == "70 µs (sce_fast cuda)"
    assert found[4].measured == "20 µs (sce_fast cuda)"
    assert found[5].measured == "0.7 %"
    slow = targets(record_of(fast=False))
    assert [target.reached for target in slow] == [False] * 6
    assert slow[0].measured == "362 TFLOP/s (sce_fast triton)"
    assert [target.reached for target in targets(record_of(gpu="NVIDIA L4"))] == [None] * 6


def test_the_page_tells_what_matters():
    parity = [
        outcome("triton: N 1, K 1, D 64, bfloat16", data={"worst": 0.31}),
        outcome("triton: N 77, K 4099, D 64, bfloat16", data={"worst": 0.62}),
        outcome("triton: N 77, K 4099, D 64, tf32", "failed", "clustered: loss", {"worst": 1.7}),
        outcome("sm80: N 1, K 1, D 64, bfloat16", "failed", "crashed: signal 6 (SIGABRT)"),
        outcome("sm80: N 1, K 1, D 64, tf32", "not run", "it does not serve them: its candidates are 16-bit"),
        outcome("sm90: N 1, K 1, D 64, bfloat16", "not run", "csrc/cuda/sm90_forward_pass.cu is not there"),
    ]
    text = page(record_of(
        parity=parity,
        tests=[outcome("tests/loss/test_cuda.py::a"), outcome("tests/loss/test_cuda.py::b", "failed", "wrong")],
        sanitizer=[outcome("memcheck, CUDA sm_80", data={"calls": 18, "findings": 0})],
        loader=[
            outcome("pixels from PNG files", data={"mean": 0.2, "largest": 3.0, "share_above_8": 0.0, "images": 64}),
            outcome("images/s", data={"images_per_second": {"cpu": 900.0, "gpu": 5100.0}}),
        ],
    ))  # fmt: skip
    assert "# Acceptance run on NVIDIA H100 80GB HBM3" in text
    assert "| effective rate, N 1024, K 65536, D 256, bfloat16, replayed from a graph | ≥ 600 TFLOP/s" in text
    assert "| triton | 0.62 | **1.7** |" in text
    assert "| sm80 | **failed** | – |" in text
    assert "| sm90 | – | – |" in text
    assert "| tests/loss/test_cuda.py | 1 | 1 | 0 |" in text
    assert (
        "| 1024, 65536, 256 bfloat16 | cuda | 240.0 | 215.0 | 639 | 81% | 5% | 50.0 | 12.50 | 1.12 attention-cudnn |"
        in text
    )
    assert "compute-sanitizer, memcheck, CUDA sm_80: nothing found in 18 calls" in text
    assert "images/s: cpu 900, gpu 5100" in text
    assert "- parity: `sm80: N 1, K 1, D 64, bfloat16`: crashed: signal 6 (SIGABRT)" in text
    assert "- parity: csrc/cuda/sm90_forward_pass.cu is not there: sm90: N 1, K 1, D 64, bfloat16" in text
    assert "to save time, or after a crash: flex" in text
    assert len(text.splitlines()) < 90


# ---------------------------------------------------------------------------------------------- pieces


def test_a_peer_that_crashed_is_left_out_and_its_shape_taken_again(tmp_path, monkeypatch):
    events = Events(tmp_path / "events.jsonl")
    names = list(acceptance_work.loss_items("cuda", events))
    assert names[:2] == ["N 1024, K 65536, D 256, bfloat16", "N 256, K 65536, D 256, bfloat16"]
    assert len(names) == len(set(names)) == 25
    events.begin(names)
    events.start(names[0])
    events.at(names[0], "triton")
    events.at(names[0], "attention-cudnn")
    events.settle(names[0], "failed", "crashed: signal 11 (SIGSEGV)")
    seen = []
    monkeypatch.setattr(
        acceptance_work, "measured", lambda name, shape, left_out, device, events: seen.append((name, shape, left_out))
    )
    items = acceptance_work.loss_items("cuda", events)
    assert list(items)[:2] == [names[0], f"{names[0]}, without attention-cudnn"]
    for name in list(items)[1:4]:
        items[name]()
    assert [shape[:2] for _, shape, _ in seen] == [(1024, 65536), (256, 65536), (4096, 65536)]
    assert all("attention-cudnn" in left_out and "triton" not in left_out for _, _, left_out in seen)
    assert ["compile" in left_out for _, _, left_out in seen] == [False, False, True]


def test_a_peer_is_named_at_each_of_its_turns(tmp_path, monkeypatch):
    """So that a hang in the turns, or while a graph is captured, is not laid to the peer that was prepared last."""
    events = Events(tmp_path / "events.jsonl")
    out = set(peers(torch.float32)) - {"cpu", "official", "chunked"}
    acceptance_work.measured("a shape", (8, 256, 32, "float32"), out, "cpu", events)
    places = [line["at"] for line in read_lines(events.path)]
    assert places == ["cpu", "official", "chunked"] * 3  # prepared, and two turns


def test_peers_are_named_before_the_graph_of_each(monkeypatch):
    told = []
    case = loss.make_case(8, 64, 16, 0, 0, torch.float32, 0.5, "cpu")
    chosen = {name: peer for name, peer in peers(torch.float32).items() if name in ("cpu", "chunked")}
    monkeypatch.setattr(loss, "_on_the_gpu", lambda result, *rest: told.append(f"graph of {result.peer}") or result)
    monkeypatch.setattr(loss, "stage_seconds", lambda step, device: [1.0, 1.0])
    monkeypatch.setattr(loss, "extra_memory", lambda run, device: None)
    monkeypatch.setattr(loss.torch, "randn", lambda *shape, device: torch.zeros(shape))
    loss.measure(case, chosen, 1, "cuda", told.append)
    assert told == ["cpu", "chunked", "cpu", "chunked", "cpu", "graph of cpu", "chunked", "graph of chunked"]


def test_a_process_that_hangs_leaves_time_to_those_behind_it(monkeypatch):
    """But for the build: a compiler says nothing for as long as it works."""
    monkeypatch.setattr(acceptance, "kernels", lambda context: ["triton", "sm80"])
    machine = {"gpu": "NVIDIA H200", "capability": "9.0", "processors": 16, "compute_sanitizer": "/bin/true"}
    context = acceptance.Context("cuda", machine, "")
    for name in set(acceptance.PARTS) - {"build"}:
        part = acceptance.PARTS[name]
        for work in part.works(context):
            assert work.patience < part.seconds * 0.95, name


def test_a_kernel_that_is_not_the_one_meant_is_no_answer(monkeypatch):
    checked = acceptance_work.Checked("sm90")
    monkeypatch.setattr(acceptance_work, "functions_run", lambda call: ["void sm80_sce_forward<64>()", "fill"])
    with pytest.raises(NotRun, match=r"backend='cuda' runs void sm80_sce_forward<64>\(\), fill here"):
        checked(lambda: None)
    assert acceptance_work.Checked("cpu")(lambda: None) is None


def test_inputs_that_a_kernel_refuses_are_not_run_at_every_size(tmp_path, monkeypatch):
    """Of a kernel whose function the profiler has seen at the first item, as of one that nobody has looked at."""

    def refuses(problem):
        return "its candidates are 16-bit" if problem.queue.dtype == torch.float32 else None

    def solve(problem):
        assert refuses(problem) is None
        return BACKENDS["reference"].solve(problem)

    def functions_run(call):
        call()
        return ["void halves_kernel()"]

    monkeypatch.setitem(BACKENDS, "halves", Backend("halves", refuses, solve, automatic=False))
    kernel = gpu_kernels.GpuKernel("Halves", "halves", "setup.py", "halves_kernel", ())
    monkeypatch.setitem(gpu_kernels.KERNELS, "halves", kernel)
    monkeypatch.setattr(gpu_kernels.GpuKernel, "missing", lambda kernel: None)
    monkeypatch.setattr(acceptance_work, "functions_run", functions_run)
    events = Events(tmp_path / "events.jsonl")
    items = acceptance_work.parity_items("halves", "cpu", events)
    events.run(items)
    told = [line for line in read_lines(tmp_path / "events.jsonl") if line.get("state") not in (None, "started")]
    assert len(told) == len(items) == 8
    for line in told:
        served = line["item"].endswith("float16")
        assert line["state"] == ("passed" if served else "not run"), line
        if not served:
            assert line["reason"] == "it does not serve them: its candidates are 16-bit"


def test_every_kernel_of_the_table_is_one_that_exists_or_says_that_it_does_not(monkeypatch):
    for name, kernel in gpu_kernels.KERNELS.items():
        source = ROOT / kernel.source
        assert source.exists() or name == "sm90"
        if source.exists():
            assert kernel.function in source.read_text()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 9))
    monkeypatch.setattr(gpu_kernels.CUDA, "missing", "")
    assert gpu_kernels.KERNELS["sm80"].missing() is None
    monkeypatch.setattr(gpu_kernels, "ROOT", Path("/nowhere"))
    assert gpu_kernels.KERNELS["sm90"].missing() == "csrc/cuda/sm90_forward_pass.cu is not there"


def test_the_build_takes_the_machine_code_that_the_gpu_runs():
    wanted = ["80", "90", "90a", "100", "120"]
    for capability, expected in [
        ((8, 0), ["80"]), ((8, 9), ["80"]), ((9, 0), ["90", "90a"]), ((10, 3), ["100"]), ((12, 1), ["120"]),
        ((7, 5), []), ((11, 0), []),
    ]:  # fmt: skip
        assert gpu_build.architectures(wanted, *capability) == expected


def test_without_nvcc_the_build_is_not_run_and_the_rest_can_be(tmp_path, monkeypatch):
    """The package has no CUDA kernels then, and that is no failure; with nvcc it is one."""
    code = "CUDA.missing = 'No module named sce_fast._cuda'"
    check = re.sub("from sce_fast.native import CPU, CUDA", rf"\g<0>\n{code}", gpu_build.CHECK)
    monkeypatch.setattr(gpu_build, "CHECK", check)
    monkeypatch.setattr(gpu_build, "install", lambda environment: (False, ""))
    monkeypatch.setattr(gpu_build, "find_tool", lambda name: None)
    with pytest.raises(NotRun, match="there is no nvcc"):
        gpu_build.build(9, 0)
    assert gpu_build.imported() == {"told": "without the CUDA kernels: No module named sce_fast._cuda"}
    monkeypatch.setattr(gpu_build, "find_tool", lambda name: "/usr/bin/nvcc")
    with pytest.raises(RuntimeError, match="AssertionError: No module named"):
        gpu_build.imported()


CLEAN = "ran 18 calls of CUDA sm_80\n========= ERROR SUMMARY: 0 errors\n"
OUT_OF_BOUNDS = """========= COMPUTE-SANITIZER
========= Invalid __global__ read of size 16 bytes
=========     at sce_fast::sm80_sce_forward+0x120
ran 18 calls of CUDA sm_80
========= ERROR SUMMARY: 2 errors
"""
RACE = """========= Error: Race reported between Write access at a and Read access at b [64 hazards]
ran 18 calls of CUDA sm_80
========= RACECHECK SUMMARY: 1 hazard displayed (1 error, 0 warnings)
"""


def test_what_compute_sanitizer_says_is_understood():
    assert sanitize.verdict(CLEAN, 0, "memcheck") == {"calls": 18, "findings": 0}
    clean = CLEAN.replace("ERROR SUMMARY: 0 errors", "RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)")
    assert sanitize.verdict(clean, 0, "racecheck") == {"calls": 18, "findings": 0}
    with pytest.raises(RuntimeError, match=r"2 findings \(exit status 9\): Invalid __global__ read of size 16"):
        sanitize.verdict(OUT_OF_BOUNDS, 9, "memcheck")
    with pytest.raises(RuntimeError, match=r"1 findings .*Race reported between Write access"):
        sanitize.verdict(RACE, 9, "racecheck")
    with pytest.raises(RuntimeError, match="findings"):
        sanitize.verdict(CLEAN, 9, "memcheck")  # a finding that the summary does not count
    with pytest.raises(NotRun, match="Device not supported"):
        sanitize.verdict("========= Error: Device not supported\n", 1, "memcheck")
    with pytest.raises(RuntimeError, match=r"did not run to its end \(exit status 1\): .*not built"):
        sanitize.verdict("Traceback: not built", 1, "memcheck")


def test_the_sanitizer_tells_how_far_it_has_come(tmp_path, monkeypatch):
    """Each case is a sign of life, so that one that hangs is named, and slow ones are not taken to hang."""
    program = tmp_path / "compute-sanitizer"
    cases = [f"{sanitize.AT}{case}" for case in ("the first use of the GPU", "case 1", "case 2")]
    lines = [*cases, "nothing of this", *CLEAN.splitlines()]
    program.write_text("#!/bin/sh\n" + "".join(f"echo '{line}'\n" for line in lines))
    program.chmod(0o755)
    monkeypatch.setattr(sanitize, "find_tool", lambda name: str(program))
    monkeypatch.setattr(gpu_kernels.GpuKernel, "missing", lambda kernel: None)
    told = []
    assert sanitize.sanitized("sm80", "memcheck", told.append) == {"calls": 18, "findings": 0}
    assert told == ["the first use of the GPU", "case 1", "case 2"]


class OnlyPlanned:
    """The extension module with its kernels emulated, but for the run: keeps how each call is cut."""

    def __init__(self, module):
        self.module, self.calls = module, []

    def __getattr__(self, name):
        return getattr(self.module, name)

    def Call(self, *arguments):
        self.calls.append(self.module.Call(*arguments))
        return SimpleNamespace(workspace_bytes=0, solve=lambda *buffers: None)


@pytest.mark.slow
@pytest.mark.parametrize("kernel", ["sm80", "sm90"])
def test_the_sanitizers_cases_fill_the_ring_of_the_cuda_kernels_anew(monkeypatch, kernel):
    """On an H100, where each block would have one tile if the work were cut for all of its multiprocessors."""
    from cuda_emulator import emulated

    module = OnlyPlanned(emulated.load_module())
    monkeypatch.setattr(CUDA, "module", module)
    monkeypatch.setattr(native_cuda, "_limits", lambda device: (132, 227 << 10, 90))
    monkeypatch.setattr(native_cuda, "_where", lambda device: (0, 0))

    def rings(case):
        """How often each pass of the case fills the ring, for each block."""
        size, problem = case[0], sanitize.problem_of(case, torch.device("cpu"))
        native_cuda.solve(problem, kernel)
        call, own = module.calls[-1], size.get("key_views") and not size.get("shared_batch_keys")
        assert call.kernel == kernel
        shared = [size["k"], 0 if own else size.get("m", 0)]
        for cut, candidates in ((call.shared, shared), (call.per_view, [size.get("m", 0)] if own else [])):
            tiles = sum(-(-count // cut["tile"]) for count in candidates)
            if tiles:
                yield tiles // cut["splits"] / cut["stages"]

    with sanitize.one_multiprocessor():
        fewest = [min(rings(case)) for case in sanitize.CASES[:-1]]
    assert min(fewest) > 1, fewest
    assert min(fewest[:6]) > 2  # every place of the ring has been given back twice
    assert native_cuda._limits(None) == (132, 227 << 10, 90)
    assert max(ring for case in sanitize.CASES[:6] for ring in rings(case)) <= 1


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
@pytest.mark.parametrize("capability", [(8, 0), (9, 0), (10, 0)])
def test_the_sanitizers_cases_fill_the_pipeline_of_the_triton_kernel_anew(monkeypatch, capability):
    """By the launches it would choose: a loop's copies are ahead of it by as many tiles as there are stages."""
    from sce_fast.kernels import plan
    from sce_fast.kernels import solve as triton_solve

    class Launched(Exception):
        pass

    def stop(**sizes):
        launch = plan.plan_forward_pass(**sizes)
        tiles = sum(-(-count // launch.block_candidates) for count in sizes["candidates"])
        raise Launched(tiles // launch.splits, launch.num_stages)

    monkeypatch.setattr(triton_solve, "plan_forward_pass", stop)
    shared_memory = plan.shared_memory(capability)
    monkeypatch.setattr(triton_solve, "_gpu", lambda device: plan.Gpu(capability, shared_memory, 132))
    with sanitize.one_multiprocessor():
        for case in sanitize.cases_of(gpu_kernels.KERNELS["triton"]):
            if case[0]["k"] == 1:
                continue
            with pytest.raises(Launched) as launched:
                triton_solve._solve(sanitize.problem_of(case, torch.device("cpu")))
            tiles, stages = launched.value.args
            assert tiles > 2 * stages, case


def test_the_sanitizer_looks_at_the_products_of_the_hopper_kernel_alone(monkeypatch):
    seen = []
    monkeypatch.setattr(native_cuda, "tile_of_sm90", lambda dim: 80)
    monkeypatch.setattr(native_cuda, "tile_products", lambda *tensors: seen.append([tuple(t.shape) for t in tensors]))
    for call in sanitize.products(gpu_kernels.KERNELS["sm90"], torch.device("cpu")):
        call()
    assert seen == [[(64, dim), (77, dim), (64, 80)] for dim in (64, 128, 192, 256)]
    assert not list(sanitize.products(gpu_kernels.KERNELS["sm80"], torch.device("cpu")))


def test_the_sanitizers_cases_are_served_by_every_kernel():
    """Sizes and types at least: on the CPU they run by the reference."""
    for case in sanitize.CASES:
        problem = sanitize.problem_of(case, torch.device("cpu"))
        assert native_cuda.refuses_inputs(problem) is None
        assert BACKENDS["reference"].solve(problem).rows.isfinite().all()
