"""The items that measure: which inputs, peers and kernels they take, and what they report."""

from pathlib import Path

import pytest
import torch

from sce_fast.benchmarks import loss
from sce_fast.benchmarks.acceptance import gpu_kernels
from sce_fast.benchmarks.acceptance import items as measuring
from sce_fast.benchmarks.acceptance.supervise import Events, NotRun, read_lines
from sce_fast.benchmarks.peers import peers
from sce_fast.loss.backends import BACKENDS, Backend

ROOT = Path(__file__).parents[3]


def test_a_peer_that_crashed_is_left_out_and_its_shape_taken_again(tmp_path, monkeypatch):
    events = Events(tmp_path / "events.jsonl")
    names = list(measuring.loss_items("cuda", events))
    assert names[:2] == ["N 1024, K 65536, D 256, bfloat16", "N 256, K 65536, D 256, bfloat16"]
    assert len(names) == len(set(names)) == 25
    events.begin(names)
    events.start(names[0])
    events.progress(names[0], "triton")
    events.progress(names[0], "attention-cudnn")
    events.settle(names[0], "failed", "crashed: signal 11 (SIGSEGV)")
    seen = []
    monkeypatch.setattr(
        measuring, "measure_shape", lambda name, shape, left_out, device, events: seen.append((name, shape, left_out))
    )
    items = measuring.loss_items("cuda", events)
    assert list(items)[:2] == [names[0], f"{names[0]}, without attention-cudnn"]
    for name in list(items)[1:4]:
        items[name]()
    assert [shape[:2] for _, shape, _ in seen] == [(1024, 65536), (256, 65536), (4096, 65536)]
    assert all("attention-cudnn" in left_out and "triton" not in left_out for _, _, left_out in seen)
    assert ["compile" in left_out for _, _, left_out in seen] == [False, False, True]


@pytest.mark.slow
def test_a_peer_is_named_at_each_of_its_turns(tmp_path, monkeypatch):
    """Otherwise a hang during a turn or a graph capture would be blamed on the peer that was prepared last."""
    events = Events(tmp_path / "events.jsonl")
    out = set(peers(torch.float32)) - {"cpu", "official", "chunked"}
    measuring.measure_shape("a shape", (8, 256, 32, "float32"), out, "cpu", events)
    places = [line["at"] for line in read_lines(events.path)]
    assert places == ["cpu", "official", "chunked"] * 3  # preparation and two turns


def test_peers_are_named_before_the_graph_of_each(monkeypatch):
    named = []
    case = loss.make_case(8, 64, 16, 0, 0, torch.float32, 0.5, "cpu")
    chosen = {name: peer for name, peer in peers(torch.float32).items() if name in ("cpu", "chunked")}
    monkeypatch.setattr(
        loss, "_with_gpu_times", lambda result, *rest: named.append(f"graph of {result.peer}") or result
    )
    monkeypatch.setattr(loss, "stage_seconds", lambda step, device: [1.0, 1.0])
    monkeypatch.setattr(loss, "extra_memory", lambda run, device: None)
    monkeypatch.setattr(loss.torch, "randn", lambda *shape, device: torch.zeros(shape))
    loss.measure(case, chosen, 1, "cuda", named.append)
    assert named == ["cpu", "chunked", "cpu", "chunked", "cpu", "graph of cpu", "chunked", "graph of chunked"]


def test_a_kernel_that_is_not_the_one_meant_is_no_answer(monkeypatch):
    check = measuring.KernelCheck("sm90")
    monkeypatch.setattr(measuring, "launched_functions", lambda call: ["void sm80_forward_pass<64>()", "fill"])
    with pytest.raises(NotRun, match=r"backend='cuda' launches void sm80_forward_pass<64>\(\), fill here"):
        check(lambda: None)
    assert measuring.KernelCheck("cpu")(lambda: None) is None


def test_inputs_that_a_kernel_refuses_are_not_run_at_every_size(tmp_path, monkeypatch):
    """Refused inputs never pass, even after the profiler has confirmed the kernel at the first item."""

    def refuses(problem):
        return "its candidates are 16-bit" if problem.queue.dtype == torch.float32 else None

    def solve(problem):
        assert refuses(problem) is None
        return BACKENDS["reference"].solve(problem)

    def launched_functions(call):
        call()
        return ["void halves_kernel()"]

    monkeypatch.setitem(BACKENDS, "halves", Backend("halves", refuses, solve, automatic=False))
    kernel = gpu_kernels.GpuKernel("Halves", "halves", "setup.py", "halves_kernel", ())
    monkeypatch.setitem(gpu_kernels.KERNELS, "halves", kernel)
    monkeypatch.setattr(gpu_kernels.GpuKernel, "missing", lambda kernel: None)
    monkeypatch.setattr(measuring, "launched_functions", launched_functions)
    events = Events(tmp_path / "events.jsonl")
    items = measuring.parity_items("halves", "cpu", events)
    events.run(items)
    outcomes = [line for line in read_lines(tmp_path / "events.jsonl") if line.get("state") not in (None, "started")]
    assert len(outcomes) == len(items) == 8
    for line in outcomes:
        served = line["item"].endswith("float16")
        assert line["state"] == ("passed" if served else "not run"), line
        if not served:
            assert line["reason"] == "the backend refuses these inputs: its candidates are 16-bit"


def test_every_kernel_of_the_table_is_one_that_exists_or_says_that_it_does_not(monkeypatch):
    for name, kernel in gpu_kernels.KERNELS.items():
        source = ROOT / kernel.source
        assert source.exists() or name == "sm90"
        if source.exists():
            assert kernel.function in source.read_text()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 9))
    monkeypatch.setattr(gpu_kernels.CUDA, "module", gpu_kernels)  # any module stands for it
    assert gpu_kernels.KERNELS["sm80"].missing() is None
    monkeypatch.setattr(gpu_kernels, "ROOT", Path("/nowhere"))
    assert gpu_kernels.KERNELS["sm90"].missing() == "csrc/cuda/sm90_forward_pass.cu does not exist"
